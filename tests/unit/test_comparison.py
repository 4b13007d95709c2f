"""Two built candidates measured in alternation: a real child, two real artifacts, one of them much slower."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import models
from tritongen.autotune import jobs
from tritongen.autotune.child import run_child
from tritongen.engines import load_engine
from tritongen.runs.build import Preparation, PreparedInput
from tritongen.runs.events import discard
from tritongen.runs.records import Candidate, Comparison
from tritongen.runs.store import read_record, write_record
from tritongen.spec import ModelSpec, Precision


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
    shape = (3, 8, 8)
    job = jobs.ComparisonJob(
        spec=ModelSpec(path=small),
        preparation=Preparation(
            inputs=(PreparedInput(name="images", min=shape, opt=shape, max=shape),),
            batch_status="confirmed",
            batch_reason="it was run",
        ),
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
