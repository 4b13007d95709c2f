"""Table 2 on the GPU: how far each YOLOv8n plan's boxes and scores are from the FP32 graph's, on pictures.

    python bench/tensorrt_accuracy.py --work DIR --out OUT.json

The plans are those of bench/tensorrt_latency.py; DIR/yolov8n.images.npz comes from bench/pictures.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import tensorrt_common as common

from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner

BATCH = 8
TOP = 10


def outputs(runner: object, pictures: np.ndarray) -> np.ndarray:
    found = [
        runner.infer({"images": pictures[i : i + BATCH]})["output0"]  # type: ignore[attr-defined]
        for i in range(0, len(pictures), BATCH)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with np.load(args.work / "yolov8n.images.npz") as stored:
        pictures = stored["validation"].astype(np.float32) / 255
    with OnnxRuntimeRunner(args.work / "yolov8n.onnx") as exact:
        wanted = outputs(exact, pictures)
    results = []
    for plan in sorted(args.work.glob("yolov8n.*.plan")):
        with common.TensorRTRunner(plan) as runner:
            result = {"variant": plan.name.split(".")[1], **errors(outputs(runner, pictures), wanted)}
        print(result, flush=True)
        results.append(result)
    common.store(args.out, {"machine": common.machine(), "pictures": len(pictures), "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
