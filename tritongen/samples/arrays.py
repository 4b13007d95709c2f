"""Arrays in .npy and .npz files, read a few rows at a time; nothing is unpickled."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from tritongen.errors import DataError
from tritongen.samples import Array

_LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True)
class FileRows:
    """A C-ordered array in a file: reads, and does not map, so that memory in use stays what is looked at."""

    path: Path
    offset: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, rows: slice) -> Array:
        """Rows along axis 0; the slice's step is not looked at."""
        start, stop, _ = rows.indices(self.shape[0])
        return self._read(start, stop).reshape(max(stop - start, 0), *self.shape[1:])

    def whole(self) -> Array:
        """The array in memory."""
        return self._read(0, self.shape[0] if self.shape else 1).reshape(self.shape)

    def _read(self, start: int, stop: int) -> Array:
        row = math.prod(self.shape[1:])
        count = max(0, stop - start) * row
        offset = self.offset + start * row * self.dtype.itemsize
        flat: Array = np.fromfile(self.path, self.dtype, count, offset=offset)
        if flat.size != count:
            raise DataError(
                f"{self.path} ends too early",
                found=f"row {start + flat.size // row} is cut off",
                expected=f"{self.shape[0] if self.shape else 1} rows",
                fix="copy or save the file again",
            )
        return flat


Rows = Array | FileRows
"""What is known of an array before it is read, and its rows along axis 0 on demand."""


def whole(rows: Rows) -> Array:
    """All of it, in memory."""
    return rows.whole() if isinstance(rows, FileRows) else np.asarray(rows)


def open_npy(path: Path) -> Rows:
    """The array in a .npy file; DataError if it is damaged or holds Python objects."""
    with _explained(path), path.open("rb") as stream:
        shape, fortran, dtype = _header(stream)
        offset = stream.tell()
        size = path.stat().st_size
    needed = offset + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise objects_refused(path.name)
    if size < needed:
        raise DataError(
            f"{path} ends too early",
            found=f"{size} bytes",
            expected=f"{needed}",
            fix="copy or save the file again",
        )
    return np.load(path, mmap_mode="r") if fortran else FileRows(path, offset, dtype, shape)


def open_npz(path: Path) -> Mapping[str, Rows]:
    """The arrays in a .npz file: read on demand where stored plainly (np.savez), whole where compressed."""
    with _explained(path), zipfile.ZipFile(path) as archive:
        return {
            entry.filename.removesuffix(".npy"): _member(path, archive, entry)
            for entry in archive.infolist()
            if not entry.is_dir()
        }


def _member(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Rows:
    with archive.open(entry) as stream:
        shape, fortran, dtype = _header(stream)
        header_bytes = stream.tell()
    if dtype.hasobject:
        raise objects_refused(f"'{entry.filename.removesuffix('.npy')}' in {path}")
    if fortran or entry.compress_type != zipfile.ZIP_STORED:
        with archive.open(entry) as stream:
            array: Array = npy_format.read_array(stream, allow_pickle=False)  # type: ignore[no-untyped-call]
        return array
    with path.open("rb") as raw:
        raw.seek(entry.header_offset)
        local = raw.read(_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = struct.unpack_from("<HH", local, 26)
    start = entry.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    return FileRows(path, start + header_bytes, dtype, shape)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """(shape, Fortran order, dtype) from the start of a .npy stream."""
    version = npy_format.read_magic(stream)  # type: ignore[no-untyped-call]
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, fortran, dtype = read(stream)  # type: ignore[no-untyped-call]
    return shape, bool(fortran) and len(shape) > 1, dtype


class _explained:  # noqa: N801 - reads like a function where it is used
    """Maps what NumPy and zipfile raise on damaged files to DataError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # RuntimeError: an encrypted entry, or a compression that zipfile lacks.
        if isinstance(
            error,
            (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error, KeyError),
        ):
            raise DataError(
                f"{self.path} is not a readable {self.path.suffix} file",
                found=str(error).splitlines()[0] if str(error) else type(error).__name__,
                expected="a file written by numpy.savez or numpy.save",
                fix="save or copy it again",
            ) from error
        if isinstance(error, OSError):
            raise DataError(f"{self.path} cannot be read", found=str(error)) from error


def objects_refused(what: str) -> DataError:
    """The error for arrays of Python objects."""
    return DataError(
        f"{what} holds Python objects, which are never unpickled (they could run code)",
        found="dtype object",
        expected="one array of equal shapes with a plain type",
        fix="text: save array.astype(str); samples of different shapes: one .npz each in a folder",
    )
