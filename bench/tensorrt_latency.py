"""Table 1: latency of each candidate at batch 1, 8 and 64 against the same model's plain FP32 engine.

    python bench/tensorrt_latency.py --work DIR --out OUT.json --models resnet50,yolov8n

Builds run one after the other in a process of their own, go on where they stopped, and end with the budget.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import tensorrt_common as common

NO_JIT = "-no-jit"
"""After a variant's name: without the tactics that TensorRT compiles during the build, which takes long."""
PRECOMPILED = {"tactic_sources": ("EDGE_MASK_CONVOLUTIONS",)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", default="resnet50,yolov8n,bert-large")
    parser.add_argument("--variants", default="")
    parser.add_argument("--yolo", type=Path)
    parser.add_argument("--level", type=int, help="builder_optimization_level")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds")
    parser.add_argument("--cache", type=Path, help="timing cache")
    parser.add_argument("--seconds", type=float, default=0.5, help="that each point is measured")
    parser.add_argument("--phase", choices=("prepare", "build", "measure", "all", "one"), default="all")
    return parser.parse_args()


def variants(model: str, wanted: str, level: int | None) -> dict[str, common.Variant]:
    found = common.recipe_variants()
    if model == "bert-large":
        found = {name: found[name] for name in ("fp32", "tf32", "fp16")}
    names = wanted.split(",") if wanted else list(found)
    found |= {f"{name}{NO_JIT}": replace(one, settings=PRECOMPILED) for name, one in found.items()}
    settings = {} if level is None else {"optimization_level": level}
    return {
        name: replace(found[name], settings={**found[name].settings, **settings})
        for name in names
        if name in found
    }


def build_all(args: argparse.Namespace, deadline: float) -> None:
    for model in args.models.split(","):
        common.source(model, args.work, args.yolo)
        arguments = ["--models", model]
        arguments += ["--cache", str(args.cache)] if args.cache else []
        arguments += ["--level", str(args.level)] if args.level is not None else []
        names = list(variants(model, args.variants, args.level))
        common.build_missing(__file__, arguments, model, names, work=args.work, deadline=deadline)


def prepare(args: argparse.Namespace) -> None:
    """What needs no GPU: the models and their quantized forms."""
    for model in args.models.split(","):
        common.source(model, args.work, args.yolo)
        for variant in variants(model, args.variants, args.level).values():
            print(common.rewritten(model, variant, args.work), flush=True)


def measured(args: argparse.Namespace, deadline: float) -> Iterator[dict[str, object]]:
    """One record per plan, all in this one process, one after the other."""
    for model in args.models.split(","):
        for name in variants(model, args.variants, args.level):
            record = common.built(model, name, args.work)
            if record is None or time.perf_counter() > deadline:
                print(f"{model} {name}: not measured", flush=True)
                continue
            plan, points, memory = args.work / f"{model}.{name}.plan", [], None
            for graph, transfers in ((True, False), (False, False), (True, True)):
                with common.TensorRTRunner(plan, cuda_graph=graph, transfers=transfers) as runner:
                    memory = memory or runner.device_bytes
                    for batch in common.BATCHES:
                        point = common.measure(runner, common.inputs(model, batch), args.seconds)
                        points.append(
                            {"batch": batch, "cuda_graph": graph, "transfers": transfers, **asdict(point)}
                        )
            best = {p["batch"]: p["median_ms"] for p in points if p["cuda_graph"] and not p["transfers"]}
            print(f"{model:10} {name:16} built {record['build_seconds']:6.1f} s  "
                  + "  ".join(f"B={b} {ms:.3f}" for b, ms in best.items()), flush=True)  # fmt: skip
            yield {**record, "device_bytes": memory, "points": points, "clocks": common.clocks(),
                   "layers_at_64": common.layer_table(plan, common.inputs(model, 64))}  # fmt: skip


def main() -> int:
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    deadline = time.perf_counter() + args.budget
    if args.phase == "prepare":
        prepare(args)
        return 0
    if args.phase == "one":
        for name, variant in variants(args.models, args.variants, args.level).items():
            common.build(args.models, name, variant, args.work, args.cache)
        return 0
    if args.phase in ("build", "all"):
        build_all(args, deadline - (1 - common.BUILDING) * args.budget)
    if args.phase in ("measure", "all") and args.out:
        common.store_each(args.out, measured(args, deadline))
    return 0


if __name__ == "__main__":
    sys.exit(main())
