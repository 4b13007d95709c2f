"""A BERT encoder (Devlin et al. 2018) as ONNX with random weights; Large by default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY = 30522


class _Builder:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def tensor(self, name: str, *shape: int) -> str:
        values = self.rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        return self.constant(name, values)

    def node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        product = self.node("MatMul", [x, self.tensor(f"{name}.w", inputs, outputs)], f"{name}.product")
        return self.node("Add", [product, self.tensor(f"{name}.b", outputs)], name)

    def norm(self, x: str, name: str, width: int) -> str:
        scale = self.constant(f"{name}.scale", np.ones(width, np.float32))
        bias = self.constant(f"{name}.bias", np.zeros(width, np.float32))
        return self.node("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=1e-12)

    def heads(self, x: str, name: str, order: list[int]) -> str:
        split = self.node("Reshape", [x, "to_heads"], f"{name}.split")
        return self.node("Transpose", [split], f"{name}.heads", perm=order)

    def attention(self, x: str, mask: str, name: str, width: int) -> str:
        q = self.heads(self.linear(x, f"{name}.q", width, width), f"{name}.q", [0, 2, 1, 3])
        k = self.heads(self.linear(x, f"{name}.k", width, width), f"{name}.k", [0, 2, 3, 1])
        v = self.heads(self.linear(x, f"{name}.v", width, width), f"{name}.v", [0, 2, 1, 3])
        scores = self.node("Div", [self.node("MatMul", [q, k], f"{name}.qk"), "root"], f"{name}.scaled")
        weights = self.node("Softmax", [self.node("Add", [scores, mask], f"{name}.masked")], f"{name}.p")
        mixed = self.node("Transpose", [self.node("MatMul", [weights, v], f"{name}.pv")], f"{name}.t",
                          perm=[0, 2, 1, 3])  # fmt: skip
        merged = self.node("Reshape", [mixed, "from_heads"], f"{name}.merged")
        return self.linear(merged, f"{name}.o", width, width)

    def gelu(self, x: str, name: str) -> str:
        erf = self.node("Erf", [self.node("Div", [x, "root2"], f"{name}.scaled")], f"{name}.erf")
        half = self.node("Mul", [x, "half"], f"{name}.half")
        return self.node("Mul", [half, self.node("Add", [erf, "one"], f"{name}.plus1")], name)

    def layer(self, x: str, mask: str, name: str, width: int) -> str:
        attended = self.attention(x, mask, f"{name}.attention", width)
        x = self.norm(self.node("Add", [attended, x], f"{name}.sum1"), f"{name}.norm1", width)
        inner = self.gelu(self.linear(x, f"{name}.in", width, 4 * width), f"{name}.gelu")
        out = self.linear(inner, f"{name}.out", 4 * width, width)
        return self.norm(self.node("Add", [out, x], f"{name}.sum2"), f"{name}.norm2", width)


def bert(layers: int = 24, width: int = 1024, sequence: int = 128, seed: int = 0) -> onnx.ModelProto:
    """input_ids, attention_mask [n, sequence] → last_hidden_state [n, sequence, width], opset 17."""
    b, heads = _Builder(seed), width // 64
    for name, value in (("root", 8.0), ("root2", np.sqrt(2.0)), ("half", 0.5), ("one", 1.0),
                        ("lowest", -10000.0)):  # fmt: skip
        b.constant(name, np.array(value, np.float32))
    b.constant("to_heads", np.array([0, sequence, heads, 64], np.int64))
    b.constant("from_heads", np.array([0, sequence, width], np.int64))
    b.constant("axes", np.array([1, 2], np.int64))
    mask = b.node("Unsqueeze", ["attention_mask", "axes"], "mask4")
    mask = b.node("Cast", [mask], "mask_float", to=TensorProto.FLOAT)
    mask = b.node("Mul", [b.node("Sub", ["one", mask], "inverted"), "lowest"], "mask")
    words = b.node("Gather", [b.tensor("words", VOCABULARY, width), "input_ids"], "embedded")
    x = b.node("Add", [words, b.tensor("positions", 1, sequence, width)], "positioned")
    x = b.norm(x, "embedding_norm", width)
    for index in range(layers):
        x = b.layer(x, mask, f"layer{index}", width)
    b.node("Identity", [x], "last_hidden_state")
    dims = ["n", sequence]
    graph = helper.make_graph(
        b.nodes,
        "bert",
        [helper.make_tensor_value_info(n, TensorProto.INT64, dims) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["n", sequence, width])],
        b.weights,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def write(path: Path, **shape: int) -> Path:
    """Write the model to `path` unless it is there."""
    if not path.exists():
        onnx.save(bert(**shape), path)
    return path
