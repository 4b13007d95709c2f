"""The load test on a real Triton: both protocols, its statistics, and the model's own errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tritongen.cli import run
from tritongen.errors import ServerError, SpecError
from tritongen.loadtest.run import run_load_test
from tritongen.loadtest.settings import Settings
from tritongen.runs.loadtest import LoadOutcome, LoadReport
from tritongen.serving.embedded import EmbeddedServer
from tritongen.slo import parse_slo

pytestmark = pytest.mark.server

LINEAR = """
name: "linear"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
dynamic_batching { }
instance_group [ { count: 1 kind: KIND_CPU } ]
"""


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    repository = tmp_path_factory.mktemp("repository")
    models.save(models.linear(), repository / "linear" / "1" / "model.onnx")
    (repository / "linear" / "config.pbtxt").write_text(LINEAR)
    with EmbeddedServer(repository) as server:
        yield server


def load(url: str, *slos: str, model: str = "linear", **settings: Any) -> LoadReport:
    wanted: dict[str, Any] = {"duration_s": 2.0, "warmup_s": 0.5, **settings}
    return run_load_test(Settings(model, url, slos=tuple(map(parse_slo, slos)), **wanted))


def test_both_protocols_find_the_same_server(triton: EmbeddedServer) -> None:
    for url in (triton.http_url, triton.grpc_url):
        settings: dict[str, Any] = {"batch_size": 4, "seed": 5, "metrics_url": triton.metrics_url}
        report = load(url, rate=50, duration_s=3.0, warmup_s=1.5, **settings)
        assert report.outcome is LoadOutcome.MEASURED
        assert report.answered == report.requests
        assert report.server is not None
        assert report.server.startswith("triton 2.")
        figures = report.server_figures
        assert figures is not None
        # Counted at the window's edges, as well as this machine keeps time; the whole run has twice as many.
        assert figures.inferences == pytest.approx(4 * report.requests, rel=0.5)
        assert sum(size * count for size, count in figures.batch_sizes.items()) == figures.inferences
        assert report.waterfall is not None
        assert report.response_ms.mean is not None
        assert sum(report.waterfall.model_dump().values()) > 0.9 * report.response_ms.mean
        assert report.bottleneck is not None
        assert figures.mean_batch is not None
        assert figures.mean_batch >= 4
        assert figures.compute_infer_ms is not None
        assert 0 < figures.compute_infer_ms < report.response_ms.mean


def test_the_dynamic_batcher_shows(triton: EmbeddedServer) -> None:
    report = load(triton.grpc_url, concurrency=8)
    assert report.server_figures is not None
    assert (report.server_figures.mean_batch or 0) > 1
    assert report.failures == ()


def test_triton_says_in_its_words_what_is_wrong(triton: EmbeddedServer) -> None:
    with pytest.raises(ServerError, match="did you mean 'linear'"):
        load(triton.http_url, model="linar")
    with pytest.raises(SpecError, match="contradicts the model"):
        load(triton.http_url, shapes={"x": "5"})


def test_its_three_ports_are_told_apart(triton: EmbeddedServer) -> None:
    metrics = triton.metrics_url.removesuffix("/metrics")
    for url, text in (
        (f"http://127.0.0.1:{triton.grpc_port}", "is a gRPC port"),
        (f"grpc://127.0.0.1:{triton.http_port}", "is an HTTP port"),
        (metrics, "is a metrics port"),
        (metrics.replace("http", "grpc"), "is a metrics port"),
    ):
        with pytest.raises(ServerError, match=text):
            load(url, rate=50)
    for url in (triton.http_url, triton.grpc_url):
        with pytest.raises(ServerError, match="has no version 9"):
            load(url, rate=50, version="9")


def test_the_command(triton: EmbeddedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [
        "--url",
        triton.grpc_url,
        "--rate",
        "50",
        "--duration",
        "1s",
        "--json",
        str(tmp_path / "r.json"),
    ]
    assert run(["loadtest", "linear", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "mean batch" in shown
    assert shown.rstrip().endswith("MEASURED: no objective was set")
    report = LoadReport.model_validate_json((tmp_path / "r.json").read_text())
    assert report.machine is not None
    assert report.protocol == "grpc"
