"""A real tritonserver that completes nothing loads what is written, and refuses what the rules say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from onnx import helper

from tests import models
from tests.repository_models import built, to_write
from tests.unit.test_loadtest_report import report
from tests.unit.test_repository_config import BROKEN
from tritongen.cli.proofs import loaded
from tritongen.errors import ServerError
from tritongen.repository.config_text import difference, parse
from tritongen.repository.rules import RULES
from tritongen.repository.writer import ModelToWrite, write_model
from tritongen.serving.control import ServerControl, connect
from tritongen.serving.embedded import EmbeddedServer
from tritongen.spec import Precision

pytestmark = pytest.mark.server

ODD = "a/b:0 { [ ] } ' # é 漢 %s"

KINDS = ("static_batch", "one_per_item", "scalar_input", "two_in_two_out", "strings", "tokens", "recurrent")
"""Those whose tensors look different in a config; the backend's own tests serve all the others."""

VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {
        "queue_delay_us": 300,
        "max_queue_size": 64,
        "default_queue_timeout_us": 1_000_000,
        "priority_levels": 5,
        "default_priority_level": 4,
        "preferred_batch_sizes": (2, 4),
        "instances": 2,
        "response_cache": True,
        "parameters": {'odd "key"': "line\nbreak", "enable_mem_arena": "0"},
        "raw": 'metric_tags { key: "team" value: "vision" }',
    },
    "nothing": {"dynamic_batching": False, "warmup": False},
}


def odd_names() -> Any:
    node = helper.make_node("Relu", [ODD], [f"out {ODD}"])
    return models.model([node], [models.value(ODD, ["b", 2])], [models.value(f"out {ODD}", ["b", 2])])


def saved(kind: str, folder: Path, proto: Any = None) -> Path:
    return models.save(models.SERVABLE[kind]() if proto is None else proto, folder / f"{kind}.onnx")


def all_models(base: Path) -> Iterator[ModelToWrite]:
    """Every kind of tensor, and every kind of setting."""
    for kind in KINDS:
        yield to_write(saved(kind, base), base / "runs" / kind, name=kind)
    linear = saved("linear", base)
    for name, serving in VARIANTS.items():
        yield to_write(linear, base / "runs" / name, name=name, **serving)
    yield to_write(linear, base / "runs/whole", name="whole", max_batch_size=0)
    yield to_write(saved("relu", base / "odd", odd_names()), base / "runs/odd", name="odd.name-1")
    tokens = saved("tokens", base)
    yield to_write(tokens, base / "runs/late", name="late_tokens", ranges={"ids": (9, 40)})
    words = to_write(saved("strings", base), base / "runs/words", name="warm_words")
    yield replace(words, sample={"word": np.array([["dog"]], dtype=object)})
    other = models.save(models.linear(seed=5), base / "other.onnx")
    kept = to_write(linear, base / "runs/kept", name="with_runner_up")
    yield replace(kept, runners_up=[built(other, base / "runs/kept8", Precision.INT8)])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("all")
    for model in all_models(base):
        write_model(base / "repository", model)
    return base / "repository"


@pytest.fixture(scope="module")
def triton(repository: Path) -> Iterator[ServerControl]:
    """A server started the strict way: one model that does not load, and it would not start."""
    with EmbeddedServer(repository) as server:
        control = connect(server.http_url)
        yield control
        control.close()


def names(repository: Path) -> list[str]:
    return sorted(path.name for path in repository.iterdir())


def test_every_config_loads_as_it_is_written(repository: Path, triton: ServerControl) -> None:
    assert sorted(entry.name for entry in triton.index()) == names(repository)
    for name in names(repository):
        assert triton.is_ready(name), name
        written = parse((repository / name / "config.pbtxt").read_text(encoding="utf-8"))
        assert difference(written, triton.model_config(name)) is None, name
    assert difference(written, triton.model_config(names(repository)[0])) is not None


def test_a_proof_asks_the_server_what_it_runs(repository: Path, triton: ServerControl) -> None:
    served = loaded(report().model_copy(update={"url": triton.url, "model": "everything"}))
    assert served is not None
    assert served.version == "1"
    written = parse((repository / "everything/config.pbtxt").read_text(encoding="utf-8"))
    assert difference(written, served.config) is None


def test_clients_see_the_batch_axis_and_odd_names(triton: ServerControl) -> None:
    metadata = triton.model_metadata("odd.name-1")
    assert [(tensor.name, list(tensor.shape)) for tensor in metadata.inputs] == [(ODD, [-1, 2])]
    assert [list(tensor.shape) for tensor in triton.model_metadata("scalar_input").inputs] == [[-1, 4], [1]]
    assert [list(tensor.shape) for tensor in triton.model_metadata("one_per_item").inputs] == [[-1, 1]]


CORE = sorted(rule.name for rule in RULES if rule.origin == "core")
TAKEN = sorted(rule.name for rule in RULES if rule.origin == "tritongen")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerControl]:
    """A server over a repository in which each model breaks one rule."""
    base = tmp_path_factory.mktemp("broken")
    path = saved("linear", base, models.linear(inputs=3))
    for rule, (_, addition) in BROKEN.items():
        if rule not in (*CORE, *TAKEN):
            continue
        folder = write_model(base / "repository", to_write(path, base / rule, name=rule)).folder
        config = parse((folder / "config.pbtxt").read_text(encoding="utf-8"))
        config.ClearField("model_warmup")
        config.ClearField("version_policy")
        if rule == "instance-group":
            config.ClearField("instance_group")
        if addition == "clear_backend":
            config.ClearField("backend")
            config.platform = "onnxruntime_onnx"
        elif addition.startswith("max_batch_size"):
            config.max_batch_size = -1
        else:
            text_format.Merge(addition, config)
        (folder / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    with EmbeddedServer(base / "repository", model_control="explicit") as server:
        control = connect(server.http_url)
        yield control
        control.close()


@pytest.mark.parametrize("rule", CORE)
def test_core_refuses_what_the_rules_call_cores(rule: str, broken: ServerControl) -> None:
    with pytest.raises(ServerError):
        broken.load(rule)


@pytest.mark.parametrize("rule", ["backend", "priority-without-levels", "random-warmup"])
def test_core_takes_what_only_tritongen_refuses(rule: str, broken: ServerControl) -> None:
    broken.load(rule)
    assert broken.is_ready(rule)


def test_a_polling_server_never_sees_half_a_model(tmp_path: Path) -> None:
    repository, log = tmp_path / "repository", tmp_path / "triton.log"
    path = saved("linear", tmp_path)
    write_model(repository, to_write(path, tmp_path / "runs0", warmup=False))
    polling = ("--model-control-mode=poll", "--repository-poll-secs=1", "--log-verbose=0")
    with EmbeddedServer(repository, extra_args=polling, log_file=log) as server:
        control = connect(server.http_url)
        for seed in range(1, 6):
            other = models.save(models.linear(seed=seed), tmp_path / f"{seed}/linear.onnx")
            write_model(repository, to_write(other, tmp_path / f"runs{seed}", warmup=False))
            time.sleep(0.3)
        control.wait_ready("tiny", "6", timeout_s=120.0)
        control.close()
    assert "Poll failed" not in log.read_text(encoding="utf-8", errors="replace")
