"""Built candidates measured in alternation: real children, real artifacts, one of them much slower."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import models
from tests.unit.test_selection import MACHINE, point, trial
from tritongen.autotune import jobs
from tritongen.autotune.budget import Budget
from tritongen.autotune.child import run_child
from tritongen.autotune.judging import Goal
from tritongen.autotune.stages import Setting, compare_leaders
from tritongen.engines import load_engine
from tritongen.runs.build import Preparation, PreparedInput
from tritongen.runs.events import Event, discard
from tritongen.runs.records import Candidate, Comparison
from tritongen.runs.store import RunDirectory, read_record, write_record
from tritongen.spec import ModelSpec, Precision

SHAPE = (3, 8, 8)
PREPARATION = Preparation(
    inputs=(PreparedInput(name="images", min=SHAPE, opt=SHAPE, max=SHAPE),),
    batch_status="confirmed",
    batch_reason="it was run",
)


def contender(name: str, model: Path, folder: Path) -> jobs.Contender:
    engine = load_engine("onnxruntime")
    candidate = Candidate(id=name, engine="onnxruntime", precision=Precision.FP32)
    artifact = engine.build(model, candidate, folder / name, discard)
    return jobs.Contender(
        candidate=name,
        folder=folder / name,
        engine="onnxruntime",
        artifact=artifact,
        runtime={"intra_op_threads": 1},
        instances=1,
        batch_size=2,
    )


@pytest.mark.parametrize("by_latency", [False, True])
def test_the_faster_one_is_found(tmp_path: Path, *, by_latency: bool) -> None:
    small = models.save(models.convolutional((3, 8)), tmp_path / "small.onnx")
    large = models.save(models.convolutional((3, 64, 64)), tmp_path / "large.onnx")
    job = jobs.ComparisonJob(
        spec=ModelSpec(path=small),
        preparation=PREPARATION,
        max_batch_size=2,
        by_latency=by_latency,
        contenders=(contender("small", small, tmp_path), contender("large", large, tmp_path)),
    )
    write_record(tmp_path / "job.json", job)
    failure = run_child(
        "tritongen.autotune.comparison:compare", tmp_path / "job.json", timeout_s=120, events=discard
    )
    assert failure is None
    found = read_record(tmp_path / "comparison.json", Comparison)
    assert (found.candidate, found.against) == ("small", "large")
    assert 1 < found.low <= found.ratio <= found.high


@pytest.mark.parametrize(("minutes", "pairs"), [(None, 2), (0.0, 1)])
def test_pairs_are_asked_once_and_within_the_budget(
    minutes: float | None, pairs: int, tmp_path: Path
) -> None:
    """Noise hides two from the plainest; their artifacts are gone: comparisons fail, the build does not."""
    model = models.save(models.convolutional((3, 8)), tmp_path / "m.onnx")
    artifact = contender("fp32", model, tmp_path).artifact
    trials = [
        trial(name, [point(2, 40.0, taken=0.5)]).model_copy(update={"artifact": artifact})
        for name in ("fp32", "fp32-basic", "fp32-extended")
    ]
    run = RunDirectory(tmp_path / "run")
    of_before = run.comparison / "7" / "comparison.json"
    of_before.parent.mkdir(parents=True)
    of_before.touch()
    seen: list[Event] = []
    setting = Setting("m", ModelSpec(path=model), run, MACHINE, seen.append)
    found = compare_leaders(setting, trials, PREPARATION, Goal.parse("throughput"), Budget(minutes))
    assert found == ()
    assert not of_before.exists()
    asked = [event.message for event in seen if event.status == "started"]
    assert len(asked) == len(set(asked)) == pairs
    warnings = [event.message for event in seen if event.status == "warning"]
    assert len(warnings) == pairs
    assert "the comparison failed: ONNX Runtime cannot open" in warnings[0]
