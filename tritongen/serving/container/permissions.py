"""What a container has of a folder: a bind mount keeps the owners, modes and links of this machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reader:
    """A user as the kernel sees it."""

    uid: int
    gids: frozenset[int]


NOBODY = Reader(-1, frozenset())
"""Someone who owns nothing and is in no group."""


def who_reads(user: str | None) -> Reader | None:
    """The reader for a container's user ("1000:1000", "" for root); None where only the image knows it."""
    if user is None:
        return None
    name, _, group = user.partition(":")
    if name in ("", "root", "0"):
        return Reader(0, frozenset({int(group) if group.isdecimal() else 0}))
    if not name.isdecimal():
        return None
    # Without a group Docker takes the one of the image's /etc/passwd, or 0.
    return Reader(int(name), frozenset({int(group)}) if group.isdecimal() else frozenset())


def unreadable(folder: Path, reader: Reader) -> list[Path]:
    """Files that `reader` cannot read and folders that it cannot list, by mode bits; file links are followed.

    What lies above `folder` does not count: the container sees the mounted folder at once.
    """
    closed = []
    for parent, folders, files in os.walk(folder):
        place = Path(parent)
        if not _may(place, reader, stat.S_IROTH | stat.S_IXOTH):
            closed.append(place)
            folders.clear()
            continue
        closed += [place / name for name in sorted(files) if not _may(place / name, reader, stat.S_IROTH)]
    return closed


def leading_out(folder: Path, mounts: Sequence[str] = ()) -> list[Path]:
    """Links below `folder` whose targets the container does not have: absolute ones, and those that lead out.

    Absolute ones are right where they lead into one of its `mounts`, by path in the container.
    """
    home, out = folder.absolute(), []
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in sorted((*folders, *files))):
            if path.is_symlink():
                link = path.readlink()
                target = Path(os.path.normpath(path.parent.absolute() / link))
                places = mounts if link.is_absolute() else (home,)
                if not any(target.is_relative_to(place) for place in places):
                    out.append(path)
    return out


def _may(path: Path, reader: Reader, bits: int) -> bool:
    """Whether `reader` has all of `bits` (given as the bits of others) on `path`."""
    try:
        status = path.stat()
    except OSError:
        return False
    if status.st_uid == reader.uid:
        bits <<= 6
    elif status.st_gid in reader.gids:
        bits <<= 3
    return status.st_mode & bits == bits
