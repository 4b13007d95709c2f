"""JUnit, Prometheus and raw samples: what other programs read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from google.protobuf import json_format

from tests.conftest import SaveModel
from tests.repository_models import to_write
from tests.unit.test_loadtest_report import report
from tritongen.cli import proofs, run
from tritongen.cli.loadtest import _check_outputs, _show
from tritongen.cli.loadtest_settings import _durations
from tritongen.errors import InputError, TritongenError
from tritongen.loadtest.sample_export import check_samples_file, write_samples
from tritongen.loadtest.samples import DTYPE, OK, TIMEOUT, NoRoomError, SampleFile, Samples, read_rows
from tritongen.report.exports import junit, prometheus
from tritongen.report.loadtest import render
from tritongen.repository.config_text import parse
from tritongen.repository.manifest import read_manifest
from tritongen.repository.writer import write_model
from tritongen.runs.loadtest import Failure, LoadOutcome

SAMPLE = re.compile(r'^[a-z_]+\{(?:[a-z_]+="(?:[^"\\]|\\.)*",?)+\} (?:-?[0-9.e+-]+|\+Inf)$')


def cases(text: str) -> dict[str, ET.Element]:
    root = ET.fromstring(text)  # noqa: S314  (our own)
    assert root.tag == "testsuites"
    (suite,) = root.findall("testsuite")
    found = suite.findall("testcase")
    assert {case.get("classname") for case in found} == {"tritongen.loadtest.digits"}
    for element in (root, suite):
        assert int(element.attrib["tests"]) == len(found)
        assert int(element.attrib["failures"]) == len(suite.findall("testcase/failure"))
        assert int(element.attrib["errors"]) == len(suite.findall("testcase/error"))
    assert all(float(case.attrib["time"]) > 0 for case in found)
    return {case.attrib["name"]: case for case in found}


def test_a_pass_in_junit() -> None:
    found = cases(junit(report("p99<=20ms", "error_rate<=1%")))
    assert list(found) == ["p99<=20ms", "error_rate<=1%", "the run itself"]
    assert not any(case.findall("*[@type]") for case in found.values())


def test_a_miss_is_a_failure_and_not_knowing_is_an_error() -> None:
    missed = cases(junit(report("p99<=6ms", "error_rate<=1%")))
    failure = missed["p99<=6ms"].find("failure")
    assert failure is not None
    assert failure.get("type") == "FAIL"
    assert (failure.get("message") or "").startswith("measured ")
    (told,) = (each.reason for each in report("p99<=6ms").objectives)
    assert junit(report("p99<=6ms")).count(told.partition("; ")[2]) == 1
    assert missed["error_rate<=1%"].find("failure") is None
    unknown = cases(junit(report("p99<=20ms", stopped=True, end_ns=10 * 10**9)))
    assert unknown["p99<=20ms"].find("error") is not None
    broken = report("p99<=20ms").model_copy(
        update={"outcome": LoadOutcome.ERROR, "reasons": ("the server\x00 stopped <answering>",)}
    )
    assert cases(junit(broken))["the run itself"].find("error") is not None


def test_prometheus_text() -> None:
    lines = prometheus(report("p99<=6ms", failed=300)).splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(SAMPLE.match(line) for line in samples), samples
    assert len(set(samples)) == len(samples)
    text = "\n".join(samples)
    assert 'outcome="FAIL"} 1' in text
    assert 'cause="HTTP 503"} 300' in text
    assert 'slo="p99<=6ms"} 0' in text
    assert 'quantile="0.99"} +Inf' in text


def test_samples_are_all_there(tmp_path: Path) -> None:
    rows = np.zeros(3, DTYPE)
    rows["scheduled_ns"], rows["sent_ns"], rows["done_ns"] = [10, 20, 30], [11, 21, 31], [15, 25, 35]
    rows["status"] = [OK, TIMEOUT, OK]
    path = tmp_path / "s.npz"
    check_samples_file(path)
    write_samples(path, Samples(rows), 10)
    with np.load(path) as arrays:
        assert arrays["scheduled_ns"].tolist() == [0, 10, 20]
        assert (arrays["done_ns"] - arrays["sent_ns"]).tolist() == [4, 4, 4]
        meanings = dict(zip(arrays["status_codes"].tolist(), arrays["status_meanings"].tolist(), strict=True))
    assert meanings == {OK: "ok", TIMEOUT: "timed out"}


@pytest.mark.parametrize(("name", "text"), [("s.csv", "samples"), ("nowhere/s.npz", "no such folder")])
def test_a_place_for_samples_that_cannot_be_is_refused_before_the_run(
    tmp_path: Path, name: str, text: str
) -> None:
    with pytest.raises(InputError, match=text):
        check_samples_file(tmp_path / name)


def test_outputs_fit_what_is_asked_for(tmp_path: Path) -> None:
    def check(*, find_max: bool = False, both: Any = Path("-"), one: Any = None) -> None:
        _check_outputs(find_max=find_max, both=(both,), only_search=(None,), only_test=(None, one))

    with pytest.raises(InputError, match="different files"):
        check(find_max=True, one=tmp_path / "j.xml")
    with pytest.raises(InputError, match="no such folder"):
        check(one=tmp_path / "no" / "j.xml")
    with pytest.raises(InputError, match="no such folder"):
        check(both=tmp_path / "no" / "r.json")
    with pytest.raises(InputError, match="a folder is where"):
        check(both=tmp_path)
    check(both=tmp_path / "r.json", one=tmp_path / "j.xml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "objectives", "expected"),
    [
        ((None, None, None), True, (300, 60)),
        ((None, None, None), False, (60, None)),
        ((30, None, None), True, (30, None)),
        ((None, None, 600), True, (600, 60)),
        ((None, None, 20), True, (20, 20)),
        ((None, 10, None), True, (300, 10)),
        ((None, 400, None), True, (800, 400)),
        ((None, 10, 20), True, (20, 10)),
    ],
)
def test_durations(flags: Any, objectives: bool, expected: Any) -> None:
    found = _durations(*flags, objectives=objectives, find_max=False)
    assert (found["duration_s"], found["min_duration_s"]) == expected


def test_durations_that_contradict() -> None:
    with pytest.raises(InputError, match="two kinds"):
        _durations(10, None, 20, objectives=True, find_max=False)
    with pytest.raises(InputError, match="below"):
        _durations(None, 20, 10, objectives=True, find_max=False)


def test_a_report_without_a_manifest_proves_nothing(tmp_path: Path) -> None:
    assert proofs.record(report("p99<=20ms"), tmp_path, None) is None


def test_a_verdict_on_our_own_server_becomes_a_proof(save_model: SaveModel, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    manifest = write_model(repository, to_write(save_model("linear"), tmp_path / "runs")).manifest
    missed = report("p99<=6ms", "error_rate<=1%").model_copy(
        update={"model": manifest.name, "machine": manifest.machine}
    )
    config = parse((repository / manifest.name / "config.pbtxt").read_text(encoding="utf-8"))
    served = proofs.Loaded("1", json_format.MessageToDict(config, preserving_proto_field_name=True))
    for other, why in (
        (None, "does not tell"),
        (proofs.Loaded("2", served.config), "version 2, and version 1"),
        (proofs.Loaded("1", {**served.config, "max_batch_size": 99}), "(max_batch_size)"),
    ):
        assert why in (proofs.record(missed, repository, other) or "")
    switched = missed.model_copy(update={"server_figures": None, "server_figures_note": "version 1, then 2"})
    assert "version 1, then 2" in (proofs.record(switched, repository, served) or "")
    assert not read_manifest(repository / manifest.name).proofs
    assert "recorded in" in (proofs.record(missed, repository, served) or "")
    found = read_manifest(repository / manifest.name)
    assert [(proof.slo, proof.outcome) for proof in found.proofs] == [
        ("p99<=6ms", "FAIL"),
        ("error_rate<=1%", "PASS"),
    ]
    assert found.proofs[0].config_digest == manifest.files["config.pbtxt"].digest
    assert "100 requests/s" in found.proofs[0].summary
    assert found.server is not None
    assert found.server.version == "2.51.0"
    undecided = missed.model_copy(update={"outcome": LoadOutcome.INVALID})
    assert proofs.record(undecided, repository, served) is None
    assert proofs.record(missed.model_copy(update={"partial": True}), repository, served) is None
    (repository / manifest.name / "manifest.json").write_text("{")
    assert "not recorded in" in (proofs.record(missed, repository, served) or "")


def test_what_a_server_said_moves_no_cursor() -> None:
    failure = Failure(cause="HTTP 500", count=3, message="\x1b[2Jgone\r\n  \x07all")
    (line,) = (
        line
        for line in render(report().model_copy(update={"failures": (failure,)})).splitlines()
        if line.startswith("failed")
    )
    assert line == "failed    3 × HTTP 500: [2Jgone all"


def test_the_report_explains_itself() -> None:
    found = report("p99<=20ms")
    assert found.waterfall is not None
    assert sum(found.waterfall.model_dump().values()) == pytest.approx(found.response_ms.mean, rel=0.01)
    assert found.bottleneck is not None
    assert len(found.series) == 60
    assert found.series[0].at_s == -5
    assert found.series[0].rate == 100
    assert "limit     " in render(found)


def test_a_report_that_cannot_be_written_is_shown_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(TritongenError, match=r"(?s)could not be written.*No such file.*to fix"):
        _show(report("p99<=20ms"), Path("/proc/report.json"))  # as a full disk
    assert "PASS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--token-env", "NOPE_AT_ALL"], "NOPE_AT_ALL is not set"),
        (["--token-file", "nowhere"], "No such file"),
        (["--header", "alone"], "NAME: VALUE"),
        (["--trace", "nowhere"], "cannot be read"),
    ],
)
def test_bad_flags_say_how_to_mend_them(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["loadtest", "digits", *arguments]) == 2
    told = capsys.readouterr().err
    assert text in told
    assert "to fix:" in told
    assert "Error" not in told


def test_a_full_disk_is_noticed_before_a_row_is_written(tmp_path: Path) -> None:
    """A hole in a mapped file on a full disk would kill the worker, and the parent that looks at it."""
    with pytest.raises(NoRoomError):
        SampleFile(tmp_path / "too-many", 1 << 55)
    file = SampleFile(tmp_path / "few", 2)
    file.write(1, 10, 20, 30, OK, 4, 5)
    with pytest.raises(NoRoomError):
        file.write(1 << 55, 0, 0, 0, OK, 0, 0)
    file.write(70_000, 40, 50, 60, OK, 4, 5)
    file.close()
    assert read_rows(tmp_path / "few")["done_ns"].tolist() == [30, 60]
