"""Table 0: FP16, explicit INT8, `dynamic_range` INT8 and the calibrator each build and run here.

python bench/tensorrt_smoke.py --work DIR --out OUT.json
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import onnx
import tensorrt_common as common

from bench.models import resnet50
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner

SIZE = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    common.ITEM["small"] = {"images": (3, SIZE, SIZE)}
    resnet50.STAGES = ((64, 1), (128, 1))
    onnx.save(resnet50.resnet50(size=SIZE), args.work / "small.onnx")
    feeds = common.inputs("small", 4)
    with OnnxRuntimeRunner(args.work / "small.onnx") as exact:
        wanted = exact.infer(feeds)["logits"].astype(np.float64)
    results = []
    for name, variant in common.recipe_variants().items():
        started = time.perf_counter()
        try:
            common.build("small", name, variant, args.work, None)
            with common.TensorRTRunner(args.work / f"small.{name}.plan") as runner:
                found = runner.infer(feeds)["logits"].astype(np.float64)
                point = common.measure(runner, feeds, 0.2)
                layers = common.inspection.layers_of(common.api.load(), runner.engine)
            error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
            proof = common.inspection.prove(layers, variant.precision)
            result = {"works": True, "relative_l2": round(error, 6), "proof": proof.evidence,
                      "words": proof.summary, "median_ms": point.median_ms}  # fmt: skip
        except Exception as problem:  # noqa: BLE001  (the table says what works; a failure is a row)
            traceback.print_exc()
            result = {"works": False, "why": str(problem)}
        results.append({"variant": name, "seconds": round(time.perf_counter() - started, 1), **result})
        print(results[-1], flush=True)
    common.store(args.out, {"machine": common.machine(), "results": results})
    return 0 if all(result["works"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
