"""Corners of a load test: short time-outs, calls that do not divide by workers, mixes, sizes of a trace."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kserve import MODEL, Act, NullServer
from tritongen.cli import run
from tritongen.errors import InputError, RequirementError
from tritongen.loadtest.run import run_load_test
from tritongen.loadtest.settings import Settings
from tritongen.loadtest.shared_memory import shared_tensors
from tritongen.loadtest.trace import Arrival
from tritongen.report.loadtest import render
from tritongen.runs.loadtest import LoadReport
from tritongen.serving.control import ServerControl

SHARED = Path("/dev/shm")  # noqa: S108


@pytest.fixture(scope="module")
def server() -> Iterator[NullServer]:
    with NullServer() as running:
        yield running


def load(url: str, **settings: Any) -> LoadReport:
    return run_load_test(Settings(MODEL, url, **{"duration_s": 1.0, "warmup_s": 0.1, **settings}))


def test_an_answer_after_the_time_out_has_failed_even_if_nobody_gave_up_on_it_yet() -> None:
    with NullServer(lambda _number, _elapsed: Act(delay_s=0.03)) as slow:
        for url in (slow.http_url, slow.grpc_url):
            report = load(url, rate=10, timeout_s=0.01)
            assert (report.answered, {each.cause for each in report.failures}) == (0, {"timed out"})


def test_a_model_that_answers_some_requests_with_errors_is_measured_even_if_the_first_is_one() -> None:
    with NullServer(lambda number, _: Act("answer" if number % 2 else "refuse")) as flaky:
        for url in (flaky.http_url, flaky.grpc_url):
            report = load(url, rate=40)
            assert 0 < report.answered < report.requests


def test_calls_in_flight_need_not_divide_by_the_workers(server: NullServer) -> None:
    report = load(server.http_url, concurrency=3, max_in_flight=3, workers=2, warmup_s=0.0)
    assert report.failures == ()
    assert report.answered > 3


def test_items_are_counted_as_they_were_sent(server: NullServer) -> None:
    """A trace has its own sizes, whatever the weights of the flag."""
    trace = tuple(Arrival(number / 100, None, 8 if number % 10 else 1) for number in range(100))
    report = load(server.http_url, trace=trace, batch_sizes={1: 1.0, 8: 1.0})
    assert report.inferences_per_s == pytest.approx(7.3 * report.requests_per_s, rel=0.02)
    assert "batch 1=1, 8=1" in render(report)
    assert report.load.batch_sizes == {1: 1, 8: 1}


class _Willing:
    """A server that takes every region."""

    def share_memory(self, _name: str, key: str, size: int) -> None:
        assert (SHARED / key[1:]).stat().st_size == size

    def unshare_memory(self, name: str) -> None: ...


def test_errors_beside_the_shared_memory_are_told_as_they_are() -> None:
    control = ServerControl("http://nowhere", _Willing())  # type: ignore[arg-type]
    with (
        pytest.raises(OSError, match="another disk") as caught,
        shared_tensors("system", control, [], with_outputs=False) as (name, _),
    ):
        raise OSError("another disk is full")
    assert not isinstance(caught.value, RequirementError)
    assert not (SHARED / name).exists()


def test_a_mix_names_its_first_model_itself(server: NullServer, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--url", server.http_url, "--rate", "50", "--duration", "0.5s"]
    assert run(["loadtest", *flags, "--mix", f"{MODEL}=2"]) == 0
    assert capsys.readouterr().out.startswith(f"{MODEL} at ")
    assert run(["loadtest", MODEL, *flags, "--batch-size", "1=nan"]) == 2


def test_a_closed_loop_that_this_machine_has_no_sockets_for_is_refused_before_anything_is_sent() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(InputError, match="more connections than this machine") as caught:
        load("http://127.0.0.1:1", concurrency=most, max_in_flight=most, workers=1)
    assert f"{most} open files" in str(caught.value)


def test_more_requests_than_memory_holds(server: NullServer) -> None:
    """One error, and no traceback."""
    flags = ["--url", server.http_url, "--rate", "200000", "--arrival", "constant", "--duration", "1000s"]
    ended = subprocess.run(
        [sys.executable, "-m", "tritongen", "loadtest", MODEL, *flags],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29)),
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: memory ran out\n  found:    Unable to allocate")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mix", "=2"], "that is no --mix"),
        (["--mix", "other"], "that is no --mix"),
        (["--rate", "1..2", "--min-duration", "5s"], "judged once, at its end"),
        (["--rate", "0.001", "--duration", "1s"], "no request would be measured"),
    ],
)
def test_flags_that_contradict_or_name_nothing(
    server: NullServer, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert run(["loadtest", MODEL, "--url", server.http_url, *flags]) == 2
    assert said in capsys.readouterr().err
