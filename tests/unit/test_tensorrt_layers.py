"""What the engine inspector says of a plan, or does not. Its engine is a stand-in: no plan is silent here."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from tritongen.engines.tensorrt.inspection import layers_of, profile_layers

TOLD = json.dumps({"Layers": [{"Name": "conv", "LayerType": "CaskConvolution"}]})


class SilentEngine:
    """Says nothing of a plan with its context (as 8.6 of one plan), and perhaps nothing at all."""

    def __init__(self, alone: str) -> None:
        self.alone = alone

    def create_engine_inspector(self) -> Any:
        inspector = SimpleNamespace(execution_context=None)
        inspector.get_engine_information = lambda _form: "" if inspector.execution_context else self.alone
        return inspector


class Runner:
    """A runner of two layers, of 2 and 1 ms."""

    def __init__(self, engine: SilentEngine) -> None:
        self.engine, self.context = engine, SimpleNamespace(profiler=None)

    def step(self) -> int:
        for name, ms in (("conv", 2.0), ("pool", 1.0)) if self.context.profiler else ():
            self.context.profiler.report_layer_time(name, ms)
        return 0


class _Profiler:
    def __init__(self) -> None: ...


TRT = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON=1), IProfiler=_Profiler)


@pytest.mark.parametrize(("alone", "found"), [(TOLD, ["conv"]), ("", [])])
def test_an_inspector_that_says_nothing_with_a_context_is_asked_without(alone: str, found: list[str]) -> None:
    assert [layer.name for layer in layers_of(TRT, SilentEngine(alone), object())] == found


def test_layers_that_nothing_is_said_of_keep_their_names_and_times() -> None:
    layers = profile_layers(TRT, Runner(SilentEngine("")))
    assert [(layer.name, layer.time_ms, layer.precision) for layer in layers] == [
        ("conv", 2.0, "unknown"),
        ("pool", 1.0, "unknown"),
    ]
