"""What clients of the running version lose with a new configuration."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from tritongen.reload.settings import lost_to_clients
from tritongen.repository.config_text import parse

RUNNING = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [3, -1] }
input { name: "mask" data_type: TYPE_INT64 dims: [3] }
output { name: "y" data_type: TYPE_FP32 dims: [10] }
"""


def config(text: str) -> Any:
    return parse(text, "config.pbtxt")


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        ("max_batch_size: 8", "max_batch_size: 16", ()),
        ("max_batch_size: 8", "max_batch_size: 4",
         ("max_batch_size is 4 and was 8: requests with larger batches get errors",)),
        ("dims: [10]", "dims: [-1]", ()),
        ("dims: [3, -1]", "dims: [3, 224]", ("input 'x' is float32 [-1x3x224] and was float32 [-1x3x-1]",)),
        ("TYPE_INT64", "TYPE_INT32", ("input 'mask' is int32 [-1x3] and was int64 [-1x3]",)),
        ('"y"', '"scores"', ("output 'y' is gone",)),
        ('"mask"', '"ids"',
         ("input 'mask' is gone", "input 'ids' is new, and requests without it get errors")),
    ],
)  # fmt: skip
def test_what_a_new_configuration_takes_away(old: str, new: str, lost: tuple[str, ...]) -> None:
    assert old in RUNNING
    in_force = json_format.MessageToDict(config(RUNNING), preserving_proto_field_name=True)
    assert lost_to_clients(config(RUNNING.replace(old, new)), in_force) == lost


def one_input(largest: int, dims: str) -> Any:
    return config(f'max_batch_size: {largest} input {{ name: "x" data_type: TYPE_FP32 dims: {dims} }}')


@pytest.mark.parametrize(
    ("running", "written", "lost"),
    [
        ((8, "[3]"), (0, "[3]"), ("input 'x' is float32 [3] and was float32 [-1x3]",)),
        ((8, "[3]"), (0, "[-1, 3]"), ()),
        ((0, "[3]"), (8, "[3]"), ("input 'x' is float32 [-1x3] and was float32 [3]",)),
        ((0, "[1, 3]"), (8, "[3]"), ()),
        ((0, "[-1, 3]"), (8, "[3]"),
         ("max_batch_size is 8 and was 0: requests with larger batches get errors",)),
    ],
)  # fmt: skip
def test_the_batch_axis_is_part_of_the_shape(
    running: tuple[int, str], written: tuple[int, str], lost: tuple[str, ...]
) -> None:
    in_force = json_format.MessageToDict(one_input(*running), preserving_proto_field_name=True)
    assert lost_to_clients(one_input(*written), in_force) == lost
