"""Table 3: ResNet-50 FP16: own profiles or a wide one, CUDA graphs, builder settings, k contexts, caches.

python bench/tensorrt_profiles.py --work DIR --out OUT.json
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import tensorrt_common as common

from tritongen.autotune.latency import Effort
from tritongen.autotune.latency import measure as measure_together
from tritongen.spec import Precision

PLAIN = common.Variant(Precision.FP16)
# The wide profile is built twice in a row: cold, then from the timing cache that the first build wrote.
VARIANTS = {
    "wide-cold": PLAIN,
    "wide-cached": PLAIN,
    "own-profiles": replace(PLAIN, profiles=(1, 8, 64)),
    "two-profiles": replace(PLAIN, profiles=(1, 64)),  # what `tritongen build` writes
    "level-1": replace(PLAIN, settings={"optimization_level": 1}),
    "level-2": replace(PLAIN, settings={"optimization_level": 2}),
    "level-4": replace(PLAIN, settings={"optimization_level": 4}),
    "timing-x8": replace(PLAIN, settings={"timing_iterations": 8}),
    "jit-only": replace(PLAIN, settings={"tactic_sources": ("JIT_CONVOLUTIONS",)}),
    "no-aux-streams": replace(PLAIN, settings={"aux_streams": 0}),
    "sparsity": replace(PLAIN, settings={"sparsity": True}),
}
CONTEXTS = (1, 2, 4)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--budget", type=float, default=450.0, help="seconds")
    parser.add_argument("--cache", type=Path, help="timing cache; the first plan is built cold if it is new")
    parser.add_argument("--contexts", default="two-profiles", help="the plan that k contexts run at once")
    parser.add_argument("--phase", choices=("build", "measure", "all", "one"), default="all")
    return parser.parse_args()


def build_all(args: argparse.Namespace, deadline: float) -> None:
    common.source("resnet50", args.work)
    arguments = ["--cache", str(args.cache)] if args.cache else []
    common.build_missing(
        __file__, arguments, "resnet50", args.variants.split(","), work=args.work, deadline=deadline
    )


def measured(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    for name in args.variants.split(","):
        record = common.built("resnet50", name, args.work)
        if record is None:
            continue
        plan, points = args.work / f"resnet50.{name}.plan", []
        for graph in (True, False):
            with common.TensorRTRunner(plan, cuda_graph=graph, transfers=False) as runner:
                for batch in common.BATCHES:
                    point = common.measure(runner, common.inputs("resnet50", batch), 0.4)
                    points.append({"batch": batch, "cuda_graph": graph, **asdict(point)})
        print(name, record["build_seconds"], [(p["batch"], p["cuda_graph"], p["median_ms"]) for p in points],
              flush=True)  # fmt: skip
        at_once = contexts(plan) if name == args.contexts else []
        yield {**record, "points": points, "contexts": at_once, "clocks": common.clocks()}


def contexts(plan: Path) -> list[dict[str, object]]:
    """k runners at once, each with its own stream, transfers included: throughput, latency, one's memory."""
    found = []
    for count in CONTEXTS:
        runners = [common.TensorRTRunner(plan) for _ in range(count)]
        for runner in runners:
            runner.__enter__()
        try:
            for batch in common.BATCHES:
                feeds = common.inputs("resnet50", batch)
                point, _ = measure_together(runners, feeds, batch, {}, Effort(), name="p")
                found.append({"contexts": count, "batch": batch, "median_ms": round(point.median_ms, 4),
                              "p99_ms": round(point.p99_ms, 4), "per_second": round(point.throughput, 1),
                              "device_bytes": runners[0].device_bytes if count == 1 else None})  # fmt: skip
        finally:
            for runner in runners:
                runner.__exit__(None, None, None)
    return found


def main() -> int:
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.phase == "one":
        for name in args.variants.split(","):
            common.build("resnet50", name, VARIANTS[name], args.work, args.cache)
        return 0
    if args.phase in ("build", "all"):
        build_all(args, time.perf_counter() + common.BUILDING * args.budget)
    if args.phase in ("measure", "all") and args.out:
        common.store_each(args.out, measured(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
