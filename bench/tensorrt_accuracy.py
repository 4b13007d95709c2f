"""Table 2 on the GPU: real weights, plans of each range method, their outputs against the FP32 graph's.

    python bench/tensorrt_accuracy.py --work DIR --out OUT.json --models yolov8n,detector,recogniser

DIR/MODEL.images.npz comes from bench/pictures.py and bench/int8_ranges.py --images, DIR/MODEL.mixed.json from
bench/int8_mixed.py --keep. Plans are built for accuracy alone: one profile, quick optimization level.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorrt_common as common

from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.spec import Precision

BATCH = 8
TOP = 10
LEVEL = 1
"""builder_optimization_level. At 2 the recogniser took 150 s a plan, and YOLOv8n was not done after 300 s."""
LADDER = (
    "tf32",
    "fp16",
    "int8-residual",
    "int8-shared",
    "int8-implicit",
    "fp16-no-jit",
    "int8-residual-no-jit",
    "int8-implicit-no-jit",
)
"""Plans of bench/tensorrt_latency.py, which are judged too where they lie in DIR."""
METHODS = ("minmax", "percentile", "entropy", "mse")


def variants(model: str, work: Path) -> dict[str, common.Variant]:
    """FP16, explicit INT8 by each range method, implicit INT8, and the mixture where there is one."""
    base = common.Variant(Precision.INT8, profiles=(BATCH,), settings={"optimization_level": LEVEL})
    found = {"at8-fp16": replace(base, precision=Precision.FP16)}
    if (work / f"{model}.mixed.json").exists():
        found["at8-mixed"] = replace(base, recipe="mixed", method="mse")
    for method in reversed(METHODS):
        found[f"at8-explicit-{method}"] = replace(base, recipe="residual", method=method)
    found["at8-implicit-mse"] = replace(base, recipe="implicit", method="mse")
    return found


def outputs(runner: object, name: str, data: np.ndarray) -> np.ndarray:
    found = [
        next(iter(runner.infer({name: data[i : i + BATCH]}).values()))  # type: ignore[attr-defined]
        for i in range(0, len(data), BATCH)
    ]
    return np.concatenate(found).astype(np.float64)


def errors(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Boxes (the first four rows, in pixels) and class scores apart; the TOP anchors of each picture."""
    boxes, scores = slice(0, 4), slice(4, None)
    best = wanted[:, scores].max(1)
    seen = best >= np.sort(best, axis=1)[:, -TOP, None]
    same = found[:, scores].argmax(1) == wanted[:, scores].argmax(1)
    relative = {
        name: float(np.linalg.norm(found[:, rows] - wanted[:, rows]) / np.linalg.norm(wanted[:, rows]))
        for name, rows in (("boxes_relative_l2", boxes), ("scores_relative_l2", scores))
    }
    return {
        **{name: round(value, 6) for name, value in relative.items()},
        "boxes_mean_pixels_of_top": round(
            float(np.abs(found[:, boxes] - wanted[:, boxes]).transpose(0, 2, 1)[seen].mean())
            if seen.any()
            else 0.0,
            4,
        ),
        "class_agreement_of_top": round(float(same[seen].mean()) if seen.any() else 1.0, 4),
        "top_score": round(float(best.max()), 4),
    }


def comparison(model: str) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    from int8_ranges import compare_maps, compare_steps

    return {"yolov8n": errors, "detector": compare_maps, "recogniser": compare_steps}[model]


def measured(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    for model in args.models.split(","):
        ((name, data),) = common.pictures(model, args.work, "validation").items()
        with OnnxRuntimeRunner(args.work / f"{model}.onnx") as exact:
            wanted = outputs(exact, name, data)
        for variant in (*variants(model, args.work), *LADDER):
            record = common.built(model, variant, args.work)
            if record is None:
                continue
            with common.TensorRTRunner(args.work / f"{model}.{variant}.plan") as runner:
                found = comparison(model)(outputs(runner, name, data), wanted)
                point = common.measure(runner, {name: data[:BATCH]}, 0.2)
            result = {
                "model": model,
                "variant": variant,
                "pictures": len(data),
                **found,
                "median_ms_at_8": point.median_ms,
                "build_seconds": record["build_seconds"],
            }
            print(result, flush=True)
            yield result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", default="yolov8n,detector,recogniser")
    parser.add_argument("--variants", default="")
    parser.add_argument("--yolo", type=Path)
    parser.add_argument("--cache", type=Path, help="timing cache")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds")
    parser.add_argument("--phase", choices=("prepare", "build", "measure", "all", "one"), default="all")
    args = parser.parse_args()
    deadline = time.perf_counter() + common.BUILDING * args.budget
    for model in args.models.split(",") if args.phase != "measure" else ():
        common.source(model, args.work, args.yolo)
        wanted = variants(model, args.work)
        names = [name for name in args.variants.split(",") if name] or list(wanted)
        if args.phase == "prepare":
            for name in names:
                print(common.rewritten(model, wanted[name], args.work), flush=True)
        elif args.phase == "one":
            for name in names:
                common.build(model, name, wanted[name], args.work, args.cache)
        else:
            arguments = ["--models", model, *(["--cache", str(args.cache)] if args.cache else [])]
            common.build_missing(__file__, arguments, model, names, work=args.work, deadline=deadline)
    if args.phase in ("measure", "all") and args.out:
        common.store_each(args.out, measured(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
