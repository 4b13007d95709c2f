"""The largest batch against the memory that is free, before anything of that size is made."""

from __future__ import annotations

import re

import pytest

from tests.conftest import SaveModel
from tritongen.autotune.inputs import call_inputs
from tritongen.autotune.machine import current_machine
from tritongen.autotune.memory import available_bytes, check_largest_batch
from tritongen.errors import SpecError
from tritongen.graph import inspect_model
from tritongen.shapes import resolve_inputs


def test_what_is_free_is_part_of_what_there_is() -> None:
    machine = current_machine()
    assert 0 < available_bytes(machine) <= machine.memory_bytes
    assert available_bytes(machine.model_copy(update={"memory_bytes": 1000})) == 1000


def test_the_largest_batch_must_fit_with_what_each_instance_takes(save_model: SaveModel) -> None:
    graph = inspect_model(save_model("convolutional"))
    inputs = resolve_inputs(graph, {"images": "3x8x8"}, {})
    fed, answered = 3 * 8 * 8 * 4, 4 * int(graph.outputs[0].shape[1])
    item = fed + 2 * (fed + answered)
    check_largest_batch(graph, inputs, 100, instances=2, available=100 * item)
    with pytest.raises(SpecError, match="batches of 101 are more than the memory") as raised:
        check_largest_batch(graph, inputs, 101, instances=2, available=100 * item)
    proposed = re.search(r"--max-batch-size (\d+)", str(raised.value.fix))
    assert proposed is not None
    assert int(proposed[1]) == 32
    with pytest.raises(SpecError, match="no recommendation") as raised:
        check_largest_batch(graph, inputs, 2**31 - 1, instances=2, available=10**12)
    proposed = re.search(r"--max-batch-size (\d+)", str(raised.value.fix))
    assert proposed is not None
    assert int(proposed[1]) * item <= 1 << 28
    with pytest.raises(SpecError, match=r"5,0\d\d GB") as raised:
        check_largest_batch(graph, inputs, 2**31 - 1, instances=2, available=10)
    assert "more memory" in str(raised.value.fix)


def test_a_large_batch_is_made_of_a_few_samples(save_model: SaveModel) -> None:
    graph = inspect_model(save_model("convolutional"))
    made = call_inputs(None, resolve_inputs(graph, {"images": "3x8x8"}, {}), batched=True, largest=10**9)
    assert len(made.samples) == 256
    assert made(1000)["images"].shape == (1000, 3, 8, 8)
