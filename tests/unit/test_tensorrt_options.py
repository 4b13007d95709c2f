"""What the spec says of TensorRT's builder, version by version, and what plugins become."""

from __future__ import annotations

import _ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests import models
from tests.unit.test_tensorrt import IMAGE
from tritongen.cli import run
from tritongen.engines.tensorrt import TensorRTEngine, api
from tritongen.engines.tensorrt.building import Log, could_not_build, load_plugin
from tritongen.engines.tensorrt.calibrator import calibration_calls
from tritongen.engines.tensorrt.options import FRESH, builder_options, settings_of, variations
from tritongen.engines.tensorrt.profiles import Extent, from_text
from tritongen.engines.tensorrt.progress import Phases, monitor
from tritongen.engines.tensorrt.recipes import calibrator_recipe
from tritongen.errors import BuildError, RequirementError, SpecError
from tritongen.precision.int8 import write_samples
from tritongen.runs.events import Event
from tritongen.runs.records import Artifact, Candidate
from tritongen.spec import Precision, Spec, TensorRTSpec, override, spec_for_models

FP16 = Candidate(id="tensorrt-fp16", engine="tensorrt", precision=Precision.FP16)


def spec(**flags: Any) -> TensorRTSpec:
    return override(spec_for_models((Path("m.onnx"),)), **flags).models["m"].tensorrt


def version(number: str, *, flags: str = "", config: str = "", **more: Any) -> Any:
    """A stand-in for a TensorRT that has these builder flags and settings, and no more."""
    names = SimpleNamespace(**dict.fromkeys(flags.split(), 0))
    return SimpleNamespace(
        __version__=number,
        BuilderFlag=names,
        IBuilderConfig=SimpleNamespace(**dict.fromkeys(config.split(), 0)),
        NetworkDefinitionCreationFlag=SimpleNamespace(),
        TacticSource=SimpleNamespace(CUDNN=2, JIT_CONVOLUTIONS=4),
        **more,
    )


EIGHT = version(
    "8.6.0",
    flags="FP16 INT8 SPARSE_WEIGHTS REFIT VERSION_COMPATIBLE",
    config="builder_optimization_level max_aux_streams",
    HardwareCompatibilityLevel=0,
)


def test_words_of_the_spec_reach_the_builder(tmp_path: Path) -> None:
    said = spec(
        tensorrt={"optimization_level": "4", "refit": "yes", "workspace_mb": "512", "tiling": "FAST",
                  "tactic_sources": "CUDNN, JIT_CONVOLUTIONS"},
        plugins=(tmp_path / "a.so",),
    )  # fmt: skip
    candidate = FP16.model_copy(update={"options": builder_options(said)})
    settings = settings_of(candidate, Path("m.onnx"))
    assert (settings.optimization_level, settings.workspace_bytes) == (4, 512 << 20)
    assert (settings.refittable, settings.sparsity, settings.tiling_level) == (True, False, "FAST")
    assert settings.tactic_sources == ("CUDNN", "JIT_CONVOLUTIONS")
    assert settings.plugins == (tmp_path / "a.so",)
    assert builder_options(TensorRTSpec()) == {}
    assert settings_of(FP16, Path("m.onnx")).tactic_sources == api.OWN_SOURCES


def test_a_quick_search_builds_at_a_lower_level_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "load", lambda: EIGHT)

    def level(effort: str, **tensorrt: str) -> object:
        model = override(spec_for_models((Path("m.onnx"),)), tensorrt=tensorrt).models["m"]
        return TensorRTEngine().configured(model, effort).builder.get("optimization_level")

    assert (level("quick"), level("normal"), level("thorough")) == (2, None, None)
    assert level("quick", optimization_level="5") == 5


@pytest.mark.parametrize(
    ("objective", "tuned"),
    [("throughput", [1, 8]), ("latency@4", [1, 4, 8]), ("latency@8", [1, 8]), ("latency@16", [1, 8])],
)
def test_the_objectives_batch_size_gets_a_profile_of_its_own(
    monkeypatch: pytest.MonkeyPatch, objective: str, tuned: list[int]
) -> None:
    monkeypatch.setattr(api, "load", lambda: EIGHT)
    model = override(spec_for_models((Path("m.onnx"),)), objective=objective).models["m"]
    engine = TensorRTEngine().configured(model, "normal").with_shapes([IMAGE], 8)
    (options,) = engine.build_options(Precision.FP16, None)  # type: ignore[arg-type]
    assert [profile["x"].opt[0] for profile in from_text(str(options["profiles"]))] == tuned


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {"optimisation_level": "4"},
            ["--tensorrt", "'optimisation_level'", "did you mean 'optimization_level'"],
        ),
        ({"optimization_level": "9"}, ["--tensorrt"]),
        ({"tiling": "SOME"}, ["--tensorrt", "FAST"]),
        ({"refit": "perhaps"}, ["must be true or false"]),
    ],
)
def test_a_word_that_means_nothing_is_refused(flags: dict[str, str], words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        spec(tensorrt=flags)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_plugins_count_from_the_spec_file(tmp_path: Path) -> None:
    from tritongen.spec import load_spec

    (tmp_path / "tritongen.yaml").write_text("models: {a: {path: a.onnx, tensorrt: {plugins: [lib/p.so]}}}")
    found: Spec = load_spec(tmp_path / "tritongen.yaml")
    assert found.models["a"].tensorrt.plugins == (tmp_path / "lib" / "p.so",)


@pytest.mark.parametrize(
    ("option", "needed"), [("tiling", "10.8"), ("build_route", "11.1"), ("nothing_new", None)]
)
def test_what_a_version_lacks_is_said(option: str, needed: str | None) -> None:
    if needed is None:
        api.require(EIGHT, ["refit", "sparsity", "version_compatible", "hardware_compatible", "aux_streams"])
        return
    with pytest.raises(RequirementError, match=f"8.6.0 does not have tensorrt.{option}") as caught:
        api.require(EIGHT, [option])
    assert needed in str(caught.value)


def test_a_tactic_source_of_another_version_is_named() -> None:
    api.require_tactic_sources(EIGHT, ["CUDNN"])
    with pytest.raises(RequirementError, match="no tactic source 'CUBLAS'"):
        api.require_tactic_sources(EIGHT, ["CUBLAS"])


def variation_names(**changes: Any) -> list[str]:
    settings = {"best_of": 1, "thorough": False, "inputs": [IMAGE], "max_batch_size": 8, **changes}
    candidate = settings.pop("candidate", FP16)
    return [name for name, _ in variations(candidate, api.features(EIGHT), **settings)]


def test_the_leader_is_built_again_only_where_that_is_asked_for() -> None:
    assert variation_names() == []
    assert variation_names(best_of=3) == ["build2", "build3"]
    wide = ["level5", "timing8", "aux0", "one-profile", "profile-per-size"]
    assert variation_names(thorough=True, best_of=2) == ["build2", *wide]
    fixed = FP16.model_copy(update={"options": {"optimization_level": 2}})
    assert "level5" not in variation_names(thorough=True, candidate=fixed)
    assert variation_names(thorough=True, max_batch_size=1) == ["level5", "timing8", "aux0"]


def test_fresh_builds_differ_by_their_number_alone() -> None:
    assert dict(
        variations(FP16, api.features(EIGHT), best_of=2, thorough=False, inputs=(), max_batch_size=1)
    ) == {"build2": {FRESH: 2}}


def test_a_missing_plugin_is_named_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BuildError, match="cannot be loaded"):
        load_plugin(EIGHT, None, tmp_path / "none.so")
    monkeypatch.chdir(tmp_path)
    assert run(["build", "m.onnx", "--tensorrt", "level"]) != 0
    assert "KEY=VALUE" in capsys.readouterr().err


def test_a_plugin_library_is_loaded_and_its_operators_registered() -> None:
    registered = []
    trt = SimpleNamespace(init_libnvinfer_plugins=lambda _logger, name: registered.append(name))
    load_plugin(trt, None, Path(_ctypes.__file__))
    assert registered == [""]


def test_the_server_is_told_of_plugins_and_of_plans_that_carry_code() -> None:
    details: dict[str, Any] = {"bindings": [], "profiles": "", "plugins": ["a.so", "b.so"]}
    artifact = Artifact(file="model.plan", digest="0", size_bytes=1, build_seconds=1.0, versions={},
                        details={**details, "version_compatible": True})  # fmt: skip
    parameters = TensorRTEngine().serving_traits(artifact, {"cuda_graph": False}).parameters
    assert parameters == {"plugins": "a.so;b.so", "version_compatible": "true"}


def test_the_innermost_phase_is_told_with_how_far_the_outermost_is() -> None:
    now = [0.0]
    seen: list[Event] = []
    phases = Phases(seen.append, clock=lambda: now[0])
    phases.start("Building", 4)  # too early to say anything
    phases.step("Building", 0)
    now[0] = 1.0
    phases.start("Timing tactics", 100)
    now[0] = 2.0
    phases.finish("Timing tactics")
    phases.step("Building", 1)
    phases.finish("Building")
    phases.step("Building", 2)
    told = [(event.message, event.fraction) for event in seen]
    assert told == [("TensorRT: Timing tactics", 0.25), ("TensorRT: Building", 0.5)]
    assert monitor(EIGHT, phases) is None


def test_what_a_failed_build_lacked_is_named() -> None:
    lean = could_not_build(
        "m.onnx", Log([("ERROR", "Unable to load library: libnvinfer_lean.so.8.6.0")]), "8.6.0"
    )
    assert "tensorrt-lean==8.6.0" in str(lean)
    assert "smaller maximal batch size" in str(
        could_not_build("m.onnx", Log([("ERROR", "out of memory")]), "8.6.0")
    )


def test_the_calibrator_gets_the_samples_that_fit_the_first_profile(tmp_path: Path) -> None:
    recipe, out = calibrator_recipe(), tmp_path / "out" / "model.onnx"
    path = models.save(models.convolutional(), tmp_path / "m.onnx")
    assert calibration_calls(path, ()) is None
    calls = [{"images": np.full((1, 3, size, 8), i, np.float32)} for i, size in enumerate((8, 8, 9))]
    write_samples(path, calls, recipe, out, cache=tmp_path / "calibrator-1.txt")
    assert out.exists()
    one = Extent((1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8))
    found = calibration_calls(out, [{"images": one}])
    assert found is not None
    assert [call["images"].max() for call in found[0]] == [0.0, 1.0]
    larger = Extent((1, 3, 8, 8), (1, 3, 10, 8), (1, 3, 10, 8))
    with pytest.raises(BuildError, match="no sample that fits"):  # of this candidate, and of no other
        calibration_calls(out, [{"images": larger}])


def test_the_calibrator_gets_batches_of_what_the_profile_is_tuned_for(tmp_path: Path) -> None:
    recipe, out = calibrator_recipe(), tmp_path / "out" / "model.onnx"
    path = models.save(models.convolutional(), tmp_path / "m.onnx")
    calls = [{"x": np.full((1, 3, 8, 8), i, np.float32)} for i in range(5)]
    write_samples(path, calls, recipe, out, cache=tmp_path / "calibrator-1.txt")
    (candidate,) = (
        FP16.model_copy(update={"options": change})
        for name, change in variations(
            FP16, api.features(EIGHT), best_of=1, thorough=True, inputs=[IMAGE], max_batch_size=4
        )
        if name == "one-profile"
    )
    found, single = (
        calibration_calls(out, profiles)
        for profiles in (settings_of(candidate, out).profiles, [{"x": Extent(*[(1, 3, 8, 8)] * 3)}])
    )
    assert found is not None
    assert single is not None
    assert [list(call["x"][:, 0, 0, 0]) for call in found[0]] == [[0, 1, 2, 3], [4, 0, 1, 2]]
    assert len(single[0]) == 5
    assert found[1] == single[1]  # the ranges are the samples' own


def test_the_calibrators_cache_is_another_ones_where_other_samples_fit(tmp_path: Path) -> None:
    recipe, out = calibrator_recipe(), tmp_path / "out" / "model.onnx"
    path = models.save(models.convolutional(), tmp_path / "m.onnx")
    calls = [{"images": np.zeros((1, 3, size, 8), np.float32)} for size in (8, 9)]
    write_samples(path, calls, recipe, out, cache=tmp_path / "calibrator-1.txt")
    caches = set()
    for size in (8, 9):
        found = calibration_calls(out, [{"images": Extent(*[(1, 3, size, 8)] * 3)}])
        assert found is not None
        caches.add(found[1])
    assert len(caches) == 2
    assert all(cache.match("calibrator-1-*.txt") for cache in caches)
