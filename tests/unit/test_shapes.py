"""Sizes and value ranges: their texts, and where they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import models
from tests.models import save
from tritongen.errors import DataError, SpecError
from tritongen.graph import BatchAxis, BatchStatus, Graph, inspect_model
from tritongen.graph.proposals import proposal_source, propose_shape
from tritongen.shapes import (
    MissingInputError,
    ResolvedInput,
    Shape,
    parse_range,
    parse_shape,
    resolve_inputs,
    split_assignment,
)
from tritongen.tensors import TensorSpec, from_name

DECLARED = BatchAxis(BatchStatus.DECLARED, "")
ABSENT = BatchAxis(BatchStatus.ABSENT, "")
REFUTED = BatchAxis(BatchStatus.REFUTED, "")


def graph_of(
    *inputs: TensorSpec, batch: BatchAxis = DECLARED, ranges: dict[str, tuple[int, int]] | None = None
) -> Graph:
    return Graph(
        path=Path("m.onnx"), digest="", inputs=inputs, outputs=inputs, ir_version=8, opsets={"": 17},
        operators={}, parameters=0, size_bytes=0, external_data=(), quantized=False, half=False, batch=batch,
        value_ranges=ranges or {},
    )  # fmt: skip


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, from_name(dtype), shape)


IMAGES = spec("images", "N", 3, "h", "w")


@dataclass
class Seen:
    """What a data set tells."""

    shapes: Mapping[str, Mapping[Shape, int]]
    value_ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def only(graph: Graph, **kwargs: dict[str, str]) -> ResolvedInput:
    (entry,) = resolve_inputs(graph, kwargs.get("shapes", {}), kwargs.get("ranges", {}))
    return entry


# Texts


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("3x320x320", ((3, 3, 3), (320, 320, 320), (320, 320, 320))),
        ("3x224..320..640", ((3, 3, 3), (224, 320, 640))),
        ("1..8", ((1, 8, 8),)),
        ("128", ((128, 128, 128),)),
        (" 3 x 4 ", ((3, 3, 3), (4, 4, 4))),
        ("3X4×5", ((3, 3, 3), (4, 4, 4), (5, 5, 5))),
    ],
)  # fmt: skip
def test_reads_shapes(text: str, axes: tuple[tuple[int, int, int], ...]) -> None:
    assert parse_shape(text) == axes


@pytest.mark.parametrize(
    "text", ["", "x", "3x", "3x-1", "3,4", "3x0", "3..2", "1..3..2", "1..2..3..4", "a", "3x4.5", "9999999999"]
)
def test_refuses_what_is_not_a_shape(text: str) -> None:
    with pytest.raises(SpecError):
        parse_shape(text)


axis_sizes = st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=3).map(sorted)


@settings(deadline=None)
@given(st.lists(axis_sizes, min_size=1, max_size=5))
def test_shapes_are_read_as_they_were_meant(axes: list[list[int]]) -> None:
    read = parse_shape("x".join("..".join(map(str, sizes)) for sizes in axes))
    for sizes, (low, usual, high) in zip(axes, read, strict=True):
        assert (low, high) == (sizes[0], sizes[-1])
        assert usual == (sizes[1] if len(sizes) == 3 else sizes[-1])


@settings(deadline=None)
@given(st.text(max_size=20), st.sampled_from([parse_shape, parse_range]))
def test_any_text_is_read_or_refused(text: str, parse: Callable[[str], object]) -> None:
    try:
        parse(text)
    except SpecError:
        return


def test_ranges() -> None:
    assert parse_range("0..30521") == (0, 30521)
    assert parse_range(" -5 .. 5 ") == (-5, 5)
    with pytest.raises(SpecError, match="is empty"):
        parse_range("5..0")
    with pytest.raises(SpecError, match="is not a range"):
        parse_range("5")


def test_assignments() -> None:
    assert split_assignment("a=b=3x4", "--shape") == ("a=b", "3x4")
    for text in ("3x4", "=3", "x="):
        with pytest.raises(SpecError, match="does not say which input"):
            split_assignment(text, "--shape")


# Sizes


@pytest.mark.parametrize("text", ["3x320x640", "1x3x320x640", "8x3x320x640"])
def test_with_or_without_the_batch_axis(text: str) -> None:
    entry = only(graph_of(IMAGES), shapes={"images": text})
    assert entry.min == entry.opt == entry.max == (3, 320, 640)
    assert entry.fixed
    assert entry.shape_source == "given"
    assert str(entry) == "3x320x640"


def test_ranges_of_sizes() -> None:
    entry = only(graph_of(IMAGES), shapes={"images": "3x224..320..640x320..640"})
    assert (entry.min, entry.opt, entry.max) == ((3, 224, 320), (3, 320, 640), (3, 640, 640))
    assert str(entry) == "3x224..320..640x320..640..640"


def test_full_sizes_where_the_model_does_not_batch() -> None:
    assert only(graph_of(IMAGES, batch=ABSENT), shapes={"images": "2x3x8x8"}).opt == (2, 3, 8, 8)
    assert only(graph_of(IMAGES, batch=ABSENT), shapes={"images": "3x8x8"}).opt == (1, 3, 8, 8)
    assert only(graph_of(spec("x", 2, 4), batch=ABSENT)).opt == (2, 4)
    assert only(graph_of(spec("x"), batch=ABSENT)).opt == ()


def test_a_refuted_batch_axis_counts_as_one() -> None:
    assert only(graph_of(spec("x", "N", 4), batch=REFUTED)).opt == (1, 4)


def test_one_number_per_item() -> None:
    assert only(graph_of(spec("x", "N"))).opt == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("320x320", ["has 2 sizes", "4 sizes (Nx3xhxw), or 3 without the leading axis (3xhxw)", "3x640x640"]),
        ("4x320x320", ["axis 1 is fixed at 3", "expected: 3"]),
        ("3..4x320x320", ["axis 1 is fixed at 3", "3..4..4"]),
        ("abc", ["--shape 'images=abc'", "is not a shape"]),
    ],
)
def test_sizes_that_contradict_the_model(text: str, words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        only(graph_of(IMAGES), shapes={"images": text})
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("tensor", "batch", "proposal"),
    [
        (IMAGES, DECLARED, "images=3x320x416"),
        (spec("x", "N", "a", "b", 3), DECLARED, "x=320x416x3"),
        (spec("x", 3, "h", "w"), ABSENT, "x=3x320x416"),
    ],
)
def test_the_size_that_a_model_was_exported_for_is_no_guess(
    tensor: TensorSpec, batch: BatchAxis, proposal: str
) -> None:
    graph = replace(graph_of(tensor, batch=batch), image_size=(320, 416))
    assert propose_shape(tensor, graph) == proposal
    assert proposal_source(tensor, graph) == "from the model's metadata (imgsz)"


def test_an_unknown_input_gets_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="'image', which the model does not have") as caught:
        only(graph_of(IMAGES), shapes={"image": "3x2x2"})
    assert caught.value.fix == "did you mean 'images'?"


def test_missing_sizes_name_the_flag_with_a_proposal() -> None:
    with pytest.raises(MissingInputError) as caught:
        only(graph_of(IMAGES))
    assert "--shape 'images=3x640x640'" in str(caught.value)
    assert 'shapes {"images": "3x640x640"} in the spec or in Python' in str(caught.value)


def test_axes_of_the_same_name_share_their_size() -> None:
    graph = graph_of(spec("a", "N", "seq"), spec("b", "N", "seq"), spec("c", "N", "other", "?"))
    with pytest.raises(MissingInputError) as caught:
        resolve_inputs(graph, {"a": "64"}, {})
    assert "'c'" in caught.value.message
    assert "'b'" not in caught.value.message
    graph = graph_of(spec("a", "N", "seq"), spec("b", "N", "seq"))
    one, other = resolve_inputs(graph, {"a": "16..64"}, {})
    assert (other.min, other.max, other.shape_source) == ((16,), (64,), "same name")
    assert one.max == other.max


def test_data_tell_the_sizes() -> None:
    seen = Seen({"images": Counter({(3, 32, 32): 2, (3, 64, 32): 5, (3, 96, 48): 1})})
    (entry,) = resolve_inputs(graph_of(IMAGES), {}, {}, seen)
    assert (entry.min, entry.opt, entry.max) == ((3, 32, 32), (3, 64, 32), (3, 96, 48))
    assert entry.shape_source == "data"
    with pytest.raises(DataError, match="outside the sizes that were given"):
        resolve_inputs(graph_of(IMAGES), {"images": "3x64x32"}, {}, seen)


@pytest.mark.parametrize(
    ("tensor", "batch", "proposal"),
    [
        (IMAGES, DECLARED, "images=3x640x640"),
        (spec("x", "N", "a", "b", 3), DECLARED, "x=640x640x3"),
        (spec("x", "N", "c", "h", "w"), ABSENT, "x=1x3x640x640"),
        (spec("ids", "N", "seq_len", dtype="int64"), DECLARED, "ids=128"),
        (spec("x", "batch_size"), ABSENT, "x=1"),
        (spec("audio", "N", "time", 80), DECLARED, "audio=128x80"),
    ],
)
def test_proposals(tensor: TensorSpec, batch: BatchAxis, proposal: str) -> None:
    graph = graph_of(tensor, batch=batch)
    assert propose_shape(tensor, graph) == proposal
    assert proposal_source(tensor, graph).startswith("a guess, since nothing in the model tells")
    name, text = split_assignment(proposal, "--shape")
    assert resolve_inputs(graph, {name: text}, {name: "0..1"} if tensor.dtype.is_integer else {})


def test_only_what_the_model_leaves_open_is_called_a_guess() -> None:
    line = spec("x", "N", 3, 48, "w")
    assert propose_shape(line, graph_of(line)) == "x=3x48x320"
    assert proposal_source(line, graph_of(line)) == "a guess for w; the model tells the rest"


def test_metadata_that_are_ignored_are_named() -> None:
    """On one line, since it becomes a comment in YAML."""
    graph = replace(graph_of(IMAGES), unusable_image_size="[0,\n-5]" + "9" * 1000)
    told = proposal_source(IMAGES, graph)
    assert told.startswith(r"a guess: imgsz in the model's metadata is '[0,\n-5]999")
    assert len(told.splitlines()) == 1
    assert len(told) < 150
    assert propose_shape(IMAGES, graph) == "images=3x640x640"


# Value ranges


def test_flag_then_data_then_graph_then_type() -> None:
    ids = spec("ids", "N", 4, dtype="int64")
    graph = graph_of(ids, ranges={"ids": (0, 99)})
    seen = Seen({"ids": {(4,): 1}}, {"ids": (3, 7)})
    for ranges, data, wanted, source in (
        ({"ids": "0..5"}, seen, (0, 5), "given"),
        ({}, seen, (3, 7), "data"),
        ({}, None, (0, 99), "graph"),
    ):
        (entry,) = resolve_inputs(graph, {}, ranges, data)
        assert (entry.value_range, entry.range_source) == (wanted, source)
    pixels = only(graph_of(spec("x", "N", 4, dtype="uint8")))
    assert (pixels.value_range, pixels.range_source) == ((0, 255), "dtype")
    for dtype in ("bool", "float32", "string"):
        assert only(graph_of(spec("x", "N", 4, dtype=dtype))).value_range is None


def test_an_unknown_range_names_the_flag() -> None:
    with pytest.raises(MissingInputError) as caught:
        only(graph_of(spec("input_ids", "N", 4, dtype="int32")))
    assert "--range 'input_ids=0..30521'" in str(caught.value)
    assert 'ranges {"input_ids": "0..30521"} in the spec or in Python' in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "text", "words"),
    [
        ("int32", "0..3000000000", "holds values that int32 cannot"),
        ("uint8", "-1..5", "holds values that uint8 cannot"),
        ("int64", "five", "--range 'x=five'"),
        ("float32", "0..1", "ranges are for integer inputs"),
    ],
)
def test_ranges_that_do_not_fit(dtype: str, text: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        only(graph_of(spec("x", "N", 4, dtype=dtype)), ranges={"x": text})
    assert words in str(caught.value)


def test_data_beyond_the_table_are_refused() -> None:
    graph = graph_of(spec("ids", "N", 4, dtype="int64"), ranges={"ids": (0, 9)})
    for values in ((0, 10), (-11, 3)):
        with pytest.raises(DataError, match="beyond the table"):
            resolve_inputs(graph, {}, {}, Seen({"ids": {(4,): 1}}, {"ids": values}))
    resolve_inputs(graph, {}, {}, Seen({"ids": {(4,): 1}}, {"ids": (-10, 9)}))


def test_a_real_model(tmp_path: Path) -> None:
    graph = inspect_model(save(models.tokens(vocabulary=20), tmp_path / "m.onnx"))
    entry = only(graph, shapes={"ids": "12"})
    assert (entry.opt, entry.value_range) == ((12,), (0, 19))
    assert only(replace(graph, batch=REFUTED), shapes={"ids": "12"}).opt == (1, 12)
