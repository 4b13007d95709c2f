"""The house keeps its rules: who may import whom, what is imported when, and who prints or exits."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tritongen
from tritongen.cli import COMMANDS

PACKAGE = Path(tritongen.__file__).parent
BACKENDS = PACKAGE / "serving" / "backends"

_GROUND = {"errors", "files"}
_WORDS = _GROUND | {"slo", "spec", "tensors"}
_MODEL = _WORDS | {"graph", "shapes", "samples"}
_RUNNING_SERVER = {"serving.access", "serving.control", "serving.statistics"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "slo": {"errors"},
    "spec": {"errors", "files", "slo"},
    "tensors": {"errors"},
    "plan_errors": set(),
    "scratch": set(),
    "graph": _GROUND | {"tensors"},
    "shapes": _GROUND | {"tensors", "graph"},
    "samples": _WORDS | {"graph", "shapes"},
    "runs": _GROUND | {"spec"},
    "precision": _MODEL,
    "engines": _MODEL | {"runs", "precision", "plan_errors"},
    "autotune": _MODEL | {"runs", "precision", "engines"},
    "repository": _MODEL | {"runs", "engines", "autotune.selection"},
    "serving": _WORDS
    | {"plan_errors", "scratch", "repository.manifest", "repository.targets", "repository.findings"},
    "reload": _WORDS | {"runs", "repository", "autotune.closeness", *_RUNNING_SERVER},
    "loadtest": _MODEL | {"runs", "scratch", *_RUNNING_SERVER},
    "tuning": _MODEL | {"runs", "loadtest", *_RUNNING_SERVER},
    "report": _WORDS | {"runs"},
    "doctor": {"*"},
    "cli": {"*"},
    "__main__": {"cli"},
    "__init__": set(),
}
"""Room → rooms (or single modules of a room) that it may import; "*" is every room."""

HEAVY = ("tensorrt", "onnxruntime", "tritonclient", "grpc", "pytriton", "scipy", "sklearn")
"""Imported only inside the functions that need them: this must work without them."""

PROGRAMS = {"cli", "serving.supervisor"}
"""Rooms and modules that are a process of their own: they may print, exit and read the environment."""

SLOW = ("numpy", "onnx", "pydantic", "rich", "jinja2", *HEAVY)
"""`tritongen --help` needs none of these."""


def _modules() -> Iterator[Path]:
    return (path for path in sorted(PACKAGE.rglob("*.py")) if "__pycache__" not in path.parts)


def _own_modules() -> list[Path]:
    return [path for path in _modules() if not path.is_relative_to(BACKENDS)]


def _dotted(path: Path) -> str:
    """`autotune/selection.py` → "autotune.selection"; a package's `__init__.py` → the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _room(dotted: str) -> str:
    return dotted.split(".", maxsplit=1)[0]


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name, below `tritongen`, of each import of the package's own modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "tritongen":
                yield node.lineno, _existing(name.split(".")[1:])


def _existing(parts: list[str]) -> str:
    """The longest prefix that is a module: `spec.Precision` → "spec"."""
    while parts and not (
        (PACKAGE.joinpath(*parts)).is_dir() or PACKAGE.joinpath(*parts).with_suffix(".py").is_file()
    ):
        parts = parts[:-1]
    return ".".join(parts)


def _allowed(importer: str, imported: str) -> bool:
    if not imported or _room(importer) == _room(imported):
        return True
    return any(
        entry in ("*", imported) or imported.startswith(f"{entry}.") for entry in MAY_IMPORT[_room(importer)]
    )


@pytest.mark.parametrize("path", _own_modules(), ids=_dotted)
def test_imports_follow_the_table(path: Path) -> None:
    importer = _dotted(path)
    assert _room(importer) in MAY_IMPORT, (
        f"{importer} is a new room: add it to the table in docs/architecture.md"
    )
    broken = [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports {imported}"
        for line, imported in _imports(ast.parse(path.read_text(encoding="utf-8")))
        if not _allowed(importer, imported)
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("path", sorted(BACKENDS.rglob("*.py")), ids=lambda path: path.parent.name)
def test_backends_stand_alone(path: Path) -> None:
    """They run inside Triton's Python stub, where tritongen is not importable."""
    assert not list(_imports(ast.parse(path.read_text(encoding="utf-8"))))


def _forbidden(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {
            "sys.exit",
            "os._exit",
            "os.environ",
            "os.getenv",
            "sys.stdout",
            "sys.stderr",
            "sys.argv",
        }:
            yield node.lineno, ast.unparse(node)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"print", "exit"}
        ):
            yield node.lineno, f"{node.func.id}()"


@pytest.mark.parametrize(
    "path",
    [path for path in _own_modules() if not {_room(_dotted(path)), _dotted(path)} & PROGRAMS],
    ids=_dotted,
)
def test_only_the_command_line_prints_exits_or_reads_the_environment(path: Path) -> None:
    found = [
        f"{path.name}:{line} {what}" for line, what in _forbidden(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_without_heavy_libraries() -> None:
    names = ["tritongen." + _dotted(path) for path in _own_modules() if path.name != "__main__.py"]
    _python(f"""
import importlib, importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {names!r}:
    importlib.import_module(name.removesuffix(".__init__"))
""")


def test_help_imports_nothing_slow() -> None:
    shown = _python(f"""
import contextlib, io, json, sys
from tritongen.cli import run
with contextlib.redirect_stdout(io.StringIO()):
    code = run(["--help"])
print(json.dumps([code, [name for name in {SLOW!r} if name in sys.modules]]))
""")
    assert json.loads(shown) == [0, []]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_explains_itself_without_heavy_libraries(command: str) -> None:
    shown = _python(f"""
import contextlib, io, json, sys
from tritongen.cli import run
with contextlib.redirect_stdout(io.StringIO()):
    code = run([{command!r}, "--help"])
print(json.dumps([code, [name for name in {HEAVY!r} if name in sys.modules]]))
""")
    assert json.loads(shown) == [0, []]
