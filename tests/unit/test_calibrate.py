"""Collecting activations on real models, with the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from tests import models
from tests.unit.test_int8 import RECIPE
from tritongen.autotune import calibrate as calibrating
from tritongen.autotune.calibrate import calibrate
from tritongen.autotune.preparation import calibration_data, opened_data
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.errors import BuildError, DataError
from tritongen.graph import inspect_model
from tritongen.precision.int8 import quantize
from tritongen.runs.build import DataFacts
from tritongen.runs.events import Event
from tritongen.runs.records import Calibration
from tritongen.spec import ModelSpec


class Samples:
    """A `samples.Dataset` in memory that counts how often it is read."""

    synthetic = False
    labels = None

    def __init__(self, **arrays: NDArray[np.generic]) -> None:
        self._arrays = arrays
        self.count = len(next(iter(arrays.values())))
        self.digest = str(hash(tuple(a.tobytes() for a in arrays.values())))
        self.passes = 0

    def batches(self, size: int) -> Iterator[dict[str, NDArray[np.generic]]]:
        self.passes += 1
        for start in range(0, self.count, size):
            yield {name: array[start : start + size] for name, array in self._arrays.items()}


def images(count: int = 40, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save(models.convolutional(), tmp_path / "m.onnx")


def collected(model: Path, data: Samples, folder: Path, **settings: int) -> tuple[Calibration, list[Event]]:
    events: list[Event] = []
    result = calibrate(
        model, RECIPE, data, folder, model_digest="m", batch_size=7, events=events.append, **settings
    )
    return result, events


def test_ranges_are_those_of_the_values_and_lead_to_a_close_model(model: Path, tmp_path: Path) -> None:
    data = Samples(images=images())
    result, events = collected(model, data, tmp_path / "run")
    assert result.tensors["images"].ranges["minmax"] == (float(images().min()), float(images().max()))
    scores = result.tensors["r1"]
    assert scores.minimum == 0
    assert 0.2 < scores.zeros < 0.9
    assert result.samples == 40
    assert events[0].status == "started"
    assert events[-1].status == "finished"
    fractions = [event.fraction for event in events if event.fraction is not None]
    assert fractions == sorted(fractions)
    with OnnxRuntimeRunner(model) as runner:
        expected = runner.infer({"images": images(8, seed=1)})["scores"]
    for method in ("minmax", "percentile", "entropy", "mse"):
        out = tmp_path / f"{method}.onnx"
        quantize(model, result.by(method), RECIPE, out)
        with OnnxRuntimeRunner(out) as runner:
            found = runner.infer({"images": images(8, seed=1)})["scores"]
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)  # type: ignore[operator]
        assert error < 0.06, method


def test_a_second_call_reads_the_cache_and_nothing_else(model: Path, tmp_path: Path) -> None:
    data, run = Samples(images=images()), tmp_path / "run"
    first, _ = collected(model, data, run)
    passes = data.passes
    second, events = collected(model, data, run)
    assert second == first
    assert data.passes == passes
    assert [event.status for event in events] == ["skipped"]
    assert len(list(run.iterdir())) == 1
    collected(model, Samples(images=images(seed=5)), run)
    assert len(list(run.iterdir())) == 2


def test_a_damaged_cache_is_made_again(model: Path, tmp_path: Path) -> None:
    data, run = Samples(images=images()), tmp_path / "run"
    first, _ = collected(model, data, run)
    (kept,) = run.iterdir()
    kept.write_text("{")
    assert collected(model, data, run)[0] == first
    assert Calibration.model_validate_json(kept.read_bytes()) == first


def test_few_tensors_at_a_time_give_the_same_ranges(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = collected(model, Samples(images=images()), tmp_path / "whole")
    monkeypatch.setattr(calibrating, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(calibrating, "_PROBE_TENSORS", 2)
    assert collected(model, Samples(images=images()), tmp_path / "parts")[0] == whole


def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    proto = models.linear()
    proto.graph.node.insert(0, helper.make_node("Log", ["x"], ["logarithm"]))
    proto.graph.node[1].input[0] = "logarithm"
    model = models.save(proto, tmp_path / "m.onnx")
    with pytest.raises(DataError, match="'logarithm'"):
        collected(model, Samples(x=-np.ones((40, 4), np.float32)), tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_large_data_set_is_thinned_evenly(model: Path, tmp_path: Path) -> None:
    growing = images(140) * np.arange(140, dtype=np.float32)[:, None, None, None]
    result, _ = collected(model, Samples(images=growing), tmp_path / "run", max_samples=70)
    assert result.samples == 70
    assert result.tensors["images"].maximum > 0.8 * growing.max()


def test_data_whose_ranges_are_known_are_not_read_again(model: Path, tmp_path: Path) -> None:
    """Each INT8 trial names the data by the digest that the preparation found."""
    file = tmp_path / "data.npz"
    np.savez(file, images=images())
    spec, graph = ModelSpec(path=model), inspect_model(model)
    read = opened_data(spec, graph, str(file))
    facts = DataFacts(
        source=str(file), samples=read.count, digest=read.digest, synthetic=False, labelled=False
    )
    first = calibrate(model, RECIPE, calibration_data(spec, graph, facts), tmp_path / "run", model_digest="m")
    file.unlink()
    known = calibration_data(spec, graph, facts)
    assert calibrate(model, RECIPE, known, tmp_path / "run", model_digest="m") == first
    np.savez(file, images=images(seed=1))
    with pytest.raises(DataError, match="changed while the model was being built"):
        calibrate(model, RECIPE, known, tmp_path / "another", model_digest="m")


def test_no_samples_and_nothing_to_quantize_are_errors(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample"):
        collected(model, Samples(images=images(0)), tmp_path / "run")
    relu = models.save(models.relu(), tmp_path / "relu.onnx")
    with pytest.raises(BuildError, match="nothing to quantize"):
        collected(relu, Samples(x=np.ones((40, 4), np.float32)), tmp_path / "run")
