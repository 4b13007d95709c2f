"""What the TensorRT benches share: models, candidates, builds that resume, measurements, results as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.models import bert, resnet50
from tritongen.autotune.calibrate import calibrate
from tritongen.autotune.holding import Built, build_holding
from tritongen.autotune.machine import current_machine
from tritongen.engines.tensorrt import api, building, cuda, inspection
from tritongen.engines.tensorrt.profiles import Extent, Profile, to_text
from tritongen.engines.tensorrt.recipes import implicit_recipe, int8_recipes, shared_recipe
from tritongen.engines.tensorrt.runner import TensorRTRunner
from tritongen.files import write_text
from tritongen.precision.int8 import quantize, write_ranges
from tritongen.spec import Precision

BATCHES = (1, 8, 64)
BUILDING = 0.8
"""Of a script's budget; the rest is for measuring what was built."""
ITEM = {
    "resnet50": {"images": (3, 224, 224)},
    "yolov8n": {"images": (3, 320, 320)},
    "detector": {"x": (3, 320, 320)},
    "recogniser": {"x": (3, 48, 320)},
    "bert-large": {"input_ids": (128,), "attention_mask": (128,)},
}
RECIPES = {
    # What onnxruntime.quantization's static quantization amounts to, with TensorRT's constraints.
    "naive": replace(int8_recipes()[0], name="naive", fused_adds=False, min_channels=16),
    "residual": int8_recipes()[0],
    # The first convolution has three input channels; NVIDIA's own recipe leaves such ones out.
    "residual16": replace(int8_recipes()[0], name="residual16", min_channels=16),
    "shared": shared_recipe(),
    "mixed": int8_recipes()[0],
    "implicit": implicit_recipe(),
}


@dataclass(frozen=True)
class Variant:
    """One candidate: precision, where its INT8 comes from, and builder settings."""

    precision: Precision
    tf32: bool = True
    recipe: str | None = None
    method: str = "minmax"
    calibrator: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    profiles: tuple[int, ...] = (64,)
    """Batch sizes that profiles are tuned for; one alone: a profile of 1 … that size."""


def recipe_variants(method: str = "minmax") -> dict[str, Variant]:
    """The ladder from FP32 without TF32 to INT8 by each placement."""
    int8 = Variant(Precision.INT8, method=method)
    return {
        "fp32": Variant(Precision.FP32, tf32=False),
        "tf32": Variant(Precision.FP32),
        "fp16": Variant(Precision.FP16),
        "int8-implicit": replace(int8, recipe="implicit"),
        "int8-calibrator": replace(int8, calibrator=True),
        "int8-naive": replace(int8, recipe="naive"),
        "int8-residual16": replace(int8, recipe="residual16"),
        "int8-residual": replace(int8, recipe="residual"),
        "int8-shared": replace(int8, recipe="shared"),
    }


@dataclass
class Images:
    """A calibration `Dataset` of arrays in memory."""

    arrays: Mapping[str, np.ndarray]
    synthetic: bool = True
    labels: None = None

    @property
    def count(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def digest(self) -> str:
        return f"bench-{self.count}"

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, self.count, size):
            yield {name: array[start : start + size] for name, array in self.arrays.items()}


def inputs(model: str, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs: normal for ResNet-50, pixels for YOLOv8n, tokens for BERT."""
    rng = np.random.default_rng(seed)
    if model == "bert-large":
        ids = rng.integers(0, bert.VOCABULARY, (batch, 128))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    ((name, item),) = ITEM[model].items()
    if model == "yolov8n":
        return {name: rng.random((batch, *item), dtype=np.float32)}
    return {name: rng.standard_normal((batch, *item), dtype=np.float32)}


def pictures(model: str, work: Path, part: str) -> dict[str, np.ndarray]:
    """`calibration` or `validation` of WORK/MODEL.images.npz, uint8, scaled as the model wants its pixels."""
    ((name, _),) = ITEM[model].items()
    with np.load(work / f"{model}.images.npz") as stored:
        pixels = stored[part].astype(np.float32) / 255
    return {name: pixels if model == "yolov8n" else (pixels - 0.5) / 0.5}


def calibration_inputs(model: str, work: Path) -> dict[str, np.ndarray]:
    """Pictures where there are some, else random."""
    if (work / f"{model}.images.npz").exists():
        return pictures(model, work, "calibration")
    return inputs(model, 16, seed=1)


def source(model: str, work: Path, given: Path | None = None) -> Path:
    """The FP32 ONNX file, made in code, or folded from the one given (YOLOv8n) or installed (rapidocr's)."""
    path = work / f"{model}.onnx"
    if path.exists():
        return path
    if model == "resnet50":
        return resnet50.write(path)
    if model == "bert-large":
        return bert.write(path)
    from tritongen.precision.fixed_shapes import fix_shapes

    if model in ("detector", "recogniser"):
        from int8_ranges import rapidocr

        given = rapidocr("*det*.onnx" if model == "detector" else "*rec*.onnx")
    if given is None:
        raise SystemExit("--yolo: where is nudenet's 320n.onnx?")
    return fix_shapes(given, ITEM[model], path)


def rewritten(model: str, variant: Variant, work: Path, held: Collection[str] = ()) -> Path:
    """The ONNX file that a variant is built from, with Q/DQ nodes or with a ranges file beside it.

    `held`: nodes that stay in floating point for want of a kernel; that file is another one, made each time.
    """
    plain = work / f"{model}.onnx"
    if variant.recipe is None:
        return plain
    recipe = RECIPES[variant.recipe]
    placement = "residual" if variant.recipe == "mixed" else variant.recipe
    out = work / f"{model}.{variant.recipe}.{variant.method}{'.held' if held else ''}.onnx"
    if held or not out.exists():
        found = calibrate(
            plain,
            recipe,
            Images(calibration_inputs(model, work)),
            work / "calibration" / model / placement,
            model_digest=model,
            batch_size=4,
        )
        ranges = found.by(variant.method)
        if recipe.implicit:
            write_ranges(plain, ranges, recipe, out)
        else:
            quantize(plain, ranges, recipe, out, only=only(model, variant, work), held=held)
    return out


def only(model: str, variant: Variant, work: Path) -> list[str] | None:
    """The nodes of a mixture that are quantized: bench/int8_mixed.py --keep wrote them."""
    return json.loads((work / f"{model}.mixed.json").read_text()) if variant.recipe == "mixed" else None


def profiles(model: str, sizes: tuple[int, ...]) -> tuple[Profile, ...]:
    """Profiles tuned for each size; a single size takes everything from batch 1 on."""
    lows = [1, *(size + 1 for size in sizes)]
    return tuple(
        {name: Extent((low, *dims), (size, *dims), (size, *dims)) for name, dims in ITEM[model].items()}
        for low, size in zip(lows, sizes, strict=False)
    )


def build(model: str, name: str, variant: Variant, work: Path, cache: Path | None) -> dict[str, Any]:
    """Build (or find) WORK/MODEL.NAME.plan; its record lies beside it."""
    plan, record = work / f"{model}.{name}.plan", work / f"{model}.{name}.json"
    if plan.exists() and record.exists():
        return json.loads(record.read_text())
    trt = api.load()
    onnx_file = rewritten(model, variant, work)
    settings = building.Settings(
        precision=variant.precision,
        tf32=variant.tf32,
        profiles=profiles(model, variant.profiles),
        **variant.settings,
    )
    ranges = onnx_file.with_suffix(".ranges.json")
    if variant.recipe == "implicit":
        settings = replace(settings, ranges=building.read_ranges(ranges))
    if variant.calibrator:
        from tritongen.engines.tensorrt.calibrator import entropy_calibrator

        largest = variant.profiles[0]
        data = Images(inputs(model, 2 * largest, seed=1))
        settings = replace(
            settings,
            calibrator=entropy_calibrator(trt, data.batches(largest), largest, work / f"{model}.calibration"),
        )
    started = time.perf_counter()
    known = cache.stat().st_size if cache and cache.exists() else 0

    def plan_of(path: Path) -> bytes:
        return building.build_plan(trt, path, settings, timing_cache=cache)

    if variant.recipe in (None, "implicit"):
        done = Built(plan_of(onnx_file))
    else:  # where there is no kernel, as the product does
        done = build_holding(
            work / f"{model}.onnx",
            RECIPES[variant.recipe],
            write=lambda held: rewritten(model, variant, work, held),
            build=plan_of,
            only=only(model, variant, work),
        )
    content = done.result
    seconds = time.perf_counter() - started
    plan.write_bytes(content)
    found = {
        "model": model,
        "variant": name,
        "build_seconds": round(seconds, 1),
        "settings": {key: str(value) for key, value in variant.settings.items()},
        "timing_cache_bytes_before": known,
        "timing_cache_bytes_after": cache.stat().st_size if cache and cache.exists() else 0,
        "plan_bytes": len(content),
        "profiles": to_text(settings.profiles),
        **({"held": done.held, "notes": done.notes} if done.notes else {}),
    }
    record.write_text(json.dumps(found))
    return found


def built(model: str, name: str, work: Path) -> dict[str, Any] | None:
    """The record of a plan that is there."""
    plan, record = work / f"{model}.{name}.plan", work / f"{model}.{name}.json"
    return json.loads(record.read_text()) if plan.exists() and record.exists() else None


def build_missing(
    script: str, arguments: list[str], model: str, names: Sequence[str], *, work: Path, deadline: float
) -> None:
    """Build what is missing, one after the other in one child, as TensorRT takes seconds to start.

    A plan that fails is left out, and the rest go on in a new child.
    """
    left = [name for name in names if built(model, name, work) is None]
    while left:
        seconds = deadline - time.perf_counter()
        if seconds < 5:
            print(f"{model}: budget used up before {', '.join(left)}: run the same command again", flush=True)
            return
        command = [sys.executable, script, "--phase", "one", "--work", str(work), *arguments]
        command += ["--variants", ",".join(left)]
        with (work / f"{model}.log").open("ab") as log:
            try:
                subprocess.run(command, stdout=log, stderr=log, timeout=seconds, check=False)
            except subprocess.TimeoutExpired:
                print(f"{model}: out of time", flush=True)
        rest = [name for name in left if built(model, name, work) is None]
        for name in left:
            record = built(model, name, work)
            if record is None:
                print(f"{model} {name}: FAILED, see {model}.log", flush=True)
                break
            print(f"{model} {name}: built in {record['build_seconds']} s", flush=True)
        left = rest[1:]  # they are built in this order: the first that is missing is the one that failed


@dataclass
class Point:
    """What `measure` found at one batch size."""

    median_ms: float
    p99_ms: float
    per_second: float
    iterations: int
    spread: float
    """Half the distance between the 5th and the 95th percentile, as a share of the median."""


def measure(runner: TensorRTRunner, feeds: Mapping[str, np.ndarray], seconds: float = 1.0) -> Point:
    """Warm up for 0.2 s, then step for `seconds`; times are CUDA events."""
    runner.prepare(feeds)
    end = time.perf_counter() + 0.2
    while time.perf_counter() < end:
        runner.step()
    times: list[int] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times) < 20:
        times.append(runner.step())
    wall = time.perf_counter() - begin
    raw = np.asarray(times) / 1e6
    low, middle, high = np.percentile(raw, [5, 50, 95])
    batch = len(next(iter(feeds.values())))
    return Point(
        round(float(middle), 4),
        round(float(np.percentile(raw, 99)), 4),
        round(batch * len(times) / wall, 1),
        len(times),
        round(float((high - low) / 2 / middle), 4),
    )


def layer_table(plan: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Time by precision, the number and time of reformats, and the ten slowest layers."""
    with TensorRTRunner(plan, cuda_graph=False, transfers=False) as runner:
        runner.prepare(feeds)
        layers = inspection.profile_layers(api.load(), runner)
    by_precision: dict[str, float] = {}
    for layer in layers:
        kind = "reformat" if layer.reformat else layer.precision
        by_precision[kind] = round(by_precision.get(kind, 0.0) + (layer.time_ms or 0.0), 4)
    slowest = sorted(layers, key=lambda layer: -(layer.time_ms or 0.0))[:10]
    return {
        "layers": len(layers),
        "reformats": sum(layer.reformat for layer in layers),
        "ms_by_precision": by_precision,
        "weighted_not_int8": [layer.name for layer in layers if layer.weighted and layer.precision != "int8"][
            :20
        ],
        "slowest": [
            {
                "name": layer.name[:120],
                "precision": layer.precision,
                "tactic": layer.tactic[:100],
                "ms": round(layer.time_ms or 0, 4),
            }
            for layer in slowest
        ],
    }


def machine() -> dict[str, Any]:
    """Where the numbers were taken."""
    name, capability = cuda.device_name()
    found = current_machine()
    return {
        "gpu": name,
        "compute_capability": capability,
        "driver": found.driver,
        "cuda_driver": cuda.driver_version(),
        "tensorrt": str(api.load().__version__),
        "cpu": found.cpu,
        "cores": found.cores,
        "clocks": clocks(),
    }


def clocks() -> dict[str, Any]:
    """SM and memory clock in MHz, temperature and reasons of throttling of CUDA's first GPU, by NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByPciBusId(cuda.pci_bus_id())
        return {
            "sm_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            "celsius": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        }
    except Exception as error:  # noqa: BLE001  (numbers without clocks are better than none)
        return {"error": str(error)}


def store(out: Path, results: Mapping[str, Any]) -> None:
    """Write results with the command that made them."""
    record = {"command": " ".join(["python", *sys.argv]), **results}
    write_text(out, json.dumps(record, indent=1) + os.linesep)


def store_each(out: Path, results: Iterable[Mapping[str, Any]]) -> None:
    """Write results as they come, beside what an earlier run on such a machine found for other plans."""
    where = machine()
    found = {(row["model"], row["variant"]): row for row in earlier(out, where)}
    for result in results:
        found[result["model"], result["variant"]] = result
        store(out, {"machine": where, "results": list(found.values())})


def earlier(out: Path, where: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The results in `out`, if they come from the same kind of GPU, driver and TensorRT."""
    if not out.exists():
        return []
    stored = json.loads(out.read_text(encoding="utf-8"))
    same = all(stored["machine"].get(key) == where[key] for key in ("gpu", "driver", "tensorrt"))
    return list(stored["results"]) if same else []
