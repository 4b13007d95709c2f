"""Data sets: every form that they come in, and every way in which they can be wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import models
from tests.models import save
from tritongen.errors import DataError
from tritongen.graph import inspect_model
from tritongen.samples import Arrays, Dataset, open_dataset, stack, synthetic_dataset
from tritongen.shapes import ResolvedInput
from tritongen.tensors import TensorSpec, from_name

_modules = itertools.count()


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, from_name(dtype), shape)


X = spec("x", "N", 4)
IDS = spec("ids", "N", dtype="int64")
WORDS = spec("words", "N", 2, dtype="string")


def x_array(count: int = 10) -> Any:
    return np.arange(count * 4, dtype=np.float32).reshape(count, 4)


def opened(source: Path | str, *inputs: TensorSpec, batched: bool = True, **kwargs: Any) -> Any:
    return open_dataset(str(source), inputs, batched=batched, **kwargs)


def refused(source: Path | str, *inputs: TensorSpec, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(source, *inputs, **kwargs)
    return str(caught.value)


def all_of(dataset: Dataset, size: int = 3) -> Arrays:
    return stack(list(dataset.batches(size)))


@pytest.fixture
def module(tmp_path: Path) -> Callable[[str], tuple[str, Path]]:
    """Writes a module with `def data(...)`, and returns its reference and folder."""

    def write(body: str) -> tuple[str, Path]:
        name = f"user_data_{next(_modules)}"
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\n{body}\n", encoding="utf-8")
        return f"{name}:data", tmp_path

    return write


# The forms


@pytest.mark.parametrize("saving", [np.savez, np.savez_compressed])
def test_npz(saving: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    words = np.array([[f"a{i}", "bb"] for i in range(10)])
    saving(path, x=x_array(), ids=np.arange(10), words=words, labels=np.arange(10) % 3)
    data = opened(path, X, IDS, WORDS)
    assert (data.count, data.synthetic) == (10, False)
    assert [len(batch["x"]) for batch in data.batches(4)] == [4, 4, 2]
    read = all_of(data)
    np.testing.assert_array_equal(read["x"], x_array())
    np.testing.assert_array_equal(read["ids"], np.arange(10))
    assert read["words"].dtype == object
    assert read["words"][3].tolist() == ["a3", "bb"]
    np.testing.assert_array_equal(data.labels, np.arange(10) % 3)
    assert data.value_ranges == {"ids": (0, 9)}
    assert data.shapes == {"x": {(4,): 10}, "ids": {(): 10}, "words": {(2,): 10}}


def test_the_digest_follows_content_not_compression(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=x_array())
    np.savez_compressed(tmp_path / "b.npz", x=x_array())
    np.savez(tmp_path / "c.npz", x=x_array() + 1)
    one, same, other = (opened(tmp_path / f"{name}.npz", X).digest for name in "abc")
    assert one == same != other


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_in_both_orders_and_foreign_byte_order(order: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.asarray(x_array(), dtype=">f4", order=order))
    read = all_of(opened(tmp_path / "d.npy", X))["x"]
    np.testing.assert_array_equal(read, x_array())
    assert read.dtype.isnative


def test_a_folder_is_read_in_order_across_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", x=x_array()[3:], labels=np.arange(3, 10))
    np.savez(tmp_path / "a.npz", x=x_array()[:3], labels=np.arange(3))
    (tmp_path / "readme.txt").write_text("not data", encoding="utf-8")
    data = opened(tmp_path, X)
    assert [len(batch["x"]) for batch in data.batches(4)] == [4, 4, 2]
    np.testing.assert_array_equal(all_of(data)["x"], x_array())
    np.testing.assert_array_equal(data.labels, np.arange(10))


def test_batches_break_where_shapes_change(tmp_path: Path) -> None:
    image = spec("image", "N", 3, "h", "w")
    for i, size in enumerate((8, 8, 16)):
        np.save(tmp_path / f"{i}.npy", np.zeros((2, 3, size, size), np.float32))
    data = opened(tmp_path, image)
    assert [batch["image"].shape for batch in data.batches(3)] == [(3, 3, 8, 8), (1, 3, 8, 8), (2, 3, 16, 16)]
    assert data.shapes == {"image": {(3, 8, 8): 4, (3, 16, 16): 2}}


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 12))
def test_no_batch_size_loses_or_repeats_samples(parts: list[int], size: int) -> None:
    import tempfile

    total = sum(parts)
    with tempfile.TemporaryDirectory() as folder:
        for i, (start, count) in enumerate(zip(itertools.accumulate([0, *parts]), parts, strict=False)):
            np.savez(Path(folder) / f"{i}.npz", x=x_array(total)[start : start + count])
        data = opened(folder, X)
        lengths = [len(batch["x"]) for batch in data.batches(size)]
        assert lengths == [size] * (total // size) + ([total % size] if total % size else [])
        np.testing.assert_array_equal(all_of(data, size)["x"], x_array(total))


def test_bfloat16_and_scalars_per_call(tmp_path: Path) -> None:
    import ml_dtypes

    values = np.ones((3, 2), ml_dtypes.bfloat16)
    np.save(tmp_path / "d.npy", values)
    assert all_of(opened(tmp_path / "d.npy", spec("x", "N", 2, dtype="bfloat16")))["x"].dtype == values.dtype


# Models that do not batch


def test_calls_stacked_along_a_leading_axis(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=x_array(6).reshape(3, 2, 4), scale=np.ones(3, np.float32))
    data = opened(tmp_path / "d.npz", spec("x", "n", 4), spec("scale"), batched=False)
    assert data.count == 3
    assert [(call["x"].shape, call["scale"].shape) for call in data.batches(8)] == [((2, 4), ())] * 3
    assert data.shapes == {"x": {(2, 4): 3}, "scale": {(): 3}}


def test_one_complete_call(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=x_array(7), scale=np.float32(2))
    data = opened(tmp_path / "d.npz", spec("x", "n", 4), spec("scale"), batched=False)
    assert [call["x"].shape for call in data.batches(1)] == [(7, 4)]


def test_a_static_batch_is_cut_into_calls(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=x_array(6), labels=np.arange(6))
    data = opened(tmp_path / "d.npz", spec("x", 2, 4), batched=False)
    assert data.count == 3
    assert [call["x"].shape for call in data.batches(1)] == [(2, 4)] * 3
    assert len(data.labels) == 6
    assert "a multiple of 4" in refused(tmp_path / "d.npz", spec("x", 4, 4), batched=False)


def test_a_refuted_batch_axis_takes_items_one_by_one(tmp_path: Path) -> None:
    from dataclasses import replace

    from tritongen.graph import BatchAxis, BatchStatus

    graph = inspect_model(save(models.linear(), tmp_path / "m.onnx"))
    np.savez(tmp_path / "d.npz", x=x_array(5))
    refuted = replace(graph, batch=BatchAxis(BatchStatus.REFUTED, ""))
    calls = list(open_dataset(str(tmp_path / "d.npz"), refuted).batches(4))
    assert [call["x"].shape for call in calls] == [(1, 4)] * 5
    assert open_dataset(str(tmp_path / "d.npz"), graph).count == 5


# Functions


@pytest.mark.parametrize(
    "body",
    [
        "def data(): return {'x': np.arange(40, dtype='f').reshape(10, 4)}",
        "def data(seed): return {'x': np.arange(40, dtype='f').reshape(10, 4)}",
        "def data(*, seed=1):\n  assert seed == 7\n  return {'x': np.arange(40, dtype='f').reshape(10, 4)}",
        "def data():\n  for i in range(10): yield {'x': np.arange(i * 4, i * 4 + 4, dtype='f')[None]}",
        "class data:\n  def __iter__(self):\n    yield {'x': np.arange(40, dtype='f').reshape(10, 4)}",
    ],
)
def test_functions(body: str, module: Callable[[str], tuple[str, Path]]) -> None:
    source, folder = module(body)
    data = opened(source, X, folder=folder, seed=7)
    np.testing.assert_array_equal(all_of(data)["x"], x_array())
    np.testing.assert_array_equal(all_of(data, 4)["x"], x_array())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def other(): pass", ["has no 'data'"]),
        ("def date(): pass", ["has no 'data'", "did you mean"]),
        ("data = 3", ["is not a function", "a int"]),
        ("import not_installed_here", ["no module 'not_installed_here'"]),
        ("def data(:", ["cannot be imported", "SyntaxError", ".py:2"]),
        ("raise RuntimeError('boom')", ["cannot be imported", "RuntimeError: boom", ".py:2"]),
        ("import sys; sys.exit(3)", ["cannot be imported", "SystemExit"]),
        ("def data(): return 1 / 0", ["failed", "ZeroDivisionError", ".py:2"]),
        (
            "def data():\n  yield {'x': np.zeros((1, 4), 'f')}\n  1 / 0",
            ["failed", "ZeroDivisionError", ".py:4"],
        ),
        ("def data(a, b): pass", ["wants more than a seed", "a, b"]),
        ("def data(): return np.zeros((1, 4), 'f')", ["returned a ndarray", "{'INPUT': array}"]),
        ("def data(): return None", ["returned a NoneType"]),
        ("def data(): yield 1", ["(item 0) is a int"]),
        ("def data(): return []", ["no samples"]),
        ("def data(): return {'x': [[1.0, 2, 3, 4]]}", ["wrong type", "float64", "astype('float32')"]),
        ("def data(): return {'x': [[1.0], [2, 3]]}", ["failed", "ValueError"]),
        ("def data(): return {'x': np.array([object()])}", ["Python objects"]),
    ],
)
def test_functions_that_fail(body: str, words: list[str], module: Callable[[str], tuple[str, Path]]) -> None:
    source, folder = module(body)
    message = refused(source, X, folder=folder)
    assert all(word in message for word in words), message


def test_a_function_that_changes_its_mind(module: Callable[[str], tuple[str, Path]]) -> None:
    source, folder = module("def data(): return {'x': np.random.default_rng().random((4, 4), 'f')}")
    data = opened(source, X, folder=folder)
    with pytest.raises(DataError, match="other samples than the first time"):
        list(data.batches(2))


def test_a_module_that_is_not_there() -> None:
    assert "there is no module 'no_such_module_here'" in refused("no_such_module_here:data", X)


# What can be wrong with arrays


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": x_array().astype("float64")}, ["'x'", "wrong type", "float64", "x.astype('float32')"]),
        ({"x": x_array().astype("int32")}, ["wrong type", "int32"]),
        ({"y": x_array()}, ["holds 'y', which is not an input"]),
        ({"X": x_array()}, ["rename it to 'x'"]),
        ({"ids": x_array(), "why": x_array()}, ["holds 'ids'", "rename what holds 'x' so, and leave"]),
        ({"x": x_array(), "extra": x_array()}, ["holds 'extra'"]),
        ({"labels": np.arange(3)}, ["does not hold the input 'x'"]),
        ({"x": x_array()[0]}, ["'x'", "wrong shape", "[4]", "[N, 4]", "x[None]"]),
        ({"x": x_array().reshape(5, 8)}, ["wrong shape", "[5, 8]"]),
        ({"x": x_array(0)}, ["no samples"]),
        (
            {"x": x_array(), "labels": np.arange(9)},
            ["different numbers of samples", "the inputs: 10, labels: 9"],
        ),
        ({"x": x_array(), "labels": np.full(10, np.nan)}, ["'labels'", "not finite"]),
        ({"x": np.array([list("abcd")])}, ["wrong type", "<U1"]),
    ],
)
def test_wrong_arrays_are_named(arrays: Arrays, words: list[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    message = refused(tmp_path / "d.npz", X)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_values_that_are_not_finite_are_located(wrong: float, dtype: str, tmp_path: Path) -> None:
    values = np.zeros((10, 4), dtype)
    values[7, 2] = wrong
    np.savez(tmp_path / "d.npz", x=values)
    message = refused(tmp_path / "d.npz", spec("x", "N", 4, dtype=dtype))
    assert "'x'" in message
    assert "index [7, 2]" in message


def test_the_index_counts_from_the_start_of_a_large_file(tmp_path: Path) -> None:
    values = np.zeros((40, 512, 512), np.float32)  # 42 MB: read in several blocks
    values[37, 5, 6] = np.nan
    np.save(tmp_path / "d.npy", values)
    assert "index [37, 5, 6]" in refused(tmp_path / "d.npy", spec("x", "N", 512, 512))


def test_different_counts_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=x_array(3), ids=np.arange(2))
    assert "x: 3, ids: 2" in refused(tmp_path / "d.npz", X, IDS)


def test_channels_last_gets_the_remedy(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 8, 8, 3), np.float32))
    assert "x.transpose(0, 3, 1, 2)" in refused(tmp_path / "d.npz", spec("x", "N", 3, "h", "w"))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros(3), np.zeros(4)]
    np.savez(tmp_path / "d.npz", x=ragged)
    np.save(tmp_path / "d.npy", ragged)
    np.savez(tmp_path / "w.npz", words=np.array([["a", "b"]], dtype=object))
    assert "'x' in" in refused(tmp_path / "d.npz", X)
    assert "never unpickled" in refused(tmp_path / "d.npy", X)
    assert "array.astype(str)" in refused(tmp_path / "w.npz", WORDS)


def test_bytes_become_text_or_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", words=np.array([[b"caf\xc3\xa9", b"x"]]))
    assert all_of(opened(tmp_path / "d.npz", WORDS))["words"].tolist() == [["café", "x"]]
    np.savez(tmp_path / "d.npz", words=np.array([[b"\xff", b"x"]]))
    assert "not UTF-8" in refused(tmp_path / "d.npz", WORDS)


def test_labels_in_all_parts_or_in_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=x_array(2), labels=np.arange(2))
    np.savez(tmp_path / "b.npz", x=x_array(2))
    assert "b.npz has no labels, and others have" in refused(tmp_path, X)
    np.savez(tmp_path / "b.npz", x=x_array(2), labels=np.zeros((2, 5)))
    assert "different shapes" in refused(tmp_path, X)


def test_an_input_may_be_named_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", labels=x_array())
    data = opened(tmp_path / "d.npz", spec("labels", "N", 4))
    assert data.labels is None
    assert data.count == 10


# What can be wrong with files


def test_sources_that_are_not_there_or_not_data(tmp_path: Path) -> None:
    assert "there are no data at" in refused(tmp_path / "no.npz", X)
    assert "File name too long" in refused(tmp_path / f"{'n' * 300}.npz", X)
    assert "holds no samples" in refused(tmp_path, X)
    (tmp_path / "d.csv").write_text("1,2", encoding="utf-8")
    assert "not a form of data" in refused(tmp_path / "d.csv", X)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "pic.jpg").touch()
    assert "pic.jpg" in refused(tmp_path / "sub", X)


@pytest.mark.parametrize("name", ["d.npz", "d.npy"])
@pytest.mark.parametrize("content", [b"", b"not an array at all", b"\x93NUMPY\x01\x00"])
def test_files_that_are_not_what_their_names_say(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert "is not a readable" in refused(tmp_path / name, X)


def test_an_encrypted_archive_is_no_crash(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=x_array())
    content = bytearray((tmp_path / "d.npz").read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    (tmp_path / "d.npz").write_bytes(content)
    message = refused(tmp_path / "d.npz", X)
    assert "is not a readable" in message
    assert "encrypted" in message


def test_an_axis_is_proposed_only_where_the_rest_fits(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(64, dtype=np.float32))
    message = refused(tmp_path / "d.npz", X)
    assert "[64]" in message
    assert "[None]" not in message


@pytest.mark.parametrize("name", ["d.npz", "d.npy"])
def test_files_that_are_cut(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    np.savez(path, x=x_array()) if name.endswith("z") else np.save(path, x_array())
    whole = path.read_bytes()
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        refused(path, X)


def test_one_array_for_several_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", x_array())
    assert "numpy.savez(path, x=…, ids=…)" in refused(tmp_path / "d.npy", X, IDS)


# Made-up samples


def made_up(*shape: int, dtype: str, values: tuple[int, int] | None = None) -> ResolvedInput:
    return ResolvedInput(spec("x", "N", *shape, dtype=dtype), shape, shape, shape, values)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [("float32", None), ("float16", None), ("bfloat16", None), ("bool", None), ("uint8", (0, 255)),
     ("int64", (-5, 30521)), ("uint64", (0, 2**64 - 1)), ("int32", (3, 3)), ("string", None)],
)  # fmt: skip
def test_made_up_samples_are_typed_ranged_and_repeatable(dtype: str, values: tuple[int, int] | None) -> None:
    entry = made_up(5, dtype=dtype, values=values)
    data = synthetic_dataset([entry], 7, batched=True, seed=3)
    assert data.synthetic
    together, parts = all_of(data, 7)["x"], all_of(data, 2)["x"]
    np.testing.assert_array_equal(together, parts)
    assert together.dtype == entry.spec.dtype.numpy
    assert together.shape == (7, 5)
    if values is not None:
        assert int(together.min()) >= values[0]
        assert int(together.max()) <= values[1]
    assert data.digest == synthetic_dataset([entry], 7, batched=True, seed=3).digest
    assert data.digest != synthetic_dataset([entry], 7, batched=True, seed=4).digest


def test_made_up_calls_for_models_that_do_not_batch() -> None:
    data = synthetic_dataset(
        [made_up(2, 4, dtype="float32"), made_up(dtype="int64", values=(0, 1))], 3, batched=False
    )
    assert [call["x"].shape for call in data.batches(8)] == [()] * 3  # the same name: the last one wins
