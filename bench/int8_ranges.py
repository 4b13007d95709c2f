"""Table 2 without a GPU: real weights, TensorRT's INT8 placement, each range method, run by ONNX Runtime.

    python bench/int8_ranges.py --models yolov8n,detector,recogniser --yolo 320n.onnx --out OUT.json

Q/DQ nodes are computed in floating point with the same grids as on a GPU, so this tells what the ranges cost,
not what a plan costs: a GPU sums in another order and keeps other tensors in FP16. Pictures are crops of
scikit-learn's photographs, for the OCR models with rendered lines of text.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from pictures import crops
from tensorrt_accuracy import errors
from tensorrt_common import RECIPES, Images

from tritongen.autotune.calibrate import calibrate
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.precision.fixed_shapes import fix_shapes
from tritongen.precision.int8 import quantize

METHODS = ("minmax", "percentile", "entropy", "mse")
WORDS = (
    "Triton serves model 8601 in 3.14 ms; INT8 wins where ranges fit: batch 64, queue 250 us, P99 under 20"
)


def text_pictures(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """Pictures with one rendered line of text (height 48), or several over a photograph."""
    import cv2

    rng = np.random.default_rng(seed)
    words = WORDS.split()
    found = []
    for _ in range(count):
        if height <= 64:
            picture = np.full((height, width, 3), rng.integers(180, 255), np.uint8)
            picture = picture + rng.integers(0, 20, picture.shape).astype(np.uint8) % 20
        else:
            picture = crops(1, max(height, width), int(rng.integers(1 << 30)))[0].transpose(1, 2, 0)
            picture = np.ascontiguousarray(picture[:height, :width])
        for line in range(1 if height <= 64 else 6):
            text = " ".join(rng.choice(words, 4))
            base = height - 14 if height <= 64 else 40 + 45 * line
            colour = tuple(int(c) for c in rng.integers(0, 90, 3))
            scale = float(rng.uniform(0.7, 1.0))
            cv2.putText(picture, text, (6, base), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 2, cv2.LINE_AA)
        found.append((picture.astype(np.float32) / 255 - 0.5) / 0.5)
    return np.stack(found).transpose(0, 3, 1, 2).astype(np.float32)


def rapidocr(pattern: str) -> Path:
    spec = find_spec("rapidocr")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install rapidocr")
    return max(Path(spec.origin).parent.glob(f"models/{pattern}"))


def compare_maps(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """A detector's probability map: relative L2, and intersection over union of what is text (> 0.3)."""
    a, b = found > 0.3, wanted > 0.3
    return {
        "relative_l2": round(float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)), 5),
        "text_iou": round(float((a & b).sum() / max((a | b).sum(), 1)), 4),
        "text_share": round(float(b.mean()), 4),
    }


def compare_steps(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """A recogniser's scores: relative L2, and agreement of the best character per step and per line."""
    a, b = found.argmax(-1), wanted.argmax(-1)
    return {
        "relative_l2": round(float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)), 5),
        "step_agreement": round(float((a == b).mean()), 4),
        "line_agreement": round(float((a == b).all(axis=1).mean()), 4),
        "steps_with_text": round(float((b != 0).mean()), 4),
    }


def cases(args: argparse.Namespace) -> dict[str, tuple]:
    """Name → (file, input, item shape, calibration, validation, comparison)."""
    as_pixels = lambda seed: crops(args.count, 320, seed).astype(np.float32) / 255  # noqa: E731
    return {
        "yolov8n": (args.yolo, "images", (3, 320, 320), lambda: as_pixels(1), lambda: as_pixels(2), errors),
        "detector": (
            rapidocr("*det*.onnx"), "x", (3, 320, 320),
            lambda: text_pictures(args.count, 320, 320, 1), lambda: text_pictures(args.count, 320, 320, 2),
            compare_maps,
        ),
        "recogniser": (
            rapidocr("*rec*.onnx"), "x", (3, 48, 320),
            lambda: text_pictures(args.count, 48, 320, 1), lambda: text_pictures(args.count, 48, 320, 2),
            compare_steps,
        ),
    }  # fmt: skip


def outputs(path: Path, name: str, data: np.ndarray) -> np.ndarray:
    # Optimized, a CPU without VNNI would run integer kernels whose 16-bit sums saturate.
    with OnnxRuntimeRunner(path, graph_optimization_level="disabled") as runner:
        parts = [next(iter(runner.infer({name: data[i : i + 4]}).values())) for i in range(0, len(data), 4)]
    return np.concatenate(parts).astype(np.float64)


def keep_images(args: argparse.Namespace) -> int:
    """The pictures of each model as uint8, for bench/tensorrt_accuracy.py."""
    for model in args.models.split(","):
        _, _, _, calibration, validation, _ = cases(args)[model]
        scale = (lambda x: x) if model == "yolov8n" else (lambda x: x * 0.5 + 0.5)
        parts = {"calibration": calibration(), "validation": validation()}
        as_bytes = {name: np.rint(scale(x) * 255).astype(np.uint8) for name, x in parts.items()}
        np.savez_compressed(args.images / f"{model}.images.npz", **as_bytes)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--models", default="yolov8n,detector,recogniser")
    parser.add_argument("--yolo", type=Path)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--recipe", default="residual", choices=("residual", "shared"), help="the placement")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--images", type=Path, help="only write the pictures, MODEL.images.npz, to this folder"
    )
    args = parser.parse_args()
    if args.images:
        return keep_images(args)
    results = []
    for model in args.models.split(","):
        source, name, shape, calibration, validation, compare = cases(args)[model]
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            plain = fix_shapes(source, {name: shape}, work / "plain.onnx")
            data = validation()
            wanted = outputs(plain, name, data)
            recipe = RECIPES[args.recipe]
            found = calibrate(
                plain, recipe, Images({name: calibration()}), work / "c", model_digest=model, batch_size=4
            )
            for method in METHODS:
                started = time.perf_counter()
                summary = quantize(plain, found.by(method), recipe, work / "q.onnx")
                row = {
                    "model": model,
                    "method": method,
                    **compare(outputs(work / "q.onnx", name, data), wanted),
                }
                row["quantized"] = sum(summary.operators.values())
                results.append(row)
                print(row, f"{time.perf_counter() - started:.0f} s", flush=True)
    record = {
        "command": f"python bench/int8_ranges.py --models {args.models} --count {args.count}"
        f" --recipe {args.recipe}",
        "run_by": "ONNX Runtime on a CPU",
        "pictures": args.count,
        "results": results,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
