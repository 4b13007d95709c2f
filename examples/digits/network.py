"""A small convolutional network in NumPy: forward, backward, Adam, and its export to ONNX.

Activations are [items, height, width, channels]; a convolution is 3×3, padded by 1, followed by ReLU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SIDE = 3
"""Width of a convolution's window."""


@dataclass
class Convolution:
    """3×3 convolution, stride 1 or 2, then ReLU; `weight` is [9 × channels in, channels out]."""

    weight: Floats
    bias: Floats
    stride: int = 1
    _columns: Floats = field(init=False, repr=False)
    _output: Floats = field(init=False, repr=False)
    _padded: tuple[int, ...] = field(init=False, repr=False)

    def forward(self, x: Floats) -> Floats:
        """[n, h, w, c] → [n, h/stride, w/stride, channels out]."""
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        n, h, w, c = x.shape
        rows, cols = h // self.stride, w // self.stride
        windows = np.empty((n, rows, cols, SIDE * SIDE, c), np.float32)
        for i, patch in enumerate(self._patches(padded, rows, cols)):
            windows[:, :, :, i] = patch
        self._padded = padded.shape
        self._columns = windows.reshape(-1, SIDE * SIDE * c)
        product = self._columns @ self.weight
        product += self.bias
        self._output = np.maximum(product, 0, out=product).reshape(n, rows, cols, -1)
        return self._output

    def backward(self, gradient: Floats) -> tuple[Floats, list[Floats]]:
        """Gradient of the output → gradient of the input, and of (weight, bias)."""
        flat = (gradient * (self._output > 0)).reshape(-1, gradient.shape[-1])
        n, rows, cols, _ = gradient.shape
        back = (flat @ self.weight.T).reshape(n, rows, cols, SIDE * SIDE, -1)
        padded = np.zeros(self._padded, np.float32)
        for i, patch in enumerate(self._patches(padded, rows, cols)):
            patch[...] += back[:, :, :, i]
        return padded[:, 1:-1, 1:-1], [self._columns.T @ flat, flat.sum(axis=0)]

    def _patches(self, padded: Floats, rows: int, cols: int) -> Iterator[Floats]:
        """The nine views that a window's positions see, in the order of `weight`'s rows."""
        step = self.stride
        for i in range(SIDE):
            for j in range(SIDE):
                yield padded[:, i : i + step * rows : step, j : j + step * cols : step]


@dataclass
class Network:
    """Convolutions, and one linear layer from all that is left of the image to the class scores."""

    convolutions: list[Convolution]
    weight: Floats
    bias: Floats

    @classmethod
    def create(
        cls, side: int, layers: list[tuple[int, int]], classes: int, rng: np.random.Generator
    ) -> Network:
        """He-initialised, for images of side × side; `layers` are (channels out, stride)."""
        convolutions, channels = [], 1
        for width, stride in layers:
            fan_in = SIDE * SIDE * channels
            drawn = rng.standard_normal((fan_in, width)) * np.sqrt(2 / fan_in)
            convolutions.append(Convolution(drawn.astype(np.float32), np.zeros(width, np.float32), stride))
            channels, side = width, side // stride
        features = side * side * channels
        drawn = rng.standard_normal((features, classes)) / np.sqrt(features)
        return cls(convolutions, drawn.astype(np.float32), np.zeros(classes, np.float32))

    def parameters(self) -> list[Floats]:
        """Every array that training changes, in the order of `gradients`."""
        arrays = [array for layer in self.convolutions for array in (layer.weight, layer.bias)]
        return [*arrays, self.weight, self.bias]

    def scores(self, images: Floats) -> Floats:
        """[n, h, w, 1] → [n, classes]."""
        x = images
        for layer in self.convolutions:
            x = layer.forward(x)
        self._features = x
        return x.reshape(len(x), -1) @ self.weight + self.bias

    def gradients(self, images: Floats, labels: NDArray[np.int64]) -> tuple[float, list[Floats]]:
        """The mean cross-entropy over a batch and its gradient for each of `parameters`."""
        scores = self.scores(images)
        scores -= scores.max(axis=1, keepdims=True)
        chances = np.exp(scores)
        chances /= chances.sum(axis=1, keepdims=True)
        rows = np.arange(len(labels))
        loss = float(-np.log(chances[rows, labels] + 1e-9).mean())
        chances[rows, labels] -= 1
        chances /= len(labels)
        found = [self._features.reshape(len(labels), -1).T @ chances, chances.sum(axis=0)]
        gradient = (chances @ self.weight.T).reshape(self._features.shape)
        for layer in reversed(self.convolutions):
            gradient, own = layer.backward(gradient)
            found = own + found
        return loss, found


@dataclass
class Adam:
    """Adam (Kingma & Ba, 2015) over a list of arrays, changed in place."""

    parameters: list[Floats]
    _step: int = 0

    def __post_init__(self) -> None:
        self._mean = [np.zeros_like(array) for array in self.parameters]
        self._square = [np.zeros_like(array) for array in self.parameters]

    def update(self, gradients: list[Floats], rate: float) -> None:
        """One step against `gradients`."""
        self._step += 1
        scale = rate * np.sqrt(1 - 0.999**self._step) / (1 - 0.9**self._step)
        for array, gradient, mean, square in zip(
            self.parameters, gradients, self._mean, self._square, strict=True
        ):
            mean[...] += 0.1 * (gradient - mean)
            square[...] += 0.001 * (gradient * gradient - square)
            array[...] -= np.float32(scale) * mean / (np.sqrt(square) + np.float32(1e-8))


def to_onnx(network: Network, side: int) -> Any:
    """The ONNX model: images [batch, 1, side, side] → scores [batch, classes] (opset 17, IR 8)."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, arrays, source, channels = [], {}, "images", 1
    for i, layer in enumerate(network.convolutions):
        # Our windows are (row, column, channel); ONNX wants [out, in, row, column].
        kernel = layer.weight.reshape(SIDE, SIDE, channels, -1).transpose(3, 2, 0, 1)
        arrays[f"conv{i}.weight"] = np.ascontiguousarray(kernel)
        arrays[f"conv{i}.bias"] = layer.bias
        # Ours starts its windows at the upper left padding, also with stride 2.
        pads = [1, 1, 1, 1] if layer.stride == 1 else [1, 1, 0, 0]
        nodes += [
            helper.make_node(
                "Conv",
                [source, f"conv{i}.weight", f"conv{i}.bias"],
                [f"conv{i}"],
                name=f"conv{i}",
                kernel_shape=[SIDE, SIDE],
                strides=[layer.stride] * 2,
                pads=pads,
            ),
            helper.make_node("Relu", [f"conv{i}"], [f"relu{i}"], name=f"relu{i}"),
        ]
        source, channels = f"relu{i}", layer.weight.shape[1]
    rows = int(np.sqrt(len(network.weight) // channels))
    head = network.weight.reshape(rows, rows, channels, -1).transpose(2, 0, 1, 3)
    arrays["head.weight"] = np.ascontiguousarray(head.reshape(network.weight.shape))
    arrays["head.bias"] = network.bias
    nodes += [
        helper.make_node("Flatten", [source], ["features"], name="flatten"),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["scores"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, side, side])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(network.bias)])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
