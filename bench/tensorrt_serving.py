"""Table 4: a plan of bench/tensorrt_latency.py in the embedded server, load-tested freely and with a promise.

    python bench/tensorrt_serving.py --work DIR --model resnet50 --variant fp16 --rate 300 --out OUT.json

The plan is written into a repository as `tritongen build` does. The bare engine is the same plan, with the
copies to and from the GPU; the waterfall is the load test's, from Triton's own statistics.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tensorrt_common as common

from bench.models import bert
from tritongen.autotune.latency import EFFORTS, latency_curve
from tritongen.autotune.machine import current_machine
from tritongen.engines.tensorrt import PROFILES, TensorRTEngine
from tritongen.files import digest_files
from tritongen.graph import BatchAxis, BatchStatus, inspect_model
from tritongen.repository.writer import BuiltCandidate, ModelToWrite, write_model
from tritongen.runs.events import discard
from tritongen.runs.records import Artifact, Candidate, LatencyPoint, Outcome, Selection, Trial
from tritongen.shapes import ResolvedInput
from tritongen.spec import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
CLOSED = ((1, 1), (8, 1), (32, 1), (4, 8), (4, 64))
"""(calls in flight, items per request) of the closed loops."""
RANGES = {"input_ids": (0, bert.VOCABULARY - 1), "attention_mask": (1, 1)}


def artifact_of(args: argparse.Namespace, engine: TensorRTEngine, folder: Path) -> Artifact:
    """The plan with what `TensorRTEngine.build` would say of it; it is linked into `folder`."""
    record = common.built(args.model, args.variant, args.work)
    if record is None:
        raise SystemExit(f"{args.model}.{args.variant}.plan is not there")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.plan"
    file.unlink(missing_ok=True)
    os.link(args.work / f"{args.model}.{args.variant}.plan", file)
    with common.TensorRTRunner(file) as runner:
        bindings = [
            {"name": b.name, "dtype": b.dtype, "shape": list(b.shape), "input": b.is_input}
            for b in runner.bindings
        ]
    return Artifact(
        file=file.name,
        digest=digest_files([file]),
        size_bytes=file.stat().st_size,
        build_seconds=record["build_seconds"],
        versions=engine.versions(),
        details={"bindings": bindings, PROFILES: record["profiles"]},
    )


def bare_engine(
    args: argparse.Namespace, engine: TensorRTEngine, folder: Path, artifact: Artifact
) -> tuple[LatencyPoint, ...]:
    """The plan's own curve, copies included, alone and with two instances at once."""
    return latency_curve(
        engine,
        folder,
        artifact,
        inputs=lambda batch: common.inputs(args.model, batch),
        sizes=common.BATCHES,
        runtimes=[({"cuda_graph": True}, 1), ({"cuda_graph": True}, 2)],
        events=discard,
        effort=EFFORTS["normal"],
    ).points


def write_repository(args: argparse.Namespace, repository: Path) -> tuple[LatencyPoint, ...]:
    """One model folder around the plan; the bare engine's curve."""
    graph = inspect_model(args.work / f"{args.model}.onnx")
    graph = replace(graph, batch=BatchAxis(BatchStatus.CONFIRMED, "known of this model"))
    inputs = [
        ResolvedInput(spec, item, item, item, RANGES.get(spec.name))
        for spec in graph.inputs
        for item in (common.ITEM[args.model][spec.name],)
    ]
    largest, runtime = max(common.BATCHES), {"cuda_graph": True}
    engine = TensorRTEngine().with_shapes(inputs, largest)
    folder = args.work / f"served.{args.model}.{args.variant}"
    artifact = artifact_of(args, engine, folder)
    curve = bare_engine(args, engine, folder, artifact)
    name = f"tensorrt-{args.variant}"
    precision = common.recipe_variants()[args.variant].precision
    trial = Trial(
        key="bench",
        candidate=Candidate(id=name, engine="tensorrt", precision=precision),
        outcome=Outcome.PASSED,
        reason="a bench",
        artifact=artifact,
        curve=curve,
        machine=current_machine(),
        seconds=0.0,
    )
    model = ModelToWrite(
        name=args.model,
        spec=ModelSpec(path=graph.path, engine="tensorrt"),
        graph=graph,
        inputs=inputs,
        selection=Selection(
            objective="throughput",
            winner=name,
            reason="a bench",
            runtime=runtime,
            instances=args.instances,
            batch_size=largest,
            max_batch_size=largest,
            losers=(),
            runners_up=(),
        ),
        winner=BuiltCandidate(trial, folder),
        traits=engine.serving_traits(artifact, runtime),
    )
    write_model(repository, model, force=True)
    return curve


def tritongen(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tritongen", *arguments], cwd=ROOT, text=True, capture_output=True, check=False
    )


def loadtest(args: argparse.Namespace, repository: Path, *flags: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        done = tritongen(
            "loadtest", args.model, "--repository", str(repository), "--protocol", args.protocol,
            "--json", str(report), *flags,
        )  # fmt: skip
        print(done.stdout[-1500:], done.stderr[-500:], flush=True)
        if not report.exists():
            return {"flags": flags, "exit": done.returncode, "error": done.stderr[-500:]}
        found = json.loads(report.read_text())
    left_out = ("schema", "url", "looks", "series", "machine", "started", "version")
    kept = {key: value for key, value in found.items() if key not in left_out}
    return {"flags": flags, "exit": done.returncode, **kept}


def served_runs(args: argparse.Namespace, repository: Path) -> dict[str, object]:
    """The closed loops and the promise, against a server that is stopped afterwards."""
    log = args.work / f"triton.{args.model}.{args.variant}.log"
    served = tritongen(
        "serve", str(repository), "--background", "--model", args.model, "--log-file", str(log),
        "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0",
    )  # fmt: skip
    if served.returncode:
        return {"error": served.stdout[-1500:] + served.stderr[-1500:], "log": tail_of(log)}
    try:
        closed: Sequence[dict[str, object]] = [
            loadtest(
                args, repository,
                "--concurrency", str(calls), "--batch-size", str(batch), "--duration", args.duration,
            )
            for calls, batch in CLOSED
        ]  # fmt: skip
        promise = ("--rate", args.rate, "--p99-ms", args.p99_ms, "--duration", args.slo_duration)
        return {"closed_loop": closed, "slo": loadtest(args, repository, *promise)}
    finally:
        tritongen("stop")


def tail_of(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--rate", default="200")
    parser.add_argument("--p99-ms", default="20")
    parser.add_argument("--protocol", default="grpc")
    parser.add_argument("--duration", default="5s")
    parser.add_argument("--slo-duration", default="20s")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    repository = args.work / f"repository.{args.model}.{args.variant}"
    curve = write_repository(args, repository)
    found = served_runs(args, repository)
    common.store(
        args.out,
        {
            "machine": common.machine(),
            "model": args.model,
            "variant": args.variant,
            "instances": args.instances,
            "config": (repository / args.model / "config.pbtxt").read_text(),
            "bare_engine": [point.model_dump(mode="json", exclude={"samples"}) for point in curve],
            **found,
        },
    )
    return 1 if "error" in found else 0


if __name__ == "__main__":
    sys.exit(main())
