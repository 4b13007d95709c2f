"""pydantic's complaints, in words: where, what was found, what is allowed, and the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tritongen.errors import SpecError
from tritongen.spec import json_schema
from tritongen.spec.yaml_lines import Document, Location


def explain(error: ValidationError, document: Document) -> SpecError:
    """One SpecError for everything that pydantic found: the first in full, the others by place."""
    schema = json_schema()
    problems = sorted(
        error.errors(), key=lambda problem: (problem["type"] == "missing", _line(problem, document))
    )
    first = _describe(problems[0], schema, document.where(problems[0]["loc"]), dotted(problems[0]["loc"]))
    if len(problems) > 1:
        others = [f"{document.where(p['loc'])}: {dotted(p['loc'])} {_summary(p)}" for p in problems[1:6]]
        more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""  # noqa: PLR2004
        first.args = (first.message,)
        first.message += "".join(f"\n  also {text}" for text in others) + more
    return first


def explain_flags(error: ValidationError, flags: dict[Location, str]) -> SpecError:
    """One SpecError for a value that came from a flag; `flags` maps places in the spec to flag names."""
    problem = error.errors()[0]
    location = problem["loc"]
    name = next(
        (
            " ".join([flags[location[start:end]], *_keys(problem, end)])
            for start in range(len(location))
            for end in range(len(location), start, -1)
            if location[start:end] in flags
        ),
        dotted(location),
    )
    return _describe(problem, json_schema(), name, "")


def _keys(problem: ErrorDetails, start: int) -> list[str]:
    """The key of a KEY=VALUE flag that the problem is about; the complaint itself names an unknown one."""
    if problem["type"] == "extra_forbidden":
        return []
    return [part for part in problem["loc"][start:] if isinstance(part, str) and part != "[key]"]


def dotted(location: Location) -> str:
    """`models.detector.slo[0]` for ("models", "detector", "slo", 0)."""
    parts = [part for part in location if part != "[key]"]  # how pydantic marks a mapping's key
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def _line(problem: ErrorDetails, document: Document) -> int:
    _, _, line = document.where(problem["loc"]).rpartition(":")
    return int(line) if line.isdigit() else 0


def _summary(problem: ErrorDetails) -> str:
    kinds = {"extra_forbidden": "is an unknown key", "missing": "is missing", "spec": f": {problem['msg']}"}
    return kinds.get(problem["type"]) or _complaint(problem)


def _describe(problem: ErrorDetails, schema: dict[str, Any], where: str, key: str) -> SpecError:
    kind, location, context = problem["type"], problem["loc"], problem.get("ctx", {})
    what = f"{where}: {key}" if key else where
    if kind == "extra_forbidden":
        return _unknown_key(schema, where, key, location)
    if kind == "missing":
        return SpecError(
            f"{where}: the key '{key}' is missing",
            expected=_meaning(schema, location),
            fix=f"add '{location[-1]}:' under '{dotted(location[:-1])}'"
            if location[:-1]
            else f"add '{key}:'",
        )
    shown = repr(problem["input"])
    shown = shown if len(shown) <= 80 else shown[:77] + "..."  # noqa: PLR2004
    if kind == "spec":
        return SpecError(f"{what}: {problem['msg']}", **{
            name: context.get(name) for name in ("found", "expected", "fix")
        })  # fmt: skip
    allowed = _allowed(schema, location)
    near = nearest(str(problem["input"]), allowed)
    return SpecError(
        f"{what} {_complaint(problem)}",
        found=shown,
        expected=", ".join(allowed) or _meaning(schema, location),
        fix=f"did you mean '{near}'?" if near else None,
    )


def _complaint(problem: ErrorDetails) -> str:
    """What is wrong, in the words of YAML rather than of Python."""
    kind, context = problem["type"], problem.get("ctx", {})
    words = {
        "tuple_type": "must be a list: write [A, B] or one '- item' a line",
        "dict_type": "must be a mapping of names to values",
        "model_type": "must be a section with keys of its own",
        "model_attributes_type": "must be a section with keys of its own",
        "string_type": "must be text (in quotes, where YAML reads something else)",
        "int_type": "must be a whole number",
        "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
        "float_parsing": "must be a number",
        "finite_number": "must be a finite number",
        "bool_type": "must be true or false",
        "bool_parsing": "must be true or false",
        "path_type": "must be a path",
        "string_pattern_mismatch": "has none of the forms that it may have",
        "too_short": "must hold at least one entry",
    }
    bounds = {"greater_than_equal": ("at least", "ge"), "less_than_equal": ("at most", "le"),
              "greater_than": ("more than", "gt"), "enum": ("one of", "expected"),
              "literal_error": ("one of", "expected")}  # fmt: skip
    if kind in bounds:
        bound, key = bounds[kind]
        return f"must be {bound} {context[key]}"
    return words.get(kind, problem["msg"])


def _unknown_key(schema: dict[str, Any], where: str, key: str, location: Location) -> SpecError:
    allowed = sorted(_resolve(schema, location[:-1]).get("properties", {}))
    name = str(location[-1])
    homes = _homes(schema)
    near, far = nearest(name, allowed), nearest(name, homes)
    if name in homes:
        fix = f"it belongs {homes[name]}"
    elif near:
        fix = f"did you mean '{near}'?"
    else:
        fix = f"did you mean '{far}', {homes[far]}?" if far else "remove it"
    return SpecError(f"{where}: unknown key '{key or name}'", expected=", ".join(allowed), fix=fix)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that resembles this one most, capitals or not; None if none does."""
    spelled = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), spelled, n=1)
    return spelled[near[0]] if near else None


def _homes(schema: dict[str, Any]) -> dict[str, str]:
    """Where each key of the spec belongs, in words."""
    entries = schema["$defs"]["ModelSpec"]["properties"]
    homes: dict[str, str] = {}
    for section, entry in entries.items():
        keys = _follow(entry, schema).get("properties", {})
        homes |= dict.fromkeys(keys, f"under models.NAME.{section}")
    homes |= dict.fromkeys(entries, "under models.NAME")
    return homes | dict.fromkeys(schema["properties"], "at the top level")


def _resolve(schema: dict[str, Any], location: Location) -> dict[str, Any]:
    """The part of the JSON schema that describes the value at `location`; empty if there is none."""
    part = _follow(schema, schema)
    for step in location:
        if isinstance(step, int):
            part = part.get("items", {})
        elif step in part.get("properties", {}):
            part = part["properties"][step]
        elif isinstance(part.get("additionalProperties"), dict):
            part = part["additionalProperties"]
        part = _follow(part, schema)
    return part


def _follow(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Through references and optional values to what they mean."""
    while True:
        if "$ref" in part:
            target = schema["$defs"][part["$ref"].rsplit("/", 1)[-1]]
            part = {**target, **({"description": part["description"]} if "description" in part else {})}
        elif "anyOf" in part:
            real = [option for option in part["anyOf"] if option.get("type") != "null"]
            part = {**real[0], **({"description": part["description"]} if "description" in part else {})}
        else:
            return part


def _allowed(schema: dict[str, Any], location: Location) -> list[str]:
    part = _resolve(schema, location)
    return [str(value) for value in part.get("enum", [])]


def _meaning(schema: dict[str, Any], location: Location) -> str | None:
    description = _resolve(schema, location).get("description")
    return " ".join(description.split()) if description else None
