"""ONNX Runtime on a GPU, as far as that can be known without one: what is asked, refused, configured."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from tests.conftest import SaveModel
from tritongen.autotune.winner import find_engine
from tritongen.engines import VARIANTS, engine_name, load_engine
from tritongen.engines.onnxruntime import OnnxRuntimeEngine, providers
from tritongen.engines.onnxruntime.probe import explained_failure, start_failure
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.errors import BuildError, RequirementError, SpecError
from tritongen.graph import inspect_model
from tritongen.precision.recipe import Fp16Recipe
from tritongen.repository.config_text import parse
from tritongen.repository.provider_match import check_provider_here
from tritongen.repository.rules import check_rules
from tritongen.runs.records import Artifact
from tritongen.spec import Precision

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def artifact(provider: str, precision: str) -> Artifact:
    details = {"graph_optimization_level": "all", "execution_provider": provider, "precision": precision}
    return Artifact(
        file="model.onnx", digest="0", size_bytes=1, build_seconds=1.0, versions={}, details=details
    )


@pytest.mark.parametrize(
    ("engine", "provider", "found"),
    [
        ("onnxruntime", None, "onnxruntime"),
        ("auto", None, "auto"),
        ("onnxruntime", "cpu", "onnxruntime"),
        ("onnxruntime", "cuda", "onnxruntime-cuda"),
        ("auto", "tensorrt", "onnxruntime-tensorrt"),
    ],
)
def test_two_keys_name_one_engine(engine: str, provider: str | None, found: str) -> None:
    assert engine_name(engine, provider) == found


def test_tensorrt_itself_has_no_execution_provider() -> None:
    with pytest.raises(SpecError, match="belongs to ONNX Runtime"):
        engine_name("tensorrt", "cuda")


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has GPU providers")
@pytest.mark.parametrize("name", VARIANTS)
def test_without_the_provider_it_says_what_brings_it(name: str) -> None:
    with pytest.raises(RequirementError) as caught:
        find_engine(name)
    assert "onnxruntime-gpu" in str(caught.value.found)


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has GPU providers")
def test_a_session_that_fell_back_to_the_cpu_is_an_error(save_model: SaveModel) -> None:
    chain = providers.session_providers("cuda", Precision.FP32)
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(BuildError, match="could not start CUDAExecutionProvider"),
        OnnxRuntimeRunner(save_model("linear"), providers=chain),
    ):
        pass


def test_what_each_provider_gains_from(save_model: SaveModel) -> None:
    graph = inspect_model(save_model("convolutional"))
    for name in VARIANTS:
        engine = load_engine(name)
        assert engine.name == name
        assert list(engine.precisions()) == [Precision.FP32, Precision.FP16]
        assert len(engine.build_options(Precision.FP32, graph)) == 1
        assert [count for _, count in engine.runtimes(graph, 8)] == [1, 2]
    assert load_engine("onnxruntime-tensorrt").recipes(Precision.FP16) == ()
    (recipe,) = load_engine("onnxruntime-cuda").recipes(Precision.FP16)
    assert isinstance(recipe, Fp16Recipe)


@pytest.mark.parametrize(("precision", "mode"), [("fp32", "FP32"), ("fp16", "FP16")])
def test_the_config_names_the_accelerator(precision: str, mode: str) -> None:
    traits = OnnxRuntimeEngine("tensorrt").serving_traits(artifact("tensorrt", precision), {})
    assert (traits.backend, traits.instance_kind) == ("onnxruntime", "KIND_GPU")
    tensor = 'input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }'
    config = parse(
        f'name: "m" backend: "onnxruntime" {tensor} instance_group {{ kind: KIND_GPU }} '
        f"optimization {{ {traits.optimization} }}"
    )
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == mode
    assert not check_rules(config)


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has GPU providers")
def test_verify_says_that_this_machine_lacks_the_provider() -> None:
    (finding,) = check_provider_here("m", "onnxruntime-cuda")
    assert "onnxruntime-gpu" in finding.message
    assert list(check_provider_here("m", "onnxruntime")) == []


def test_fp32_on_cuda_leaves_tf32_out_in_trials_and_when_served() -> None:
    assert providers.session_providers("cuda", Precision.FP32)[0][1] == {"device_id": 0, "use_tf32": 0}
    assert providers.session_providers("cuda", Precision.FP16)[0][1] == {"device_id": 0}
    traits = OnnxRuntimeEngine("cuda").serving_traits(artifact("cuda", "fp32"), {})
    tensor = 'input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }'
    config = parse(
        f'name: "m" backend: "onnxruntime" {tensor} instance_group {{ kind: KIND_GPU }} '
        f"optimization {{ {traits.optimization} }}"
    )
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})
    assert not check_rules(config)


def test_fp16_on_cuda_needs_no_accelerator_and_artifacts_of_before_ran_on_the_cpu(tmp_path: Path) -> None:
    cuda = OnnxRuntimeEngine("cuda").serving_traits(artifact("cuda", "fp16"), {})
    assert (cuda.instance_kind, cuda.optimization) == ("KIND_GPU", "")
    old = artifact("cpu", "fp32").model_copy(update={"details": {"graph_optimization_level": "all"}})
    assert OnnxRuntimeEngine().serving_traits(old, {}).instance_kind == "KIND_CPU"


@pytest.mark.parametrize(
    ("provider", "library", "cure"),
    [
        ("tensorrt", "libnvinfer.so.10", "install TensorRT 10 "),
        ("cuda", "libcublasLt.so.13", "onnxruntime-gpu[cuda,cudnn]"),
        ("cuda", "libcuda.so.1", "NVIDIA's driver"),
    ],
)
def test_a_library_that_a_provider_lacks_is_named_with_what_brings_it(
    provider: str, library: str, cure: str
) -> None:
    log = (
        f"[E:onnxruntime:Default, provider_bridge_ort.cc:2430] Failed to load library /a/lib{provider}.so "
        f"with error: {library}: cannot open shared object file: No such file or directory\n"
        "Please install TensorRT libraries as mentioned\n"
    )
    said = explained_failure(provider, log)
    assert providers.NAMES[provider] in said
    assert f"{library} is not found" in said
    assert cure in said


def test_a_start_that_failed_with_every_library_there_is_told_in_onnx_runtimes_words() -> None:
    said = explained_failure("cuda", "a warning\nCUDA failure 100: no CUDA-capable device is detected\n")
    assert "CUDA failure 100" in said


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has GPU providers")
def test_the_probe_itself_tells_a_provider_that_starts_from_one_that_does_not() -> None:
    assert start_failure("cpu") is None
    assert "a session on CPUExecutionProvider" in str(start_failure("cuda"))
