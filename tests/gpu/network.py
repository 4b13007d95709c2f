"""The network of the GPU tests: made, built by TensorRT, and held against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.engines.tensorrt import TensorRTEngine
from tritongen.engines.tensorrt.profiles import Extent, Profile
from tritongen.engines.tensorrt.recipes import implicit_recipe, int8_recipes
from tritongen.precision.int8 import tensors_to_calibrate
from tritongen.runs.events import discard
from tritongen.runs.records import Artifact, Candidate, Options
from tritongen.spec import Precision

CHANNELS, SIZE, LARGEST = 64, 32, 8


def convolutional(path: Path) -> Path:
    """x [n, 64, 32, 32] → y [n, 10]: two residual blocks, a pool and a linear layer."""
    rng = np.random.default_rng(0)
    weights: list[onnx.TensorProto] = []

    def tensor(name: str, *shape: int) -> str:
        values = rng.normal(scale=float(np.sqrt(2 / np.prod(shape[1:]))), size=shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    nodes, x = [], "x"
    for i in range(2):
        nodes += [
            helper.make_node("Conv", [x, tensor(f"w{i}a", CHANNELS, CHANNELS, 3, 3)], [f"a{i}"], f"conv{i}a",
                             pads=[1] * 4),
            helper.make_node("Relu", [f"a{i}"], [f"ra{i}"], f"relu{i}a"),
            helper.make_node("Conv", [f"ra{i}", tensor(f"w{i}b", CHANNELS, CHANNELS, 3, 3)], [f"b{i}"],
                             f"conv{i}b", pads=[1] * 4),
            helper.make_node("Add", [f"b{i}", x], [f"s{i}"], f"add{i}"),
            helper.make_node("Relu", [f"s{i}"], [f"o{i}"], f"relu{i}"),
        ]  # fmt: skip
        x = f"o{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", tensor("wf", 10, CHANNELS)], ["y"], "linear", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def profile(low: int = 1, usual: int = LARGEST, high: int = LARGEST) -> Profile:
    shape = (CHANNELS, SIZE, SIZE)
    return {"x": Extent((low, *shape), (usual, *shape), (high, *shape))}


def sample(batch: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, CHANNELS, SIZE, SIZE)).astype(np.float32)


def observed_ranges(model: Path, implicit: bool) -> dict[str, tuple[float, float]]:
    recipe = implicit_recipe() if implicit else int8_recipes()[0]
    names = tensors_to_calibrate(model, recipe)
    proto = onnx.load(model)
    known = {value.name for value in proto.graph.input}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known and n != "y")
    probe = model.with_name("probe.onnx")
    onnx.save(proto, probe)
    with OnnxRuntimeRunner(probe) as runner:
        values = {**runner.infer({"x": sample(16, seed=1)}), "x": sample(16, seed=1)}
    return {name: (float(values[name].min()), float(values[name].max())) for name in names}


def built(
    engine: TensorRTEngine, model: Path, folder: Path, precision: Precision, **options: bool | int | str
) -> Artifact:
    shape = f"{CHANNELS}x{SIZE}x{SIZE}"
    chosen: Options = {"profiles": f"x=1x{shape}:{LARGEST}x{shape}:{LARGEST}x{shape}", **options}
    candidate = Candidate(id="c", engine="tensorrt", precision=precision, options=chosen)
    return engine.build(model, candidate, folder, discard)


def relative_error(model: Path, folder: Path, artifact: Artifact, engine: TensorRTEngine) -> float:
    with OnnxRuntimeRunner(model) as exact, engine.open(folder, artifact, {}) as runner:
        wanted = exact.infer({"x": sample(5)})["y"].astype(np.float64)
        found = runner.infer({"x": sample(5)})["y"].astype(np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
