"""A repository of tiny models for a real server, each for one property of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests import models


def lookup() -> Any:
    """row [batch] (int64) → value [batch, 2]: a row outside 0 … 3 makes the whole inference call fail."""
    return models.model(
        [helper.make_node("Gather", ["table", "row"], ["value"], axis=0)],
        [models.value("row", ["batch"], TensorProto.INT64)],
        [models.value("value", ["batch", 2])],
        [models.weights("table", (4, 2))],
    )


def many_types() -> Any:
    """Every element type that Triton's Python backend carries, [batch, 2] each, through Identity."""
    types = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "DOUBLE")
    nodes = [helper.make_node("Identity", [name.lower()], [f"{name.lower()}_out"]) for name in types]
    numbers = {name: getattr(TensorProto, name) for name in types}
    return models.model(
        nodes,
        [models.value(name.lower(), ["batch", 2], number) for name, number in numbers.items()],
        [models.value(f"{name.lower()}_out", ["batch", 2], number) for name, number in numbers.items()],
    )


def tensor(name: str, data_type: str, dims: str, more: str = "") -> str:
    return f'{{ name: "{name}" data_type: TYPE_{data_type} dims: [ {dims} ] {more} }}'


def config(name: str, max_batch_size: int, inputs: list[str], outputs: list[str], more: str = "") -> str:
    """The text of a config.pbtxt."""
    return (
        f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {max_batch_size}\n'
        f"input [ {', '.join(inputs)} ]\noutput [ {', '.join(outputs)} ]\n"
        f"instance_group [ {{ count: 1 kind: KIND_CPU }} ]\n{more}\n"
    )


def add_model(root: Path, name: str, proto: Any, text: str, filename: str = "model.onnx") -> Path:
    """Write one model folder and return it."""
    models.save(proto, root / name / "1" / filename)
    (root / name / "config.pbtxt").write_text(text)
    return root / name


# A delay far above the time between a test's requests, so that they meet in one batch.
BATCHED = "dynamic_batching { max_queue_delay_microseconds: 300000 }"
SCALAR = "reshape { shape: [ ] }"


def small_repository(root: Path) -> Path:
    """One model, so that a server of it starts quickly."""
    wide = ([tensor("x", "FP32", "4")], [tensor("y", "FP32", "4")])
    add_model(root, "relu", models.relu(), config("relu", 8, *wide))
    return root


def full_repository(root: Path) -> Path:
    """Every kind of request; see the tests of the same names."""
    small_repository(root)
    wide = ([tensor("x", "FP32", "-1")], [tensor("y", "FP32", "-1")])
    add_model(root, "branching", models.branching(), config("branching", 16, *wide, BATCHED))
    row = ([tensor("row", "INT64", "1", SCALAR)], [tensor("value", "FP32", "2")])
    add_model(root, "lookup", lookup(), config("lookup", 16, *row, BATCHED))
    item = ([tensor("x", "FP32", "1", SCALAR)], [tensor("y", "FP32", "1", SCALAR)])
    add_model(root, "one_per_item", models.one_per_item(), config("one_per_item", 8, *item, BATCHED))
    scalar = ([tensor("x", "FP32", "-1, 4"), tensor("scale", "FP32", "1")], [tensor("y", "FP32", "-1, 4")])
    add_model(root, "scalar_input", models.scalar_input(), config("scalar_input", 0, *scalar))
    words = (
        [tensor("word", "STRING", "1")],
        [tensor("label", "INT64", "1"), tensor("echo", "STRING", "1")],
    )
    add_model(root, "strings", models.strings(), config("strings", 8, *words, BATCHED))
    two = (
        [tensor("a", "FP32", "3"), tensor("b", "FP32", "3")],
        [tensor("total", "FP32", "3"), tensor("best", "INT64", "1", SCALAR)],
    )
    # A file name of its own, and every parameter that the C++ backend reads.
    parameters = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in {
            "intra_op_thread_count": "1",
            "inter_op_thread_count": "1",
            "execution_mode": "1",
            "enable_mem_arena": "0",
            "enable_mem_pattern": "false",
        }.items()
    )
    named = (
        f'default_model_filename: "model.int8.onnx"\noptimization {{ graph {{ level: 2 }} }}\n{parameters}'
    )
    proto = models.two_in_two_out()
    add_model(root, "two_in_two_out", proto, config("two_in_two_out", 8, *two, named), "model.int8.onnx")
    half = ([tensor("x", "FP16", "4")], [tensor("y", "FP16", "3")])
    add_model(root, "half_precision", models.half_precision(), config("half_precision", 8, *half))
    steps = ([tensor("x", "FP32", "-1, -1, 4")], [tensor("y", "FP32", "-1, 4")])
    add_model(root, "batch_on_axis_1", models.batch_on_axis_1(), config("batch_on_axis_1", 0, *steps))
    # Says that it batches, and does not: [steps, batch, 4] → [batch, 4].
    wrong = ([tensor("x", "FP32", "-1, 4")], [tensor("y", "FP32", "4")])
    add_model(root, "not_batching", models.batch_on_axis_1(), config("not_batching", 8, *wrong))
    types = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP64")
    names = {each: "double" if each == "FP64" else each.lower() for each in types}
    every = (
        [tensor(names[each], each, "2") for each in types],
        [tensor(f"{names[each]}_out", each, "2") for each in types],
    )
    add_model(root, "many_types", many_types(), config("many_types", 4, *every))
    return root


def every_type_sample(batch: int) -> dict[str, Any]:
    """Inputs of `many_types` with the extreme values of each type."""
    sample: dict[str, Any] = {"bool": np.array([[True, False]] * batch)}
    for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"):
        limits = np.iinfo(name)
        sample[name] = np.array([[limits.min, limits.max]] * batch, name)
    sample["double"] = np.array([[np.finfo("float64").max, np.nan]] * batch)
    return sample
