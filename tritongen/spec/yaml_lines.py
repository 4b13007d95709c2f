"""YAML read into plain values with the line of every key kept, and everything surprising refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tritongen.errors import SpecError

Location = tuple[int | str, ...]

_MAX_NODES = 100_000
_MAX_BYTES = 4_000_000
_MERGE = "tag:yaml.org,2002:merge"


@dataclass
class Document:
    """A YAML document as plain values, with the line on which each key or item stands."""

    path: Path
    data: Any
    lines: dict[Location, int] = field(default_factory=dict)

    def where(self, location: Location) -> str:
        """`file:line` of a key, or of the nearest one around it."""
        for length in range(len(location), -1, -1):
            if (line := self.lines.get(location[:length])) is not None:
                return f"{self.path}:{line}"
        return str(self.path)


def read_yaml(path: Path) -> Document:
    """The document in the file at `path`; SpecError with file and line if it is not a plain YAML mapping."""
    text = _read_text(path)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise SpecError(
                f"{path} is empty",
                expected="a mapping with the key 'models'",
                fix="tritongen init MODEL.onnx writes one to start from",
            )
        if not isinstance(root, yaml.MappingNode):
            raise SpecError(
                f"{path}:{_line(root)}: a spec is a mapping of keys to values",
                found=_kind(root),
                expected="models:\n              NAME:\n                path: MODEL.onnx",
            )
        builder = _Builder(loader, path)
        return Document(path, builder.build(root, ()), builder.lines)
    except yaml.YAMLError as error:
        raise _syntax_error(error, path) from error
    except RecursionError as error:
        raise SpecError(f"{path} is nested too deeply", fix="see docs/spec.md for its form") from error


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise SpecError(f"{path} is a folder, not a spec file", expected="a .yaml file")
        if path.stat().st_size > _MAX_BYTES:
            raise SpecError(
                f"{path} is too large for a spec",
                found=f"{path.stat().st_size} bytes",
                expected=f"at most {_MAX_BYTES}",
                fix="give a tritongen.yaml, or an .onnx file",
            )
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SpecError(
            f"there is no file {path}", fix="check the path, or write one: tritongen init MODEL.onnx"
        ) from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not a text file", found=str(error), expected="YAML in UTF-8") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read", found=str(error)) from error


class _Builder:
    """Turns YAML nodes into values, noting lines, and refusing duplicates, cycles and alias bombs."""

    def __init__(self, loader: yaml.SafeLoader, path: Path) -> None:
        self.loader = loader
        self.path = path
        self.lines: dict[Location, int] = {}
        self.open: set[int] = set()
        self.count = 0

    def build(self, node: yaml.Node, location: Location) -> Any:
        self.lines.setdefault(location, _line(node))
        self.count += 1
        if id(node) in self.open or self.count > _MAX_NODES:
            cyclic = id(node) in self.open
            raise SpecError(
                f"{self.path}:{_line(node)}: "
                + (
                    "an alias refers to a value that contains itself" if cyclic else "aliases repeat too much"
                ),
                found=f"at {_dotted(location)}",
                fix="write the value out in place of the alias (*name)",
            )
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
                return self._mapping(node, location)
            if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
                return [self.build(item, (*location, i)) for i, item in enumerate(node.value)]
            if isinstance(node, yaml.ScalarNode):
                return self._scalar(node)
        finally:
            self.open.discard(id(node))
        raise yaml.constructor.ConstructorError(
            None, None, f"the tag {node.tag} is not allowed in a spec", node.start_mark
        )

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        own: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            key = self._key(key_node, location)
            place = (*location, key)
            if key in own:
                raise SpecError(
                    f"{self.path}:{_line(key_node)}: the key '{_dotted(place)}' is given twice",
                    found=f"first on line {own[key]}, again on line {_line(key_node)}",
                    fix="keep one of them",
                )
            own[key] = _line(key_node)
            self.lines[place] = _line(key_node)
            result[key] = self.build(value_node, place)
        for source in merged:
            inherited = self.build(source, location)
            if isinstance(inherited, dict):
                result = {**inherited, **result}
        return result

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self.loader.construct_object(node)
        except ValueError as error:  # such as the date 2001-99-99
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error

    def _key(self, node: yaml.Node, location: Location) -> str:
        if isinstance(node, yaml.ScalarNode):
            value = self._scalar(node)
            if isinstance(value, str):
                return value
            raise SpecError(
                f"{self.path}:{_line(node)}: a key under '{_dotted(location)}' is not text",
                found=f"{node.value} (YAML reads it as {type(value).__name__})",
                fix=f"put it in quotes: '{node.value}':",
            )
        raise SpecError(
            f"{self.path}:{_line(node)}: a key under '{_dotted(location)}' is not text", found=_kind(node)
        )


def _syntax_error(error: yaml.YAMLError, path: Path) -> SpecError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
    if "'\\t'" in problem:
        return SpecError(
            f"{where}: a tab stands where YAML wants spaces", found=problem, fix="indent with spaces"
        )
    if "single document" in str(error):
        return SpecError(
            f"{where}: the file holds more than one document", found="a second '---'", fix="keep one document"
        )
    if "undefined alias" in problem:
        return SpecError(f"{where}: {problem}", fix="define it before with &name, or write the value out")
    return SpecError(
        f"{where}: this is not valid YAML",
        found=problem + (f", column {mark.column + 1}" if mark is not None else ""),
        fix="check quotes, colons and indentation near that line",
    )


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "a mapping" if isinstance(node, yaml.MappingNode) else f"the text {str(node.value)[:60]!r}"


def _dotted(location: Location) -> str:
    return ".".join(map(str, location)) or "the document"
