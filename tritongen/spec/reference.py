"""The reference of the spec file, as Markdown, from its JSON schema."""

from __future__ import annotations

import json
from typing import Any

_INTRODUCTION = """\
# The spec: `tritongen.yaml`

Generated from the JSON schema by `tritongen schema spec --markdown`; do not edit.

`tritongen init MODEL.onnx` writes one to start from. Paths in the file count from the file's folder; the
defaults of `repository` and `run_dir` count from the working directory. Flags win over the file. An unknown
key, a key given twice or a wrong value is an error that names file and line.

```yaml
models:
  detector:
    path: detector.onnx
    shapes: {images: 3x640x640}
    max_batch_size: 16
    slo: ["p99<=20ms", "throughput>=500/s"]
    data: {calibration: calibration.npz, validation: validation.npz}
```
"""

_FORMS = """\
## Forms of values

| value | form | examples |
|---|---|---|
| shape | sizes joined by `x`; an axis may be `min..opt..max` or `min..max` (opt is then max); with or \
without the batch axis | `3x320x320`, `3x224..320..640x320`, `128` |
| range | `MIN..MAX`, both included | `0..30521` |
| SLO | `p50`, `p95`, `p99`, `p99.9`, any `pNN` or `mean`, then `<=` and a time in `ns`, `us`, `ms` or `s`; \
`error_rate<=` a share or percentage; `throughput>=` a rate: `/s` and `inf/s` mean inferences per second, \
`req/s` requests per second | `p99<=20ms`, `error_rate<=0.1%`, `throughput>=500/s` |
| data | a `.npz` or `.npy` file, a folder of them (read in the order of names), or `module:function`, which \
takes nothing or a seed and gives dicts of arrays; axis 0 holds the samples \
| `data/val.npz`, `mydata:validation` |

Where a shape is not given, it is taken from the data, or from another input's axis of the same name. Where
a range is not given, it is taken from the data, then from the graph (the table that the input indexes), then
from the type (`int8`, `uint8`). Made-up floats are standard normal, bools fair, strings `sample N`.
"""


def markdown(schema: dict[str, Any]) -> str:
    """The spec reference, one table per section of `schema` (as `tritongen.spec.json_schema` gives it)."""
    definitions = schema["$defs"]
    entries = definitions["ModelSpec"]["properties"]
    parts = [
        _INTRODUCTION,
        _section("The file", "Keys at the top level.", schema, definitions),
        _section(
            "`models.NAME`",
            "One entry per model; NAME is what Triton serves it under.",
            definitions["ModelSpec"],
            definitions,
        ),
    ]
    for key, entry in entries.items():
        section = definitions.get(entry.get("$ref", "").rsplit("/", 1)[-1], {})
        if "properties" in section:
            parts.append(_section(f"`models.NAME.{key}`", section["description"], section, definitions))
    return "\n".join([*parts, _FORMS])


def _section(title: str, text: str, section: dict[str, Any], definitions: dict[str, Any]) -> str:
    return f"## {title}\n\n{text}\n\n{_table(section, definitions)}"


def _table(section: dict[str, Any], definitions: dict[str, Any]) -> str:
    required = section.get("required", [])
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, entry in section["properties"].items():
        default = "**required**" if key in required else _default(entry)
        meaning = " ".join(entry.get("description", "").split()) or _meaning(entry, definitions)
        rows.append(
            "| " + " | ".join((f"`{key}`", _type(entry, definitions), default, _cell(meaning))) + " |"
        )
    return "\n".join(rows) + "\n"


def _meaning(entry: dict[str, Any], definitions: dict[str, Any]) -> str:
    target = definitions.get(entry.get("$ref", "").rsplit("/", 1)[-1], {})
    return " ".join(str(target.get("description", "")).split())


def _default(entry: dict[str, Any]) -> str:
    value = entry.get("default")
    return "" if value is None or isinstance(value, dict) else f"`{_cell(json.dumps(value))}`"


def _type(entry: dict[str, Any], definitions: dict[str, Any]) -> str:  # noqa: PLR0911 - one per kind
    if "$ref" in entry:
        name = entry["$ref"].rsplit("/", 1)[-1]
        return "section" if "properties" in definitions[name] else _type(definitions[name], definitions)
    if "anyOf" in entry:
        return " or ".join(
            _type(option, definitions) for option in entry["anyOf"] if option.get("type") != "null"
        )
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    kind: str | list[str] = entry.get("type", "")
    if isinstance(kind, list):
        return " or ".join(_type({"type": option}, definitions) for option in kind)
    if kind == "array":
        return f"list of {_type(entry.get('items', {}), definitions)}"
    if kind == "object":
        return f"mapping of name to {_type(entry.get('additionalProperties', {}), definitions)}"
    return {"string": "path" if entry.get("format") == "path" else "text", "boolean": "true or false"}.get(
        kind, kind + _bounds(entry)
    )


def _bounds(entry: dict[str, Any]) -> str:
    low, high = entry.get("minimum"), entry.get("maximum", _ANY)
    if high < _ANY:
        return f" {low} … {high}"
    return "" if low is None else f" ≥ {low}"


_ANY = 2**31 - 1
"""Bounds from here on are those of Triton's fields and nobody's wish."""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
