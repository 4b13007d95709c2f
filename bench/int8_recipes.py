"""Which INT8 recipe is fast, and which is accurate, on this CPU's ONNX Runtime kernels?

    python bench/int8_recipes.py                    # every model that is there
    python bench/int8_recipes.py mlp cnn --batch 1 8

Per model, batch size and recipe: CPU time of one call on one thread (median over rounds in which all recipes
take turns, so that noise meets them alike; the thread's own CPU time, so that other processes matter little),
the speed-up over FP32, and the relative L2 error of the worst output. Ranges are chosen by MSE.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tritongen.autotune.calibrate import calibrate
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.errors import TritongenError
from tritongen.precision.int8 import quantize
from tritongen.precision.recipe import Int8Recipe

Floats = NDArray[np.float32]

WEIGHTED = ("Conv", "Gemm", "MatMul", "Relu", "Clip")
SHAPELESS = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice")
BETWEEN = ("Add", "Mul", "Concat", "Resize", "AveragePool", "GlobalAveragePool")
BASE = Int8Recipe(
    name="u8s8-7bit",
    operators=WEIGHTED,
    activation="uint8",
    symmetric_activations=False,
    reduce_range=True,
    quantize_outputs=True,
    float_outputs=("Gemm", "MatMul"),
    quantize_bias=True,
)
RECIPES = (
    BASE,
    replace(BASE, name="u8s8-7bit-wide", operators=(*WEIGHTED, *BETWEEN)),
    replace(BASE, name="u8s8-7bit-wide+shapes", operators=(*WEIGHTED, *BETWEEN, *SHAPELESS)),
    replace(BASE, name="u8s8-8bit", reduce_range=False),
    replace(BASE, name="u8s8-7bit-per-tensor", per_channel=False),
    replace(BASE, name="u8s8-7bit-all-outputs", float_outputs=()),
    replace(BASE, name="u8s8-7bit-no-depthwise", depthwise=False),
    replace(BASE, name="u8s8-7bit-16-channels", min_channels=16),
    replace(
        BASE, name="u8u8", weight="uint8", symmetric_weights=False, per_channel=False, reduce_range=False
    ),
    replace(BASE, name="s8s8", activation="int8", symmetric_activations=True, reduce_range=False),
    Int8Recipe(name="tensorrt-like", operators=(*WEIGHTED, "Add"), weights_as_pairs=True),
)
"""What the engine's choice (`tritongen.engines.onnxruntime.recipes`) was made from, and its neighbours."""


@dataclass(frozen=True)
class Case:
    """A model and typical inputs for it."""

    path: Path
    samples: Callable[[int], Floats]
    """count → inputs of that many items."""


class Samples:
    """A `samples.Dataset` of one float input."""

    synthetic = False
    labels = None

    def __init__(self, name: str, array: Floats) -> None:
        self._name = name
        self._array = array
        self.count = len(array)
        self.digest = f"{name}{array.shape}"

    def batches(self, size: int) -> Iterator[dict[str, NDArray[np.generic]]]:
        for start in range(0, self.count, size):
            yield {self._name: self._array[start : start + size]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", help="only these")
    parser.add_argument("models", nargs="*", help="some of: mlp, transformer, cnn, cls, rec, det")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=6.0, help="per model and batch size")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases(Path(folder)).items():
            if not arguments.models or name in arguments.models:
                for batch in arguments.batch:
                    recipes = [r for r in RECIPES if arguments.recipes is None or r.name in arguments.recipes]
                    measure(name, case, Path(folder) / name, recipes, batch=batch, seconds=arguments.seconds)


def measure(
    name: str, case: Case, folder: Path, recipes: list[Int8Recipe], *, batch: int, seconds: float
) -> None:
    """Print one model's rows at one batch size."""
    folder.mkdir(exist_ok=True)
    files: dict[str, Path] = {"fp32": case.path}
    input_name = onnx.load(case.path, load_external_data=False).graph.input[0].name
    data = Samples(input_name, case.samples(16))
    for recipe in recipes:
        out = folder / f"{recipe.name}.onnx"
        try:
            if not out.exists():
                ranges = calibrate(case.path, recipe, data, folder, model_digest=name, batch_size=4).by("mse")
                quantize(case.path, ranges, recipe, out)
            files[recipe.name] = out
        except TritongenError as error:
            print(f"{name}  {recipe.name}: {error}")
    held_out = case.samples(16 + batch)[16:]
    times, outputs = run_in_turns(files, {input_name: held_out}, seconds)
    print(f"\n{name}, batch {batch}: {len(times['fp32'])} rounds")
    print(f"  {'recipe':<26}{'median ms':>11}{'speed-up':>10}{'relative L2':>13}")
    base = statistics.median(times["fp32"])
    for recipe_name, values in times.items():
        median = statistics.median(values)
        error = max(relative_l2(outputs["fp32"][o], outputs[recipe_name][o]) for o in outputs["fp32"])
        print(f"  {recipe_name:<26}{median:>11.3f}{base / median:>10.2f}{error:>13.4f}", flush=True)


def run_in_turns(
    files: dict[str, Path], inputs: dict[str, NDArray[np.generic]], seconds: float
) -> tuple[dict[str, list[float]], dict[str, dict[str, NDArray[np.generic]]]]:
    """Milliseconds of CPU time by file, and each file's outputs."""
    runners = {name: OnnxRuntimeRunner(path, intra_op_threads=1).__enter__() for name, path in files.items()}
    outputs = {name: runner.infer(inputs) for name, runner in runners.items()}
    times: dict[str, list[float]] = {name: [] for name in files}
    for runner in runners.values():
        runner.prepare(inputs)
        runner.step()
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times["fp32"]) < 3:
        for name, runner in runners.items():
            started = time.thread_time_ns()
            runner.step()
            times[name].append((time.thread_time_ns() - started) / 1e6)
    return times, outputs


def relative_l2(expected: NDArray[np.generic], found: NDArray[np.generic]) -> float:
    """‖found - expected‖ ÷ ‖expected‖."""
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def cases(folder: Path) -> dict[str, Case]:
    """The models: three made here, and rapidocr's where it is installed."""
    found = {"mlp": mlp(folder), "transformer": transformer(folder), "cnn": cnn(folder)}
    package = find_spec("rapidocr")
    models = Path(package.origin).parent / "models" if package and package.origin else folder
    for name, pattern, height, width in (
        ("cls", "*cls*", 48, 192),
        ("rec", "*rec*", 48, 320),
        ("det", "*det*", 320, 320),
    ):
        for path in sorted(models.glob(f"{pattern}.onnx"))[:1]:
            found[name] = Case(path, lambda count, h=height, w=width: text_pictures(count, h, w))  # type: ignore[misc]
    return found


def text_pictures(count: int, height: int, width: int) -> Floats:
    """Pictures of words, as rapidocr's models take them: [count, 3, height, width] in -1 … 1."""
    import cv2

    random = np.random.default_rng(0)
    pictures = np.empty((count, 3, height, width), np.float32)
    for picture in pictures:
        paper = int(random.integers(170, 255))
        canvas = np.full((height, width, 3), paper, np.uint8)
        for line in range(max(1, height // 60)):
            word = "".join(
                random.choice(list("abcdefghijklmnopqrstuvwxyzABCDEFGHKLMNRT 0123456789"), width // 22)
            )
            ink = tuple(int(v) for v in random.integers(0, 90, 3))
            place = (int(random.integers(2, 12)), 34 + 58 * line)
            cv2.putText(
                canvas, word, place, int(random.integers(0, 5)), random.uniform(0.8, 1.2), ink, 2, cv2.LINE_AA
            )
        noisy = canvas + random.normal(0, 6, canvas.shape)
        picture[:] = np.clip(noisy, 0, 255).transpose(2, 0, 1) / 127.5 - 1
    return pictures


def normal_items(*shape: int) -> Callable[[int], Floats]:
    """Standard normal inputs of the given item shape."""
    return lambda count: np.random.default_rng(1).standard_normal((count, *shape)).astype(np.float32)


class Builder:
    """Just enough to write a network in a few lines; weights are seeded, He-scaled."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(2)

    def weight(self, *shape: int, fan_in: int) -> str:
        name = f"w{len(self.weights)}"
        values = self._random.standard_normal(shape) * np.sqrt(2 / fan_in)
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def constant(self, values: NDArray[np.generic]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def save(self, path: Path, item: list[int], result: str) -> Path:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *item])
        y = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, path.stem, [x], [y], self.weights)
        opset = [helper.make_opsetid("", 17)]
        onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        return path


def mlp(folder: Path) -> Case:
    """256 → 1024 → 1024 → 1024 → 16 with ReLU."""
    build, value = Builder(), "x"
    sizes = [256, 1024, 1024, 1024, 16]
    for rows, columns in pairwise(sizes):
        bias = build.constant(np.zeros(columns, np.float32))
        value = build.add("Gemm", value, build.weight(rows, columns, fan_in=rows), bias)
        value = build.add("Relu", value) if columns != sizes[-1] else value
    return Case(build.save(folder / "mlp.onnx", [256], value), normal_items(256))


def transformer(folder: Path) -> Case:
    """Two encoder blocks on 64 tokens of width 256: attention with one head, GELU, layer normalization."""
    build, value, width = Builder(), "x", 256
    for _ in range(2):
        query, key, v = (
            build.add("MatMul", value, build.weight(width, width, fan_in=2 * width)) for _ in range(3)
        )
        scores = build.add("MatMul", query, build.add("Transpose", key, perm=[0, 2, 1]))
        scaled = build.add("Div", scores, build.constant(np.float32(16.0)))
        mixed = build.add("MatMul", build.add("Softmax", scaled, axis=-1), v)
        value = normalized(build, build.add("Add", value, mixed), width)
        inner = build.add("MatMul", value, build.weight(width, 4 * width, fan_in=width))
        erf = build.add("Erf", build.add("Div", inner, build.constant(np.float32(np.sqrt(2)))))
        gate = build.add("Add", erf, build.constant(np.float32(1)))
        gelu = build.add("Mul", build.add("Mul", inner, gate), build.constant(np.float32(0.5)))
        outer = build.add("MatMul", gelu, build.weight(4 * width, width, fan_in=4 * width))
        value = normalized(build, build.add("Add", value, outer), width)
    return Case(build.save(folder / "transformer.onnx", [64, width], value), normal_items(64, width))


def normalized(build: Builder, value: str, width: int) -> str:
    """Layer normalization over the last axis."""
    ones, zeros = build.constant(np.ones(width, np.float32)), build.constant(np.zeros(width, np.float32))
    return build.add("LayerNormalization", value, ones, zeros, axis=-1)


def cnn(folder: Path) -> Case:
    """Eight 3 × 3 convolutions with residual additions on 32 × 32 pictures, 32 to 128 channels."""
    build, value, channels = Builder(), "x", 3
    for wide, stride in ((32, 1), (64, 2), (128, 2)):
        value = convolution(build, value, channels, wide, stride)
        inner = convolution(build, value, wide, wide, 1)
        value = build.add(
            "Relu", build.add("Add", value, convolution(build, inner, wide, wide, 1, relu=False))
        )
        channels = wide
    pooled = build.add("Flatten", build.add("GlobalAveragePool", value))
    logits = build.add("Gemm", pooled, build.weight(channels, 10, fan_in=channels))
    return Case(build.save(folder / "cnn.onnx", [3, 32, 32], logits), normal_items(3, 32, 32))


def convolution(
    build: Builder, value: str, rows: int, columns: int, stride: int, *, relu: bool = True
) -> str:
    """3 × 3, padded, with a bias."""
    weight = build.weight(columns, rows, 3, 3, fan_in=9 * rows)
    bias = build.constant(np.full(columns, 0.01, np.float32))
    value = build.add("Conv", value, weight, bias, pads=[1, 1, 1, 1], strides=[stride, stride])
    return build.add("Relu", value) if relu else value


if __name__ == "__main__":
    main()
