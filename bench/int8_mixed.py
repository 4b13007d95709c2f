"""Table 2, mixed precision: the most sensitive blocks of real nets held back until the gate for INT8 holds.

    python bench/int8_mixed.py --models detector,recogniser --out OUT.json

Run by ONNX Runtime on a CPU, like bench/int8_ranges.py; the gate is `tritongen build`'s: 5 % relative L2.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import int8_ranges
from tensorrt_common import Images

from tritongen.autotune.calibrate import calibrate
from tritongen.autotune.sensitivity import block_costs, mix, relative_l2, run_exactly
from tritongen.engines.tensorrt.recipes import int8_recipes
from tritongen.precision.fixed_shapes import fix_shapes

LIMIT = 0.05


def parameters(path: Path, nodes: tuple[str, ...]) -> float:
    """Share of the weights that lie in these nodes."""
    import onnx

    graph = onnx.load(path).graph
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    chosen = set(nodes)
    inside = {name for node in graph.node if node.name in chosen for name in node.input if name in sizes}
    return sum(sizes[name] for name in inside) / max(sum(sizes.values()), 1)


def run(model: str, args: argparse.Namespace) -> dict[str, object]:
    source, name, shape, calibration, validation, _ = int8_ranges.cases(args)[model]
    recipe = int8_recipes()[0]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        plain = fix_shapes(source, {name: shape}, work / "plain.onnx")
        data = validation()
        # The blocks are chosen on calibration pictures and judged on others.
        chosen_on = [{name: calibration()[:4]}]
        judged_on = [{name: data[i : i + 4]} for i in range(0, len(data), 4)]
        ranges = calibrate(
            plain, recipe, Images({name: calibration()}), work / "c", model_digest=model, batch_size=4
        )
        by = ranges.by(args.method)
        costs = block_costs(plain, by, recipe, chosen_on, block=args.block)
        wanted = run_exactly(plain, judged_on)

        def accept(path: Path) -> tuple[bool, float]:
            error = relative_l2(run_exactly(path, judged_on), wanted)
            print(model, f"{error:.4f}", flush=True)
            return error <= LIMIT, error

        mixture = mix(plain, by, recipe, costs=costs, accept=accept, out=work / "mixed.onnx")
        if args.keep is not None:
            (args.keep / f"{model}.mixed.json").write_text(json.dumps(mixture.quantized))
        return {
            "model": model,
            "method": args.method,
            "blocks": len(costs),
            "held": len(mixture.held),
            "int8_share_of_weights": round(parameters(plain, mixture.quantized), 3),
            "points": [
                {"held": p.held, "relative_l2": round(p.error, 5), "passed": p.passed} for p in mixture.points
            ],
            "dearest": [{"nodes": list(c.nodes), "alone": round(c.error, 5)} for c in costs[:5]],
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--models", default="detector,recogniser")
    parser.add_argument("--yolo", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--method", default="mse")
    parser.add_argument("--keep", type=Path, help="folder for the nodes in INT8, MODEL.mixed.json")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results = [run(model, args) for model in args.models.split(",")]
    record = {
        "command": f"python bench/int8_mixed.py --models {args.models} --block {args.block}",
        "pictures": args.count,
        "run_by": "ONNX Runtime on a CPU",
        "limit": LIMIT,
        "results": results,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
