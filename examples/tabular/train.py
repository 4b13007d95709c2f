"""Train a wide MLP on scikit-learn's breast-cancer data and export it to ONNX, with its scaler folded in.

The thirty measurements of a cell are raw: an area of 4000 stands beside a smoothness of 0.1. The network was
trained on scaled inputs, and the scaler became part of its first layer, as exporters do. In FP32 that is
exact. In INT8 one scale must serve all thirty, and most round to zero: see docs/accuracy-int8-cases.md.

Writes into --out: cells.onnx, calibration.npz, validation.npz (with labels that training never saw).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WIDTH = 512
HELD_OUT = 200
SEED = 0

Floats = NDArray[np.float32]


def train(inputs: Floats, labels: NDArray[np.int64]) -> list[tuple[Floats, Floats]]:
    """(weight, bias) of each layer, for unscaled inputs."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(inputs)
    network = MLPClassifier((WIDTH, WIDTH), alpha=1.0, tol=1e-3, n_iter_no_change=3, random_state=SEED)
    network.fit(scaler.transform(inputs), labels)
    layers = list(zip(network.coefs_, network.intercepts_, strict=True))
    # W (x − mean) / scale + b = (W / scale) x + (b − W mean / scale)
    weight, bias = layers[0]
    folded = weight / scaler.scale_[:, None]
    layers[0] = (folded, bias - scaler.mean_ @ folded)
    return [(w.astype(np.float32), b.astype(np.float32)) for w, b in layers]


def to_onnx(layers: list[tuple[Floats, Floats]]) -> Any:
    """cells [batch, 30] → malignant [batch, 2]: the scores of "no" and "yes" (opset 17, IR 8)."""
    # scikit-learn gives one score, positive for class 1; two scores make it a top-1 task.
    weight, bias = layers[-1]
    layers = [*layers[:-1], (np.hstack([-weight, weight]) / 2, np.hstack([-bias, bias]) / 2)]
    nodes, arrays, source = [], {}, "cells"
    for i, (weight, bias) in enumerate(layers):
        arrays[f"weight{i}"], arrays[f"bias{i}"] = weight, bias
        last = i == len(layers) - 1
        scores = "malignant" if last else f"dense{i}"
        nodes.append(helper.make_node("Gemm", [source, f"weight{i}", f"bias{i}"], [scores], name=f"dense{i}"))
        if not last:
            nodes.append(helper.make_node("Relu", [scores], [f"relu{i}"], name=f"relu{i}"))
            source = f"relu{i}"
    graph = helper.make_graph(
        nodes,
        "cells",
        [helper.make_tensor_value_info("cells", TensorProto.FLOAT, ["batch", len(layers[0][0])])],
        [helper.make_tensor_value_info("malignant", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> int:
    """Train, export, and write the data beside the model."""
    from sklearn.datasets import load_breast_cancer

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    data = load_breast_cancer()
    inputs, labels = data.data.astype(np.float32), (data.target == 0).astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(inputs))
    held_out, training = order[:HELD_OUT], order[HELD_OUT:]
    onnx.save(to_onnx(train(inputs[training], labels[training])), out / "cells.onnx")
    np.savez(out / "calibration.npz", cells=inputs[training])
    np.savez(out / "validation.npz", cells=inputs[held_out], labels=labels[held_out])
    print(f"  wrote {out / 'cells.onnx'}, trained on {len(training)} cells; {HELD_OUT} held out")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
