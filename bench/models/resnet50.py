"""ResNet-50 (He et al. 2015; stride on the 3×3 convolution) as ONNX, batch normalization already folded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
"""(inner channels, blocks) of each stage; blocks put out four times as many channels."""


class _Builder:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def tensor(self, name: str, shape: tuple[int, ...], deviation: float) -> str:
        values = self.rng.normal(scale=deviation, size=shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x: str, name: str, channels: tuple[int, int], size: int, stride: int = 1) -> str:
        inputs, outputs = channels
        # He initialization, and small enough on the last convolution of a block that sums do not explode.
        scale = 0.3 if name.endswith("c3") else 1.0
        deviation = scale * np.sqrt(2.0 / (inputs * size * size))
        w = self.tensor(f"{name}.w", (outputs, inputs, size, size), deviation)
        b = self.tensor(f"{name}.b", (outputs,), 0.05)
        return self.node(
            "Conv", [x, w, b], name, kernel_shape=[size, size], strides=[stride, stride], pads=[size // 2] * 4
        )

    def block(self, x: str, name: str, inputs: int, inner: int, stride: int) -> str:
        y = self.node("Relu", [self.conv(x, f"{name}.c1", (inputs, inner), 1)], f"{name}.r1")
        y = self.node("Relu", [self.conv(y, f"{name}.c2", (inner, inner), 3, stride)], f"{name}.r2")
        y = self.conv(y, f"{name}.c3", (inner, 4 * inner), 1)
        if inputs != 4 * inner:
            x = self.conv(x, f"{name}.down", (inputs, 4 * inner), 1, stride)
        return self.node("Relu", [self.node("Add", [y, x], f"{name}.add")], f"{name}.out")


def resnet50(seed: int = 0, size: int = 224) -> onnx.ModelProto:
    """images [n, 3, size, size] → logits [n, 1000], opset 13."""
    b = _Builder(seed)
    x = b.node("Relu", [b.conv("images", "stem", (3, 64), 7, 2)], "stem.relu")
    x = b.node("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, (inner, blocks) in enumerate(STAGES):
        for index in range(blocks):
            x = b.block(x, f"s{stage}b{index}", channels, inner, 2 if stage and not index else 1)
            channels = 4 * inner
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "gap")], "flat")
    w = b.tensor("fc.w", (channels, 1000), 0.02)
    b.node("Gemm", [x, w, b.tensor("fc.b", (1000,), 0.02)], "logits")
    graph = helper.make_graph(
        b.nodes,
        "resnet50",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1000])],
        b.weights,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])


def write(path: Path) -> Path:
    """Write the model to `path` unless it is there."""
    if not path.exists():
        onnx.save(resnet50(), path)
    return path
