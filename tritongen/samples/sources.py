"""Where samples come from: a file, a folder, or a user's function; each gives named arrays part by part."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tritongen.errors import DataError
from tritongen.samples.arrays import Rows, objects_refused, open_npy, open_npz
from tritongen.samples.checking import Layout
from tritongen.spec import is_function

_SUFFIXES = (".npz", ".npy")
_FORMS = "a .npz or .npy file, a folder of them, or module:function"


@dataclass(frozen=True)
class Part:
    """Some of the samples: arrays by name, and where they are from, for messages."""

    arrays: Mapping[str, Rows]
    where: str


class Source(Protocol):
    """Gives the same parts in the same order on each pass."""

    @property
    def trusted(self) -> bool:
        """Whether passes are the same by nature (files), or must be compared (functions)."""
        ...

    def parts(self) -> Iterator[Part]: ...


def find_source(source: str, layout: Layout, *, folder: Path | None, seed: int) -> Source:
    """The source that the text means; DataError if there is none."""
    path = Path(source)
    try:
        if is_function(source) and not path.exists():
            return FunctionSource(source, folder, seed)
        return FileSource(_sample_files(path), layout)
    except OSError as error:
        raise DataError(
            f"{source} cannot be looked at", found=error.strerror, expected=_FORMS, fix="check the path"
        ) from error


def _sample_files(path: Path) -> tuple[Path, ...]:
    """The file, or those in the folder; DataError if that is none, OSError if it cannot be looked at."""
    if path.is_dir():
        files = sorted(
            file for file in path.iterdir() if file.suffix in _SUFFIXES and not file.name.startswith(".")
        )
        if not files:
            others = sorted(file.name for file in path.iterdir())[:5]
            raise DataError(
                f"the folder {path} holds no samples",
                found=", ".join(others) or "nothing",
                expected=".npz or .npy files",
                fix="save the samples with numpy.savez(path, INPUT=array, …)",
            )
        return tuple(files)
    if not path.exists():
        raise DataError(
            f"there are no data at {path}", found="no such file", expected=_FORMS, fix="check the path"
        )
    if path.suffix not in _SUFFIXES:
        raise DataError(
            f"{path} is not a form of data that tritongen reads",
            found=path.suffix or "a file without a suffix",
            expected=_FORMS,
            fix="convert it with numpy.savez(path, INPUT=array, …)",
        )
    return (path,)


@dataclass(frozen=True)
class FileSource:
    """One part for each file."""

    files: tuple[Path, ...]
    layout: Layout
    trusted: bool = True

    def parts(self) -> Iterator[Part]:
        for path in self.files:
            if path.suffix == ".npz":
                yield Part(open_npz(path), str(path))
            else:
                yield Part({self._only_input(path): open_npy(path)}, str(path))

    def _only_input(self, path: Path) -> str:
        names = self.layout.names
        if len(names) == 1:
            return names[0]
        raise DataError(
            f"{path} holds one array, and the model has {len(names)} inputs",
            found="a .npy file",
            expected=f"a .npz file with {', '.join(names)}",
            fix="save all of them with numpy.savez(path, " + ", ".join(f"{name}=…" for name in names) + ")",
        )


class FunctionSource:
    """`module:function`, called again for each pass."""

    trusted = False

    def __init__(self, reference: str, folder: Path | None, seed: int) -> None:
        self.reference = reference
        self.seed = seed
        self.function = _load_function(reference, folder)

    def parts(self) -> Iterator[Part]:
        result = self._guarded(self._call)
        if isinstance(result, Mapping):
            yield self._part(result, self.reference)
            return
        if isinstance(result, (np.ndarray, str, bytes)) or not isinstance(result, Iterable):
            raise DataError(
                f"{self.reference} returned {_kind(result)}",
                expected="an iterable of dicts, or one dict, of arrays by input name",
                fix="return {'INPUT': array}, or yield such dicts",
            )
        iterator = iter(result)
        end = object()
        for index in range(sys.maxsize):
            item = self._guarded(partial(next, iterator, end))
            if item is end:
                return
            yield self._part(item, f"{self.reference} (item {index})")

    def _part(self, item: Any, where: str) -> Part:
        if not isinstance(item, Mapping):
            raise DataError(
                f"{where} is {_kind(item)}",
                expected="a dict of arrays by input name",
                fix="yield {'INPUT': array}",
            )
        arrays = {}
        for name, value in item.items():
            array = self._guarded(partial(np.asarray, value))
            if array.dtype.hasobject and not all(isinstance(entry, (str, bytes)) for entry in array.ravel()):
                raise objects_refused(f"'{name}' in {where}")
            arrays[str(name)] = array
        return Part(arrays, where)

    def _call(self) -> Any:
        parameters = inspect.signature(self.function).parameters
        if "seed" in parameters:
            return self.function(seed=self.seed)
        required = [
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if len(required) > 1:
            raise DataError(
                f"{self.reference} wants more than a seed",
                found=f"parameters {', '.join(required)}",
                expected="no parameters, or one: the seed",
            )
        return self.function(self.seed) if required else self.function()

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except DataError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{self.reference} failed",
                found=_place(error),
                fix="mend the function; run it alone to see more",
            ) from error


def _load_function(reference: str, folder: Path | None) -> Callable[..., Any]:
    module_name, _, attribute = reference.partition(":")
    for entry in (Path.cwd(), folder):
        if entry is not None and str(entry.resolve()) not in sys.path:
            sys.path.insert(0, str(entry.resolve()))
    importlib.invalidate_caches()
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        places = dict.fromkeys(str(place.resolve()) for place in (Path(), folder or Path()))
        raise DataError(
            f"{reference} cannot be imported: there is no module '{error.name}'",
            found=f"looked in {', '.join(places)}",
            expected=f"{module_name.replace('.', '/')}.py there, or an installed package",
            fix="run from the folder that holds it, or install what it imports",
        ) from error
    except (Exception, SystemExit) as error:
        raise DataError(
            f"{reference} cannot be imported",
            found=_place(error),
            fix="mend the module; import it alone to see more",
        ) from error
    for name in attribute.split("."):
        if not hasattr(target, name):
            near = get_close_matches(name, dir(target), n=1)
            raise DataError(
                f"the module '{module_name}' has no '{attribute}'",
                found=str(getattr(target, "__file__", module_name)),
                fix=f"did you mean '{module_name}:{near[0]}'?" if near else "check the name",
            )
        target = getattr(target, name)
    if not callable(target):
        raise DataError(f"{reference} is not a function", found=_kind(target), expected="a function")
    function: Callable[..., Any] = target
    return function


def _place(error: BaseException) -> str:
    """`Type: message (file:line)` of where the user's code raised."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return f"{text} ({error.filename}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    users = [frame for frame in frames if "importlib" not in frame.filename]
    return f"{text} ({users[-1].filename}:{users[-1].lineno})" if users else text


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
