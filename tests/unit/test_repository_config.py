"""config.pbtxt: what it says, that it parses as Triton's own schema, and that no text breaks out of it."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from tests import models
from tests.conftest import SaveModel
from tests.repository_models import to_write
from tritongen.engines import ServingTraits
from tritongen.errors import ModelError, RepositoryError, SpecError
from tritongen.repository.config_text import default_template, difference, parse, quote, render
from tritongen.repository.model_config import (
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    QueuePolicy,
    TensorConfig,
    make_model_config,
)
from tritongen.repository.rules import RULES, check_rules, server_options
from tritongen.repository.warmup import Warmup, WarmupInput, warmup_batch_sizes
from tritongen.repository.writer import ModelToWrite

TINY = ModelConfig(
    name="tiny",
    backend="onnxruntime",
    max_batch_size=8,
    inputs=(TensorConfig("x", "TYPE_FP32", (3, -1)),),
    outputs=(TensorConfig("y", "TYPE_INT64", (1,), ()),),
    instance_groups=(InstanceGroup(2, "KIND_CPU"),),
    dynamic_batching=DynamicBatching(),
)

FULL = replace(
    TINY,
    dynamic_batching=DynamicBatching((4, 8), 500, 3, 2, QueuePolicy(16, 1000)),
    warmups=(
        Warmup("batch_1", 1, (WarmupInput("x", "TYPE_FP32", (3, 4)),)),
        Warmup("batch_8", 8, (WarmupInput("x", "TYPE_FP32", (3, 4), "input_0"),)),
    ),
    parameters={"intra_op_thread_count": "2", 'odd "key"\n': "va\\lue"},
    optimization="graph { level: 1 }",
    response_cache=True,
    default_model_filename="model.int8.onnx",
    raw='metric_tags { key: "team" value: "vision" }',
)


def config_of(model: ModelToWrite) -> ModelConfig:
    return make_model_config(
        model.name,
        serving=model.spec.serving,
        graph=model.graph,
        inputs=model.inputs,
        selection=model.selection,
        traits=model.traits,
        sample=model.sample,
    )


def assert_same(message: Any, config: ModelConfig) -> None:
    """Every field of the parsed message is what the description says, and nothing else is set."""
    expected = model_config_pb2.ModelConfig(
        name=config.name,
        backend=config.backend,
        max_batch_size=config.max_batch_size,
        default_model_filename=config.default_model_filename or "",
        input=[_tensor(tensor) for tensor in config.inputs],
        output=[_tensor(tensor) for tensor in config.outputs],
        instance_group=[{"count": g.count, "kind": g.kind} for g in config.instance_groups],
        version_policy={"latest": {"num_versions": 1}},
        parameters={key: {"string_value": value} for key, value in config.parameters.items()},
        model_warmup=[_warmup(warmup) for warmup in config.warmups],
    )
    if config.dynamic_batching is not None:
        batching = config.dynamic_batching
        expected.dynamic_batching.SetInParent()
        expected.dynamic_batching.preferred_batch_size.extend(batching.preferred_batch_sizes)
        expected.dynamic_batching.max_queue_delay_microseconds = batching.queue_delay_us
        expected.dynamic_batching.priority_levels = batching.priority_levels
        expected.dynamic_batching.default_priority_level = batching.default_priority_level
        if batching.queue_policy is not None:
            policy = expected.dynamic_batching.default_queue_policy
            policy.SetInParent()
            policy.max_queue_size = batching.queue_policy.max_queue_size
            policy.default_timeout_microseconds = batching.queue_policy.default_timeout_us
    if config.response_cache:
        expected.response_cache.enable = True
    if config.optimization:
        text_format.Merge(f"optimization {{ {config.optimization} }}", expected)
    text_format.Merge(config.raw, expected)
    assert text_format.MessageToString(message) == text_format.MessageToString(expected)


def _tensor(tensor: TensorConfig) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": tensor.name, "data_type": tensor.data_type, "dims": tensor.dims}
    return entry if tensor.reshape is None else {**entry, "reshape": {"shape": tensor.reshape}}


def _warmup(warmup: Warmup) -> dict[str, Any]:
    inputs = {
        tensor.name: {
            "data_type": tensor.data_type,
            "dims": tensor.dims,
            **({"zero_data": True} if tensor.file is None else {"input_data_file": tensor.file}),
        }
        for tensor in warmup.inputs
    }
    return {"name": warmup.name, "batch_size": warmup.batch_size, "inputs": inputs}


@pytest.mark.parametrize("config", [TINY, FULL, replace(TINY, max_batch_size=0, dynamic_batching=None)])
def test_text_says_what_the_description_says(config: ModelConfig) -> None:
    assert_same(parse(render(config)), config)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (FULL, None),
        (replace(FULL, dynamic_batching=None), "dynamic_batching"),
        (replace(FULL, dynamic_batching=DynamicBatching((4, 8), 900)), "dynamic_batching"),
        (replace(FULL, optimization="graph { level: 2 }"), "optimization"),
        (replace(FULL, warmups=()), "model_warmup"),
        (replace(FULL, instance_groups=(InstanceGroup(3, "KIND_CPU"),)), "instance_group"),
        (replace(FULL, raw=""), "metric_tags"),
    ],
)
def test_a_server_with_another_configuration_is_noticed(other: ModelConfig, named: str | None) -> None:
    served = json_format.MessageToDict(parse(render(other)), preserving_proto_field_name=True)
    served["instance_group"][0]["name"] = "tiny_0"
    served["optimization"]["input_pinned_memory"] = {"enable": True}
    assert difference(parse(render(FULL)), served) == named


def test_zero_is_written_and_the_backend_not_the_platform() -> None:
    text = render(replace(TINY, max_batch_size=0, dynamic_batching=None))
    assert "max_batch_size: 0\n" in text
    assert "dynamic_batching" not in text
    assert 'backend: "onnxruntime"' in text
    assert "platform" not in text


def test_defaults_stay_unwritten() -> None:
    text = render(TINY)
    for word in ("delay", "preferred", "priority", "policy {", "response_cache", "default_model", "warmup"):
        assert word not in text.replace("version_policy {", "")


@pytest.mark.parametrize("name", sorted(models.SERVABLE))
def test_every_servable_model_gets_a_config_that_parses_and_breaks_no_rule(
    name: str, save_model: SaveModel, tmp_path: Path
) -> None:
    model = to_write(save_model(name), tmp_path / "runs")
    config = config_of(model)
    message = parse(render(config))
    assert_same(message, config)
    assert not check_rules(message)
    assert [tensor.name for tensor in message.input] == [spec.name for spec in model.graph.inputs]


def test_batch_axis_is_left_out_and_dynamic_axes_are_minus_one(save_model: SaveModel, tmp_path: Path) -> None:
    batching = to_write(save_model("tokens"), tmp_path / "a")
    assert config_of(batching).inputs == (TensorConfig("ids", "TYPE_INT64", (-1,)),)
    whole = to_write(save_model("tokens"), tmp_path / "b", max_batch_size=0)
    assert config_of(whole).inputs == (TensorConfig("ids", "TYPE_INT64", (-1, -1)),)


def test_one_number_per_item_is_reshaped_only_when_batching(save_model: SaveModel, tmp_path: Path) -> None:
    batching = config_of(to_write(save_model("one_per_item"), tmp_path / "a"))
    assert batching.inputs == (TensorConfig("x", "TYPE_FP32", (1,), ()),)
    whole = config_of(to_write(save_model("one_per_item"), tmp_path / "b", max_batch_size=0))
    assert whole.inputs == (TensorConfig("x", "TYPE_FP32", (-1,)),)


def test_rank_0_is_dims_1_without_reshape(save_model: SaveModel, tmp_path: Path) -> None:
    config = config_of(to_write(save_model("scalar_input"), tmp_path))
    assert config.inputs[1] == TensorConfig("scale", "TYPE_FP32", (1,))


def test_no_batches_without_a_confirmed_batch_axis(save_model: SaveModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="batches"):
        config_of(to_write(save_model("mixes_batch"), tmp_path, max_batch_size=4))


def test_spec_wins_over_the_selection_and_the_engine(save_model: SaveModel, tmp_path: Path) -> None:
    model = to_write(
        save_model("linear"),
        tmp_path,
        instances=3,
        parameters={"execution_mode": "1", "mine": "x"},
        queue_delay_us=200,
        preferred_batch_sizes=(4, 2, 4),
        priority_levels=4,
        max_queue_size=10,
        response_cache=True,
    )
    config = config_of(model)
    assert config.instance_groups == (InstanceGroup(3, "KIND_CPU"),)
    assert config.parameters["execution_mode"] == "1"
    assert config.parameters["mine"] == "x"
    assert config.dynamic_batching == DynamicBatching((2, 4), 200, 4, 2, QueuePolicy(10, 0))
    assert server_options(parse(render(config)))[0].startswith("--cache-config=")


@pytest.mark.parametrize(
    ("serving", "complaint"),
    [
        ({"preferred_batch_sizes": (9,)}, "preferred"),
        ({"priority_levels": 2, "default_priority_level": 3}, "priority"),
        ({"default_priority_level": 1}, "priority"),
        ({"dynamic_batching": False, "queue_delay_us": 5}, "queue_delay_us"),
    ],
)
def test_settings_that_cannot_hold_are_refused(
    serving: dict[str, Any], complaint: str, save_model: SaveModel, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=complaint):
        config_of(to_write(save_model("linear"), tmp_path, **serving))


def test_batcher_settings_without_batches_are_refused(save_model: SaveModel, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="max_batch_size 0"):
        config_of(to_write(save_model("static_batch"), tmp_path, max_queue_size=4))


class TestWarmup:
    def test_sizes(self) -> None:
        assert warmup_batch_sizes(0) == (1,)
        assert warmup_batch_sizes(1) == (1,)
        assert warmup_batch_sizes(6) == (1, 2, 4, 6)
        assert warmup_batch_sizes(8) == (1, 2, 4, 8)

    def test_zeros_where_zero_is_a_legal_value(self, save_model: SaveModel, tmp_path: Path) -> None:
        config = config_of(to_write(save_model("tokens"), tmp_path))
        assert config.warmup_files == {}
        assert all(tensor.file is None for warmup in config.warmups for tensor in warmup.inputs)

    def test_a_file_within_the_range_where_zero_is_not(self, save_model: SaveModel, tmp_path: Path) -> None:
        model = to_write(save_model("tokens"), tmp_path, ranges={"ids": (7, 40)}, inputs={"ids": (3,)})
        config = config_of(model)
        assert config.warmup_files == {"input_0": struct.pack("<3q", 7, 7, 7)}
        assert config.warmups[0].inputs[0].file == "input_0"

    def test_strings_from_a_sample(self, save_model: SaveModel, tmp_path: Path) -> None:
        model = to_write(save_model("strings"), tmp_path)
        model = replace(model, sample={"word": np.array([["cät"]], dtype=object)})
        data = "cät".encode()
        assert config_of(model).warmup_files == {"input_0": struct.pack("<I", len(data)) + data}

    def test_full_dims_without_batching(self, save_model: SaveModel, tmp_path: Path) -> None:
        config = config_of(to_write(save_model("static_batch"), tmp_path))
        assert [(w.batch_size, w.inputs[0].dims) for w in config.warmups] == [(1, (2, 4))]

    def test_off(self, save_model: SaveModel, tmp_path: Path) -> None:
        assert config_of(to_write(save_model("linear"), tmp_path, warmup=False)).warmups == ()


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


class TestText:
    @given(ANY_TEXT)
    def test_no_text_leaves_its_literal(self, text: str) -> None:
        parsed = parse(f"name: {quote(text)} max_batch_size: 7")
        assert (parsed.name, parsed.max_batch_size) == (text, 7)

    @given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
    def test_tensor_names_and_parameters_survive(self, tensor: str, key: str, value: str) -> None:
        config = replace(
            TINY, inputs=(TensorConfig(tensor, "TYPE_FP32", (1,)),), parameters={key: value}, name=value
        )
        assert_same(parse(render(config)), config)

    def test_lone_surrogates_are_refused(self) -> None:
        with pytest.raises(SpecError, match="Unicode"):
            quote("\ud800")


class TestTemplates:
    def test_a_template_of_ones_own(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.j2"
        path.write_text('name: {{ config.name | quote }}\nbackend: "python"\n', encoding="utf-8")
        assert render(TINY, path) == 'name: "tiny"\nbackend: "python"\n'

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("name: 1\n{{ config.nope }}\n", 2),
            ("a\nb\n{% for %}\n", 3),
            ("{{ nothing }}", 1),
            ("\n\n{{ config.name | nofilter }}", 3),
            ("\n{{ config.max_batch_size / 0 }}", 2),
        ],
    )
    def test_errors_name_the_line(self, text: str, line: int, tmp_path: Path) -> None:
        path = tmp_path / "mine.j2"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SpecError, match=f"line {line}"):
            render(TINY, path)

    def test_a_missing_template(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="does not exist"):
            render(TINY, tmp_path / "none.j2")

    def test_a_template_that_is_not_text(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.j2"
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(SpecError):
            render(TINY, path)

    def test_ours_is_found(self) -> None:
        assert default_template().name == "config.pbtxt.j2"

    def test_what_is_no_config_is_explained_with_its_place(self) -> None:
        with pytest.raises(RepositoryError, match=r"2:1"):
            parse('name: "a"\nnonsense: 1\n')


BROKEN = {
    "backend": ("onnxruntime", "clear_backend"),
    "max-batch-size": ("onnxruntime", "max_batch_size: -1"),
    "dims": ("onnxruntime", 'input { name: "z" data_type: TYPE_FP32 dims: [ 0 ] }'),
    "reshape": ("onnxruntime", 'output { name: "z" dims: [ 2 ] reshape { shape: [ 3 ] } }'),
    "unique-tensors": ("onnxruntime", 'input { name: "x" dims: [ 1 ] }'),
    "preferred-batch-size": ("onnxruntime", "dynamic_batching { preferred_batch_size: [ 9 ] }"),
    "priority": ("onnxruntime", "dynamic_batching { priority_levels: 3 }"),
    "priority-without-levels": ("onnxruntime", "dynamic_batching { default_priority_level: 3 }"),
    "instance-group": ("onnxruntime", "instance_group { kind: KIND_CPU gpus: [ 0 ] }"),
    "versions": ("onnxruntime", "version_policy { specific { } }"),
    "warmup": ("onnxruntime", 'model_warmup { name: "w" batch_size: 9 }'),
    "random-warmup": (
        "onnxruntime",
        """model_warmup { name: "w" batch_size: 1
             inputs { key: "x" value { data_type: TYPE_FP32 dims: 3 random_data: true } } }""",
    ),
    "tensorrt-only": ("onnxruntime", "instance_group { profile: '0' }"),
    "tensorrt-gpu": ("tensorrt", "instance_group { kind: KIND_CPU }"),
    "tensorrt-profile": ("tensorrt", "instance_group { kind: KIND_GPU profile: 'zero' }"),
    "tensorrt-graphs": ("tensorrt", "optimization { cuda { graph_spec { batch_size: 16 } } }"),
    "onnxruntime-parameters": (
        "onnxruntime",
        'parameters { key: "intra_op_thread_count" value { string_value: "two" } }',
    ),
    "onnxruntime-optional": ("onnxruntime", 'input { name: "z" dims: [ 1 ] optional: true }'),
    "onnxruntime-accelerators": (
        "onnxruntime",
        """instance_group { kind: KIND_GPU }
           optimization { execution_accelerators { gpu_execution_accelerator { name: "trt" } } }""",
    ),
    "cc-model-filenames": ("tensorrt", 'cc_model_filenames { key: "90" value: "model.cc90.plan" }'),
    "onnxruntime-level": ("onnxruntime", "optimization { graph { level: 7 } }"),
}


class TestRules:
    def base(self, backend: str) -> Any:
        tensor = 'input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }'
        return parse(f'name: "m" backend: "{backend}" max_batch_size: 8 {tensor}')

    @pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
    def test_a_plain_config_breaks_none(self, backend: str) -> None:
        assert not check_rules(self.base(backend))

    @pytest.mark.parametrize("rule", sorted(BROKEN))
    def test_each_rule_is_broken_by_its_example_alone(self, rule: str) -> None:
        backend, addition = BROKEN[rule]
        message = self.base(backend)
        if addition == "clear_backend":
            message.ClearField("backend")
        elif addition.startswith("max_batch_size"):
            message.max_batch_size = -1
        else:
            text_format.Merge(addition, message)
        violations = check_rules(message)
        assert {violation.rule for violation in violations} == {rule}
        assert all(violation.message and violation.fix for violation in violations)

    def test_every_rule_has_an_example_and_is_documented(self) -> None:
        assert {rule.name for rule in RULES} == set(BROKEN)
        page = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
        for rule in RULES:
            assert f"| `{rule.name}` | {rule.origin} | {rule.summary} |" in page

    def test_traits_of_an_engine_reach_the_text(self, save_model: SaveModel, tmp_path: Path) -> None:
        model = to_write(save_model("linear"), tmp_path)
        traits = ServingTraits("onnxruntime", "model.onnx", "KIND_GPU", {"a": "b"}, "graph { level: 2 }")
        message = parse(render(config_of(replace(model, traits=traits))))
        assert message.optimization.graph.level == 2
        assert message.parameters["a"].string_value == "b"
        assert message.instance_group[0].kind == 1
