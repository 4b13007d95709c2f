"""Table 4: the embedded server end to end: load tests of a repository that `tritongen build` wrote.

    python bench/tensorrt_serving.py --repository DIR --model NAME --rate 300 --p99-ms 20 --out OUT.json

The bare engine is the manifest's latency curve; the waterfall is Triton's own statistics.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import tensorrt_common as common

ROOT = Path(__file__).resolve().parent.parent
CLOSED = ((1, 1), (8, 1), (32, 1), (4, 8), (8, 16))
"""(calls in flight, items per request) of the closed loops."""


def tritongen(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tritongen", *arguments], cwd=ROOT, text=True, capture_output=True, check=False
    )


def loadtest(args: argparse.Namespace, *flags: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        done = tritongen(
            "loadtest", args.model, "--repository", str(args.repository), "--protocol", args.protocol,
            "--json", str(report), *flags,
        )  # fmt: skip
        print(done.stdout[-1500:], done.stderr[-500:], flush=True)
        if not report.exists():
            return {"flags": flags, "exit": done.returncode, "error": done.stderr[-500:]}
        found = json.loads(report.read_text())
    keep = ("outcome", "reasons", "requests", "requests_per_s", "inferences_per_s", "response_ms",
            "objectives", "server_figures", "server", "notes")  # fmt: skip
    return {"flags": flags, "exit": done.returncode, **{key: found.get(key) for key in keep}}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rate", default="200")
    parser.add_argument("--p99-ms", default="20")
    parser.add_argument("--protocol", default="grpc")
    parser.add_argument("--duration", default="6s")
    parser.add_argument("--slo-duration", default="30s")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    manifest = json.loads((args.repository / args.model / "manifest.json").read_text())
    served = tritongen("serve", str(args.repository), "--background", "--model", args.model)
    if served.returncode:
        print(served.stdout, served.stderr)
        return served.returncode
    try:
        runs = [
            loadtest(
                args, "--concurrency", str(calls), "--batch-size", str(batch), "--duration", args.duration
            )
            for calls, batch in CLOSED
        ]
        slo = loadtest(args, "--rate", args.rate, "--p99-ms", args.p99_ms, "--duration", args.slo_duration)
    finally:
        tritongen("stop")
    bare = [
        {
            key: point[key]
            for key in ("batch_size", "instances", "runtime", "median_ms", "p99_ms", "throughput")
        }
        for point in manifest["curve"]
    ]
    common.store(
        args.out,
        {
            "machine": common.machine(),
            "model": args.model,
            "candidate": manifest["candidate"],
            "instances": manifest["instances"],
            "config": (args.repository / args.model / "config.pbtxt").read_text(),
            "bare_engine": bare,
            "closed_loop": runs,
            "slo": slo,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
