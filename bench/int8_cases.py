"""When does INT8 win on this CPU? Three labelled cases, built as a user would build them.

    python bench/int8_cases.py --out docs/accuracy-int8-cases.md

Each case is trained here (examples/digits, examples/tabular), built with `tritongen build`, and told from the
records of its run: accuracy on held-out data, throughput of the bare engine, and who was selected, and why.
"""

from __future__ import annotations

import argparse
import datetime as dt
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tritongen.runs.records import LatencyPoint, Outcome, Selection, Trial
from tritongen.runs.store import RunDirectory, read_record

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@dataclass(frozen=True)
class Case:
    """A model with held-out labels."""

    title: str
    about: str
    example: str
    model: str
    arguments: tuple[str, ...] = ()
    """Of the example's train.py."""


CASES = (
    Case(
        "A convolutional net: INT8 has much to gain",
        "`examples/digits`: four convolutions of 32 to 128 channels, 597 held-out digits.",
        "digits",
        "digits",
    ),
    Case(
        "A tiny convolutional net: INT8 has little to gain",
        "The same with 4 to 8 channels (`train.py --channels 4 8 8 8`): little arithmetic to save, and the "
        "converting of tensors costs as much.",
        "digits",
        "digits",
        ("--channels", "4", "8", "8", "8"),
    ),
    Case(
        "A wide MLP on raw measurements: INT8 destroys it, but for one layer",
        "`examples/tabular`: the scaler is folded into the first layer, so one scale must serve inputs from "
        "0.001 to 4000, and most of them round to zero. A mixture leaves that layer in FP32. 200 held-out "
        "cells.",
        "tabular",
        "cells",
    ),
)


def main() -> int:
    """Build every case and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, help="default: stdout")
    parser.add_argument("--effort", default="normal")
    arguments = parser.parse_args()
    sections, trials = [], []
    for case in CASES:
        print(f"{case.title} …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run = build(case, Path(folder), arguments.effort)
            selection = read_record(run.selection, Selection)
            trials = [read_record(path, Trial) for path in sorted(run.root.glob("trials/*/trial.json"))]
            sections.append("\n".join(section(case, trials, selection)))
    page = "\n\n".join([heading(trials[0]), *sections]) + "\n"
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")
    else:
        print(page)
    return 0


def build(case: Case, folder: Path, effort: str) -> RunDirectory:
    """Train and build one case inside `folder`."""
    source = EXAMPLES / case.example
    (folder / "tritongen.yaml").write_text((source / "tritongen.yaml").read_text(encoding="utf-8"))
    train = [sys.executable, str(source / "train.py"), "--out", str(folder / "out"), *case.arguments]
    subprocess.run(train, check=True, stdout=sys.stderr)
    command = [sys.executable, "-m", "tritongen", "build", "--effort", effort]
    subprocess.run(command, check=True, cwd=folder, stdout=sys.stderr)
    return RunDirectory(folder / "out" / "run" / case.model)


def heading(trial: Trial) -> str:
    """What the page is, and where its numbers were taken."""
    machine = trial.machine
    features = [
        name for name in machine.cpu_features if name in {"avx2", "avx512_vnni", "avx_vnni", "amx_int8"}
    ]
    versions = trial.artifact.versions if trial.artifact else {}
    today = dt.datetime.now(tz=dt.timezone.utc).date()
    known = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return (
        "# INT8 on a CPU: three cases with labels\n\n"
        "Written by `python bench/int8_cases.py --out docs/accuracy-int8-cases.md`: run it again on your "
        "machine, where it may come out differently.\n\n"
        f"Taken on {today} on {machine.cpu}, {machine.cores} cores ({', '.join(features)}), {known}. "
        "Throughput is the bare engine's best over batch sizes and instances; the gate allows 1 point of "
        "top-1 to be lost. One run: on a machine that does other work as well, the next differs by some ten "
        "percent. On made-up inputs, without data, INT8 is never selected: [accuracy.md](accuracy.md)."
    )


def section(case: Case, trials: list[Trial], selection: Selection) -> Iterator[str]:
    """One case: a table of its candidates, then the verdict in the build's own words."""
    fp32 = next(trial for trial in trials if trial.candidate.id.endswith("-fp32"))
    yield f"## {case.title}"
    yield ""
    yield case.about
    yield ""
    yield "| candidate | top-1 | points lost | inferences/s | against FP32 | gate |"
    yield "|---|---:|---:|---:|---:|---|"
    for trial in sorted(trials, key=lambda t: (t.candidate.precision.value, t.candidate.id)):
        yield row(trial, fp32, winner=selection.winner)
    yield ""
    yield f"**{selection.winner}** is selected: {selection.reason}."
    for comparison in selection.comparisons:
        yield (
            f"Measured in alternation, {comparison.rounds} rounds at batch {comparison.batch_size}: "
            f"{comparison.candidate} against {comparison.against}: {comparison.ratio:.2f} times "
            f"({comparison.low:.2f} to {comparison.high:.2f})."
        )


def row(trial: Trial, fp32: Trial, *, winner: str) -> str:
    """One candidate of a case's table."""
    name = f"**{trial.candidate.id}**" if trial.candidate.id == winner else trial.candidate.id
    accuracy, best, base = trial.accuracy, peak(trial), peak(fp32)
    if accuracy is None or accuracy.value is None or best is None or base is None:
        return f"| {name} | | | | | {trial.reason} |"
    gate = {Outcome.PASSED: "passed", Outcome.REJECTED: "rejected"}.get(trial.outcome, "failed")
    lost = max(0.0, accuracy.loss or 0.0)
    return (
        f"| {name} | {accuracy.value:.2%} | {lost:.2f} | {best.throughput:,.0f} "
        f"(batch {best.batch_size} × {best.instances}) | {best.throughput / base.throughput:.2f} | {gate} |"
    )


def peak(trial: Trial) -> LatencyPoint | None:
    """The point of the curve with the highest throughput."""
    return max(trial.curve, key=lambda point: point.throughput, default=None)


if __name__ == "__main__":
    raise SystemExit(main())
