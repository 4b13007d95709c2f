"""Tiny real ONNX models, made in code: one for each property that a model can have."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str | None]
"""A tensor's shape: sizes, symbolic names, or None for a nameless dynamic axis."""

IR_VERSION = 8
OPSET = 17


def value(name: str, dims: Dims, dtype: int = TensorProto.FLOAT) -> Any:
    """A graph input or output."""
    return helper.make_tensor_value_info(name, dtype, list(dims))


def weights(name: str, shape: Sequence[int], *, seed: int = 0, dtype: str = "float32") -> Any:
    """A seeded initializer, scaled so that outputs stay near 1."""
    fan_in = max(1, int(np.prod(shape[1:] if len(shape) == 4 else shape[:1])))
    drawn = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(fan_in)
    return numpy_helper.from_array(drawn.astype(dtype), name)


def ints(name: str, *values: int) -> Any:
    """A 1-D int64 initializer."""
    return numpy_helper.from_array(np.asarray(values, np.int64), name)


def model(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    initializers: Sequence[Any] = (),
    *,
    opset: int = OPSET,
    ir_version: int = IR_VERSION,
    domains: dict[str, int] | None = None,
) -> Any:
    """A ModelProto with an explicit opset and IR version."""
    graph = helper.make_graph(list(nodes), "tiny", list(inputs), list(outputs), list(initializers))
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="tests")


def save(proto: Any, path: Path, *, external: bool = False) -> Path:
    """Write the model, its weights in `<name>.data` beside it if `external`, and return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if external:
        onnx.save_model(
            proto, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0
        )
    else:
        onnx.save_model(proto, path)
    return path


def relu(batch: str | int | None = "batch", width: int = 4) -> Any:
    """x [batch, width] → y = relu(x)."""
    node = helper.make_node("Relu", ["x"], ["y"])
    return model([node], [value("x", [batch, width])], [value("y", [batch, width])])


def expanded(width: int) -> Any:
    """One number, `width` times: an answer far larger than its question."""
    nodes = [helper.make_node("Expand", ["x", "width"], ["y"])]
    return model(nodes, [value("x", [1])], [value("y", [width])], [ints("width", width)])


def linear(batch: str | int | None = "batch", inputs: int = 4, outputs: int = 3, *, seed: int = 0) -> Any:
    """x [batch, inputs] → y [batch, outputs] = x W + b."""
    return model(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        [value("x", [batch, inputs])],
        [value("y", [batch, outputs])],
        [weights("w", (inputs, outputs), seed=seed), weights("b", (outputs,), seed=seed + 1)],
    )


def static_batch(batch: int = 2) -> Any:
    """A linear layer whose batch size is fixed: `max_batch_size` must be 0."""
    return linear(batch=batch)


def one_per_item() -> Any:
    """x [N] → y [N] = 2 x: one number per item, which Triton needs a reshape for."""
    two = numpy_helper.from_array(np.asarray([2.0], np.float32), "two")
    node = helper.make_node("Mul", ["x", "two"], ["y"])
    return model([node], [value("x", ["N"])], [value("y", ["N"])], [two])


def scalar_input() -> Any:
    """x [batch, 4] and a rank-0 scale → y = scale · x: the scalar rules batching out."""
    node = helper.make_node("Mul", ["x", "scale"], ["y"])
    return model([node], [value("x", ["batch", 4]), value("scale", [])], [value("y", ["batch", 4])])


def two_in_two_out() -> Any:
    """a, b [batch, 3] → total [n, 3], best [m] (int64); the symbolic names differ, as in real exports."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["total"]),
        helper.make_node("ArgMax", ["total"], ["best"], axis=1, keepdims=0),
    ]
    return model(
        nodes,
        [value("a", ["batch", 3]), value("b", ["batch_size", 3])],
        [value("total", ["n", 3]), value("best", ["m"], TensorProto.INT64)],
    )


def identity(dtype: int, batch: str | int | None = "batch", width: int = 3) -> Any:
    """x [batch, width] → y = x, of any element type."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return model([node], [value("x", [batch, width], dtype)], [value("y", [batch, width], dtype)])


def strings() -> Any:
    """word [batch, 1] (string) → label [batch, 1] (int64: cat 1, dog 2, else 0) and the word itself."""
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["word"],
            ["label"],
            domain="ai.onnx.ml",
            keys_strings=["cat", "dog"],
            values_int64s=[1, 2],
            default_int64=0,
        ),
        helper.make_node("Identity", ["word"], ["echo"]),
    ]
    return model(
        nodes,
        [value("word", ["batch", 1], TensorProto.STRING)],
        [value("label", ["batch", 1], TensorProto.INT64), value("echo", ["batch", 1], TensorProto.STRING)],
        domains={"ai.onnx.ml": 2},
    )


def tokens(vocabulary: int = 50, width: int = 8, *, length: str | int = "length") -> Any:
    """ids [batch, length] (int64, 0 … vocabulary−1) → scores [batch, 2]; a Gather tells the range."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"], axis=0),
        helper.make_node("ReduceMean", ["embedded"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["pooled", "w"], ["scores"]),
    ]
    return model(
        nodes,
        [value("ids", ["batch", length], TensorProto.INT64)],
        [value("scores", ["batch", 2])],
        [weights("table", (vocabulary, width)), weights("w", (width, 2), seed=1)],
    )


def branching() -> Any:
    """x [batch, width] → y = 2 x if width > 2 else −x, by an If whose branches use the outer x."""

    def branch(name: str, operator: str, inputs: list[str], initializers: Sequence[Any] = ()) -> Any:
        out = f"{name}_out"
        node = helper.make_node(operator, inputs, [out])
        return helper.make_graph([node], name, [], [value(out, ["batch", "width"])], list(initializers))

    two = numpy_helper.from_array(np.float32(2.0), "factor")
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["width"], axis=0),
        helper.make_node("Greater", ["width", "limit"], ["wide"]),
        helper.make_node(
            "If",
            ["wide"],
            ["y"],
            then_branch=branch("then", "Mul", ["x", "factor"], [two]),
            else_branch=branch("else", "Neg", ["x"]),
        ),
    ]
    constants = [
        numpy_helper.from_array(np.int64(1), "one"),
        numpy_helper.from_array(np.int64(2), "limit"),
    ]
    return model(nodes, [value("x", ["batch", "width"])], [value("y", ["batch", "width"])], constants)


def looping(times: int = 3) -> Any:
    """x [batch, 4] → y = x · 2^times, by a Loop whose body carries x."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["carried", "carried"], ["doubled"]),
            helper.make_node("Identity", ["going"], ["still_going"]),
        ],
        "body",
        [
            value("step", [], TensorProto.INT64),
            value("going", [], TensorProto.BOOL),
            value("carried", [None, 4]),
        ],
        [value("still_going", [], TensorProto.BOOL), value("doubled", [None, 4])],
    )
    node = helper.make_node("Loop", ["times", "start", "x"], ["y"], body=body)
    constants = [
        numpy_helper.from_array(np.int64(times), "times"),
        numpy_helper.from_array(np.bool_(True), "start"),  # noqa: FBT003
    ]
    return model([node], [value("x", ["batch", 4])], [value("y", ["batch", 4])], constants)


def batch_on_axis_1() -> Any:
    """x [steps, batch, 4] → y [batch, 4] = mean over steps: axis 0 is not the batch."""
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=0)
    return model([node], [value("x", ["steps", "batch", 4])], [value("y", ["batch", 4])])


def mixes_batch() -> Any:
    """x [batch, 4] → y = x − mean over the batch: batch 3 is not three times batch 1."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    return model(nodes, [value("x", ["batch", 4])], [value("y", ["batch", 4])])


def half_precision() -> Any:
    """x [batch, 4] (float16) → y [batch, 3] (float16), with FP16 weights."""
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", ["batch", 4], TensorProto.FLOAT16)],
        [value("y", ["batch", 3], TensorProto.FLOAT16)],
        [weights("w", (4, 3), dtype="float16")],
    )


def convolutional(
    channels: Sequence[int] = (3, 8, 8), size: int | str = 8, classes: int = 4, *, seed: int = 0
) -> Any:
    """images [batch, C, size, size] → scores [batch, classes]: 3×3 convolutions, ReLU, global mean, Gemm."""
    nodes, initializers, source = [], [], "images"
    for i, (before, after) in enumerate(pairwise(channels)):
        initializers.append(weights(f"w{i}", (after, before, 3, 3), seed=seed + i))
        nodes.append(helper.make_node("Conv", [source, f"w{i}"], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        source = f"r{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [source], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["scores"]),
    ]
    initializers += [weights("w", (channels[-1], classes), seed=seed + 90), weights("b", (classes,))]
    sides = (size, size) if isinstance(size, int) else ("height", "width")
    return model(
        nodes,
        [value("images", ["batch", channels[0], *sides])],
        [value("scores", ["batch", classes])],
        initializers,
    )


def quantized() -> Any:
    """x [batch, 4] → y = relu of x after a uint8 Q/DQ pair: it is quantized already."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("Relu", ["dq"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.float32(0.02), "scale"),
        numpy_helper.from_array(np.uint8(128), "zero"),
    ]
    return model(nodes, [value("x", ["batch", 4])], [value("y", ["batch", 4])], constants)


def recurrent(hidden: int = 5) -> Any:
    """x [steps, batch, 3] → y [steps, 1, batch, hidden]: an LSTM with its batch on axis 1."""
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=hidden)
    return model(
        [node],
        [value("x", ["steps", "batch", 3])],
        [value("y", ["steps", 1, "batch", hidden])],
        [weights("w", (1, 4 * hidden, 3)), weights("r", (1, 4 * hidden, hidden), seed=1)],
    )


def unknown_operator() -> Any:
    """A graph with an operator that no runtime has."""
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="example.invalid")
    return model(
        [node], [value("x", ["batch", 4])], [value("y", ["batch", 4])], domains={"example.invalid": 1}
    )


def sequence_output() -> Any:
    """x [batch, 4] → a *sequence* of tensors, which Triton cannot carry."""
    node = helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1)
    part = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    out = helper.make_value_info("parts", helper.make_sequence_type_proto(part))
    return model([node], [value("x", ["batch", 4])], [out])


def memory_hungry(gigabytes: int = 4096) -> Any:
    """x [batch, 4] → y, by way of a tensor far larger than any memory: running it fails or is killed."""
    nodes = [
        helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    huge = ints("huge_base", gigabytes, 1 << 28)  # × 4 bytes
    # The size hangs on the input, so that no optimizer can fold it at load time.
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Div", ["shape", "shape"], ["ones"]),
        helper.make_node("Mul", ["huge_base", "ones"], ["huge"]),
        *nodes,
    ]
    return model(nodes, [value("x", ["batch", 4])], [value("y", ["batch", 4])], [huge])


SERVABLE: dict[str, Any] = {
    "relu": relu,
    "linear": linear,
    "static_batch": static_batch,
    "one_per_item": one_per_item,
    "scalar_input": scalar_input,
    "two_in_two_out": two_in_two_out,
    "strings": strings,
    "tokens": tokens,
    "branching": branching,
    "looping": looping,
    "batch_on_axis_1": batch_on_axis_1,
    "mixes_batch": mixes_batch,
    "half_precision": half_precision,
    "convolutional": convolutional,
    "quantized": quantized,
    "recurrent": recurrent,
}
"""Everything that can be served, by name; each is called without arguments."""

BATCHING = (
    "relu",
    "linear",
    "one_per_item",
    "two_in_two_out",
    "strings",
    "tokens",
    "branching",
    "looping",
    "half_precision",
    "convolutional",
    "quantized",
)
"""Those of SERVABLE whose axis 0 truly is the batch."""


def hostile_to_int8(width: int = 512, ruined: int = 2, layers: int = 4) -> Any:
    """x [n, width] → y through linear layers; before one of them channels differ by a factor of 10,000."""
    rng = np.random.default_rng(0)
    spread = np.exp(rng.uniform(0, np.log(1e4), width)).astype(np.float32)
    nodes, constants, x = [], [numpy_helper.from_array(spread, "spread")], "x"
    for i in range(layers):
        matrix = rng.normal(scale=(2 / width) ** 0.5, size=(width, width)).astype(np.float32)
        if i == ruined:
            nodes.append(helper.make_node("Mul", [x, "spread"], ["spread_out"], "mul"))
            matrix, x = matrix / spread[:, None], "spread_out"
        constants.append(numpy_helper.from_array(matrix, f"w{i}"))
        last = i == layers - 1
        nodes.append(helper.make_node("MatMul", [x, f"w{i}"], ["y" if last else f"m{i}"], f"matmul{i}"))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"], f"relu{i}"))
        x = f"r{i}"
    return model(nodes, [value("x", ["n", width])], [value("y", ["n", width])], constants)
