"""Sizes for dynamic axes and value ranges for integer inputs: from flags, spec, data or graph."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tritongen.errors import DataError, SpecError
from tritongen.graph import BatchStatus, Graph
from tritongen.graph.proposals import proposal_source, propose_range, propose_shape
from tritongen.tensors import TensorSpec

Shape = tuple[int, ...]
Sizes = tuple[int, int, int]
"""Smallest, usual and largest size of one axis."""

_AXIS = re.compile(r"([0-9]+)(?:\.\.([0-9]+))?(?:\.\.([0-9]+))?")
_RANGE = re.compile(r"\s*(-?[0-9]+)\s*\.\.\s*(-?[0-9]+)\s*")
_SHAPE_FORMS = "sizes joined by x, such as 3x320x320, or min..opt..max per axis: 3x224..320..640x320"
_MAX_SIZE = 2**31 - 1
_WHOLE_TYPES = {"int8": (-(2**7), 2**7 - 1), "uint8": (0, 2**8 - 1)}
"""Small integers are pictures and quantized values: all of their values are usual."""


class MissingInputError(SpecError):
    """Sizes or a value range that nothing tells; the fix names the flag, with a proposal."""


class SeenData(Protocol):
    """What a data set tells about the shapes and values in it."""

    @property
    def shapes(self) -> Mapping[str, Mapping[Shape, int]]:
        """By input: each shape seen (per item for a batching model) and how often."""
        ...

    @property
    def value_ranges(self) -> Mapping[str, tuple[int, int]]:
        """By integer input: the smallest and the largest value seen."""
        ...


@dataclass(frozen=True)
class ResolvedInput:
    """An input with a size for each axis and, for integers, the values that it may take."""

    spec: TensorSpec
    min: Shape
    """Per item, without the batch axis, when the model batches; full dims otherwise. So are opt and max."""
    opt: Shape
    max: Shape
    value_range: tuple[int, int] | None = None
    """Inclusive; None for inputs that are not integers."""
    shape_source: str = "model"
    """Where the sizes of dynamic axes come from: `model` (there are none), `given`, `data`, `same name`."""
    range_source: str | None = None
    """Where the value range comes from: `given`, `data`, `graph`, `dtype`."""

    @property
    def fixed(self) -> bool:
        """Whether only one shape is meant."""
        return self.min == self.max

    def __str__(self) -> str:
        return "x".join(_axis_text(sizes) for sizes in zip(self.min, self.opt, self.max, strict=True))


def parse_shape(text: str) -> tuple[Sizes, ...]:
    """(min, opt, max) per axis of `3x224..320..640`; of `min..max` opt is the largest. Or SpecError."""
    axes = [_parse_axis(part, text) for part in re.split(r"\s*[xX×]\s*", text.strip())]
    return tuple(axes)


def _parse_axis(part: str, text: str) -> Sizes:
    match = _AXIS.fullmatch(part)
    if match is None:
        found = f"'{part}' in '{text}'" if part != text else f"'{text}'"
        raise SpecError(f"'{text}' is not a shape", found=found, expected=_SHAPE_FORMS)
    values = [int(group) for group in match.groups() if group is not None]
    low, high = values[0], values[-1]
    usual = values[1] if len(values) == 3 else high  # noqa: PLR2004
    if not 0 < low <= usual <= high <= _MAX_SIZE:
        raise SpecError(
            f"the sizes '{part}' of the shape '{text}' are not in order",
            found=part,
            expected="1 ≤ min ≤ opt ≤ max",
            fix="write the smallest size first",
        )
    return low, usual, high


def parse_range(text: str) -> tuple[int, int]:
    """The inclusive range that `0..30521` states; SpecError otherwise."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise SpecError(
            f"'{text}' is not a range of integers", found=text, expected="MIN..MAX, such as 0..30521"
        )
    low, high = int(match[1]), int(match[2])
    if low > high:
        raise SpecError(
            f"the range '{text}' is empty", found=text, expected="MIN ≤ MAX", fix=f"write {high}..{low}"
        )
    return low, high


def split_assignment(text: str, flag: str) -> tuple[str, str]:
    """(input, value) of `images=3x320x320`; SpecError naming `flag` if it is not of that form."""
    name, equals, value = text.rpartition("=")
    if not equals or not name.strip() or not value.strip():
        example = "images=3x320x320" if flag == "--shape" else "input_ids=0..30521"
        raise SpecError(
            f"{flag} '{text}' does not say which input it means",
            found=text,
            expected="INPUT=VALUE",
            fix=f"write {flag} '{example}'",
        )
    return name.strip(), value.strip()


def resolve_inputs(
    graph: Graph,
    shapes: Mapping[str, str],
    ranges: Mapping[str, str],
    dataset: SeenData | None = None,
) -> tuple[ResolvedInput, ...]:
    """Each input of `graph` with sizes and a value range, by the given texts, else the data, else the graph.

    SpecError names what contradicts the model, or the flag to add with a proposal; DataError says where the
    data lie outside the given sizes or the table that they index.
    """
    for texts, flag in ((shapes, "--shape"), (ranges, "--range")):
        check_input_names(texts, [spec.name for spec in graph.inputs], flag)
    given, symbols = _given_sizes(graph, shapes)
    resolved, missing = [], []
    for spec in graph.inputs:
        axes, source = _sizes(spec, given.get(spec.name), symbols, dataset, graph)
        if None in axes:
            missing.append(spec)
            continue
        complete = [sizes for sizes in axes if sizes is not None][1 if graph.batched else 0 :]
        low, usual, high = (tuple(sizes[i] for sizes in complete) for i in range(3))
        _check_seen_shapes(spec, low, high, dataset)
        values, origin = _value_range(spec, ranges.get(spec.name), dataset, graph)
        resolved.append(ResolvedInput(spec, low, usual, high, values, source, origin))
    if missing:
        raise _missing_shapes(missing, graph, shapes)
    return tuple(resolved)


def _given_sizes(
    graph: Graph, shapes: Mapping[str, str]
) -> tuple[dict[str, list[Sizes | None]], dict[str, Sizes | None]]:
    """The sizes that the texts give: by input, and by the name of the axis."""
    given = {
        spec.name: _given_axes(spec, shapes[spec.name], graph) for spec in graph.inputs if spec.name in shapes
    }
    symbols = {dim: axes[axis] for spec in graph.inputs if (axes := given.get(spec.name))
               for axis, dim in enumerate(spec.shape) if isinstance(dim, str) and dim != "?"}  # fmt: skip
    return given, symbols


def check_input_names(texts: Iterable[str], names: Sequence[str], flag: str) -> None:
    """SpecError for the first of `texts` that is not among the model's input names."""
    for name in texts:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise SpecError(
                f"{flag} names the input '{name}', which the model does not have",
                found=name,
                expected=", ".join(names),
                fix=f"did you mean '{near[0]}'?" if near else "use one of these names",
            )


def _given_axes(spec: TensorSpec, text: str, graph: Graph) -> list[Sizes | None]:
    """Sizes for every axis of the full shape; None for a batch axis that the text leaves out."""
    try:
        axes: list[Sizes | None] = list(parse_shape(text))
    except SpecError as error:
        error.message = f"--shape '{spec.name}={text}': {error.message}"
        raise
    leading_dynamic = 0 in spec.dynamic_axes
    if len(axes) == spec.rank - 1 and leading_dynamic:
        axes.insert(0, None if graph.batched else (1, 1, 1))
    if len(axes) != spec.rank:
        full = "x".join(str(dim) for dim in spec.shape)
        item = "x".join(str(dim) for dim in spec.shape[1:])
        raise SpecError(
            f"--shape '{spec.name}={text}' has {len(axes)} sizes, which does not fit the input",
            found=text,
            expected=f"{spec.rank} sizes ({full})"
            + (f", or {spec.rank - 1} without the leading axis ({item})" if leading_dynamic and item else ""),
            fix=f"write --shape '{propose_shape(spec, graph)}'",
        )
    for axis, (dim, sizes) in enumerate(zip(spec.shape, axes, strict=True)):
        if isinstance(dim, int) and sizes is not None and set(sizes) != {dim}:
            raise SpecError(
                f"--shape '{spec.name}={text}' contradicts the model: axis {axis} is fixed at {dim}",
                found=_axis_text(sizes),
                expected=str(dim),
                fix=f"write --shape '{propose_shape(spec, graph)}'",
            )
    return axes


def _sizes(
    spec: TensorSpec,
    given: list[Sizes | None] | None,
    symbols: Mapping[str, Sizes | None],
    dataset: SeenData | None,
    graph: Graph,
) -> tuple[list[Sizes | None], str]:
    """Sizes for every axis, None where nothing tells, and their source; the batch axis counts as 1."""
    if graph.batched or (graph.batch.status is BatchStatus.REFUTED and given is None):
        leading: Sizes | None = (1, 1, 1)
    else:
        leading = None
    if given is not None:
        return [
            leading if axis == 0 and graph.batched else sizes for axis, sizes in enumerate(given)
        ], "given"
    skip = 1 if graph.batched else 0
    seen = _seen_sizes(dataset, spec, skip)
    axes: list[Sizes | None] = []
    sources = {"model"}
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, int):
            axes.append((dim, dim, dim))
        elif axis == 0 and leading is not None:
            axes.append(leading)
        elif seen is not None:
            axes.append(seen[axis - skip])
            sources.add("data")
        else:
            axes.append(symbols.get(dim))
            sources.add("same name")
    return axes, next((name for name in ("data", "same name") if name in sources), "model")


def _seen_sizes(dataset: SeenData | None, spec: TensorSpec, skip: int) -> list[Sizes] | None:
    """(min, most frequent, max) per axis over the shapes in the data."""
    counts = dataset.shapes.get(spec.name) if dataset is not None else None
    if not counts:
        return None
    usual = max(counts, key=lambda shape: (counts[shape], shape))
    if len(usual) != spec.rank - skip:
        return None
    return [
        (min(shape[axis] for shape in counts), usual[axis], max(shape[axis] for shape in counts))
        for axis in range(len(usual))
    ]


def _check_seen_shapes(spec: TensorSpec, low: Shape, high: Shape, dataset: SeenData | None) -> None:
    """DataError for data whose shapes lie outside the sizes that were given."""
    for shape in dataset.shapes.get(spec.name, {}) if dataset is not None else ():
        if len(shape) == len(low) and any(not a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            raise DataError(
                f"the data hold shapes for '{spec.name}' outside the sizes that were given for it",
                found="x".join(map(str, shape)),
                expected="x".join(
                    _axis_text((a, a, c)) if a == c else f"{a}..{c}" for a, c in zip(low, high, strict=True)
                ),
                fix="widen the shape (min..opt..max), or leave it to the data",
            )


def _value_range(
    spec: TensorSpec, text: str | None, dataset: SeenData | None, graph: Graph
) -> tuple[tuple[int, int] | None, str | None]:
    if not spec.dtype.is_integer:
        if text is not None:
            raise SpecError(
                f"--range '{spec.name}={text}': ranges are for integer inputs",
                found=f"{spec.name} is {spec.dtype}",
                expected="an integer input",
                fix="remove it; other values can be given as data (--calibration-data, --data)",
            )
        return None, None
    table = graph.value_ranges.get(spec.name)
    seen = dataset.value_ranges.get(spec.name) if dataset is not None else None
    if seen is not None and table is not None:
        _check_seen(spec, seen, table)
    if text is not None:
        return _given_range(spec, text), "given"
    for values, source in ((seen, "data"), (table, "graph"), (_WHOLE_TYPES.get(spec.dtype.name), "dtype")):
        if values is not None:
            return values, source
    raise MissingInputError(
        f"the values that the integer input '{spec.name}' may take are not known",
        found=f"{spec}, and nothing in the graph tells its range",
        expected="an inclusive range, or real data",
        fix=f"add --range '{spec.name}={propose_range(spec)}' (the last valid value), or ranges "
        f"{_mapping([f'{spec.name}={propose_range(spec)}'])} in the spec or in Python",
    )


def _check_seen(spec: TensorSpec, seen: tuple[int, int], table: tuple[int, int]) -> None:
    size = table[1] + 1
    if seen[1] >= size or seen[0] < -size:  # ONNX counts negative indices from the end
        raise DataError(
            f"the data hold values for '{spec.name}' beyond the table that the model looks them up in",
            found=f"values from {seen[0]} to {seen[1]}",
            expected=f"{table[0]}..{table[1]}",
            fix="use the data (and the vocabulary) that belong to this model",
        )


def _given_range(spec: TensorSpec, text: str) -> tuple[int, int]:
    import numpy as np

    try:
        values = parse_range(text)
    except SpecError as error:
        error.message = f"--range '{spec.name}={text}': {error.message}"
        raise
    limits = np.iinfo(spec.dtype.name)
    if values[0] < limits.min or values[1] > limits.max:
        raise SpecError(
            f"--range '{spec.name}={text}' holds values that {spec.dtype} cannot",
            found=text,
            expected=f"{limits.min}..{limits.max}",
        )
    return values


def _missing_shapes(
    missing: Iterable[TensorSpec], graph: Graph, shapes: Mapping[str, str]
) -> MissingInputError:
    specs = list(missing)
    sources = dict.fromkeys(proposal_source(spec, graph) for spec in specs)
    known = known_sizes(graph, shapes)
    proposals = [propose_shape(spec, graph, known) for spec in specs]
    flags = " ".join(f"--shape '{proposal}'" for proposal in proposals)
    return MissingInputError(
        "sizes are missing for the dynamic axes of " + ", ".join(f"'{spec.name}'" for spec in specs),
        found="; ".join(str(spec) for spec in specs),
        expected="a size for each dynamic axis except the batch",
        fix=f"add {flags} ({'; '.join(sources)}), or shapes {_mapping(proposals)} in the spec or in Python, "
        "or give data that have them",
    )


def _mapping(assignments: Iterable[str]) -> str:
    """`INPUT=VALUE` as YAML and Python both take it."""
    return json.dumps(dict(text.rpartition("=")[::2] for text in assignments), ensure_ascii=False)


def known_sizes(graph: Graph, shapes: Mapping[str, str]) -> dict[object, str]:
    """The sizes of dynamic axes by their names, as texts, that `shapes` of some inputs tell for all."""
    symbols = _given_sizes(graph, shapes)[1]
    return {name: _axis_text(sizes) for name, sizes in symbols.items() if sizes is not None}


def lacks_sizes(spec: TensorSpec, graph: Graph, shapes: Mapping[str, str]) -> bool:
    """Whether an axis besides the batch is dynamic, and `shapes` tell no size for it or its name."""
    given, symbols = _given_sizes(graph, shapes)
    return None in _sizes(spec, given.get(spec.name), symbols, None, graph)[0]


def lacks_range(spec: TensorSpec, graph: Graph) -> bool:
    """Whether the input's values are integers whose range neither its type nor the graph tells."""
    return (
        spec.dtype.is_integer and spec.name not in graph.value_ranges and spec.dtype.name not in _WHOLE_TYPES
    )


def _axis_text(sizes: Sizes) -> str:
    low, usual, high = sizes
    return str(low) if low == high else f"{low}..{usual}..{high}"
