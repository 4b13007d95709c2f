"""TensorRT plans in the repository: config, manifest, several GPUs, what verify says without a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.conftest import SaveModel
from tests.repository_models import to_write
from tritongen.engines.tensorrt import TensorRTEngine
from tritongen.engines.tensorrt.profiles import profiles_per_batch_size, to_text, wide_profile
from tritongen.errors import InputError, RequirementError
from tritongen.files import digest_files
from tritongen.repository.config_text import parse
from tritongen.repository.findings import Finding
from tritongen.repository.manifest import read_manifest
from tritongen.repository.plan_match import check_plans
from tritongen.repository.plan_report import describe
from tritongen.repository.rules import check_rules
from tritongen.repository.targets import embedded
from tritongen.repository.verify import Place, verify_model
from tritongen.repository.writer import BuiltCandidate, ModelToWrite, write_model
from tritongen.runs.records import Artifact, Candidate
from tritongen.spec import Precision

H100 = {
    "tensorrt": "8.6.0",
    "cuda_driver": "13.0",
    "driver": "580.1",
    "gpu": "H100",
    "compute_capability": "9.0",
}
L4 = {**H100, "gpu": "L4", "compute_capability": "8.9"}


def plan_to_write(
    model: Path,
    runs: Path,
    versions: dict[str, str],
    *,
    batch_sizes: Sequence[int] = (1, 4),
    instances: int = 1,
    plan: bytes | None = None,
    plugins: Mapping[str, bytes] | None = None,
    version_compatible: bool = False,
    **serving: Any,
) -> ModelToWrite:
    """What `build --engine tensorrt` would hand to the writer; without `plan` its bytes are made up."""
    base = to_write(model, runs / "onnx", **serving)
    largest = base.selection.max_batch_size
    shaped = TensorRTEngine().with_shapes(base.inputs, largest)
    profiles = (
        profiles_per_batch_size(base.inputs, batch_sizes) if largest else [wide_profile(base.inputs, 0)]
    )
    folder = runs / versions["compute_capability"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.plan").write_bytes(plan or f"a plan for {sorted(versions.items())}, {runs}".encode())
    for name, content in (plugins or {}).items():
        (folder / name).write_bytes(content)
    artifact = Artifact(
        file="model.plan",
        extra_files=tuple(plugins or ()),
        digest=digest_files([folder / "model.plan", *(folder / name for name in plugins or ())]),
        size_bytes=(folder / "model.plan").stat().st_size,
        build_seconds=1.0,
        versions=versions,
        details={
            "profiles": to_text(profiles),
            "bindings": [
                {"name": spec.name, "dtype": narrowed(spec.dtype.name), "input": is_input,
                 "shape": [d if isinstance(d, int) else -1 for d in spec.shape]}
                for is_input, specs in ((True, base.graph.inputs), (False, base.graph.outputs))
                for spec in specs
            ],
            **({"plugins": list(plugins)} if plugins else {}),
            **({"version_compatible": True} if version_compatible else {}),
        },
    )  # fmt: skip
    candidate = Candidate(id="tensorrt-fp16", engine="tensorrt", precision=Precision.FP16)
    trial = base.winner.trial.model_copy(update={"candidate": candidate, "artifact": artifact})
    selection = base.selection.model_copy(update={"winner": candidate.id, "instances": instances})
    return replace(
        base,
        selection=selection,
        winner=BuiltCandidate(trial, folder),
        traits=shaped.serving_traits(artifact, {"cuda_graph": True}),
    )


def narrowed(dtype: str) -> str:
    """As 8.6 takes it."""
    return "int32" if dtype == "int64" else dtype


def config_of(folder: Path) -> Any:
    return parse((folder / "config.pbtxt").read_text())


def written(repository: Path, model: ModelToWrite) -> Path:
    write_model(repository, model)
    return repository / model.name


def test_one_plan_has_the_usual_name_and_the_manifest_knows_what_built_it(
    save_model: SaveModel, tmp_path: Path
) -> None:
    folder = written(tmp_path / "r", plan_to_write(save_model("linear"), tmp_path / "a", H100))
    config, manifest = config_of(folder), read_manifest(folder)
    assert (folder / "1" / "model.plan").is_file()
    assert not config.cc_model_filenames
    assert [(p.file, p.compute_capability, p.versions) for p in manifest.plans] == [
        ("model.plan", "9.0", H100)
    ]
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert [spec.batch_size for spec in config.optimization.cuda.graph_spec] == [1, 2, 4]
    assert check_rules(config) == ()
    assert list(check_plans(folder, config, manifest)) == []


def test_warm_up_sends_what_the_plan_takes(save_model: SaveModel, tmp_path: Path) -> None:
    model = plan_to_write(
        save_model("tokens"), tmp_path / "a", H100, inputs={"ids": (3,)}, ranges={"ids": (7, 40)}
    )
    folder = written(tmp_path / "r", model)
    config = config_of(folder)
    types = config.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    assert types[config.input[0].data_type].name == "TYPE_INT32"
    for warmup in config.model_warmup:
        assert types[warmup.inputs["ids"].data_type].name == "TYPE_INT32"
    assert (folder / "warmup" / "input_0").stat().st_size == 3 * 4
    assert read_manifest(folder).inputs[0].dtype == "INT32"


def test_a_second_gpu_adds_its_plan_beside_the_first(save_model: SaveModel, tmp_path: Path) -> None:
    repository, model = tmp_path / "r", save_model("linear")
    first = (
        written(repository, plan_to_write(model, tmp_path / "a", H100)) / "1" / "model.plan"
    ).read_bytes()
    folder = written(repository, plan_to_write(model, tmp_path / "b", L4, instances=2))
    config, manifest = config_of(folder), read_manifest(folder)
    assert dict(config.cc_model_filenames) == {"8.9": "model.cc89.plan", "9.0": "model.cc90.plan"}
    assert config.default_model_filename == manifest.model_file == "model.cc89.plan"
    assert (folder / "2" / "model.cc90.plan").read_bytes() == first
    assert [plan.file for plan in manifest.plans] == ["model.cc89.plan", "model.cc90.plan"]
    assert {f"2/{plan.file}" for plan in manifest.plans} <= set(manifest.files)
    assert any("instance count 2" in note for note in manifest.notes)
    assert list(check_plans(folder, config, manifest)) == []

    again = written(repository, plan_to_write(model, tmp_path / "c", H100))
    assert dict(config_of(again).cc_model_filenames) == {"8.9": "model.cc89.plan", "9.0": "model.cc90.plan"}
    assert (again / "3" / "model.cc90.plan").read_bytes() != first
    assert [plan.compute_capability for plan in read_manifest(again).plans] == ["9.0", "8.9"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 1}, "another ONNX file"),
        ({"tensorrt": "10.3.0"}, "one server has one TensorRT"),
        ({"batch_sizes": (4,)}, "other optimization profiles"),
    ],
)
def test_a_plan_that_cannot_be_served_beside_goes_with_the_reason(
    save_model: SaveModel, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    repository = tmp_path / "r"
    written(repository, plan_to_write(save_model("linear"), tmp_path / "a", H100))
    (tmp_path / "other").mkdir()
    model = models.save(models.linear(seed=change.get("seed", 0)), tmp_path / "other" / "linear.onnx")
    versions = {**L4, "tensorrt": change.get("tensorrt", L4["tensorrt"])}
    sizes = change.get("batch_sizes", (1, 4))
    folder = written(repository, plan_to_write(model, tmp_path / "b", versions, batch_sizes=sizes))
    manifest = read_manifest(folder)
    assert not config_of(folder).cc_model_filenames
    assert [plan.file for plan in manifest.plans] == ["model.plan"]
    assert any(reason in note for note in manifest.notes), manifest.notes


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        ({"version_compatible": True}, {}, "version-compatible and this build is not"),
        ({"plugins": {"ops.so": b"1"}}, {}, "needs the plugin ops.so"),
        ({"plugins": {"ops.so": b"1"}}, {"plugins": {"ops.so": b"2"}}, "another ops.so"),
        ({"plugins": {"ops.so": b"1"}}, {"plugins": {"ops.so": b"1", "more.so": b"2"}}, None),
        ({}, {"version_compatible": True}, None),
    ],
)
def test_a_plan_stays_only_where_the_server_is_told_what_it_needs(
    save_model: SaveModel, tmp_path: Path, before: dict[str, Any], now: dict[str, Any], reason: str | None
) -> None:
    repository, model = tmp_path / "r", save_model("linear")
    written(repository, plan_to_write(model, tmp_path / "a", H100, **before))
    folder = written(repository, plan_to_write(model, tmp_path / "b", L4, **now))
    manifest = read_manifest(folder)
    assert [plan.compute_capability for plan in manifest.plans] == ["8.9", "9.0"][: 1 if reason else 2]
    assert any(reason in note for note in manifest.notes) if reason else not manifest.notes
    files = {Path(path).name for path in manifest.files if path.startswith("2/")}
    assert files - {plan.file for plan in manifest.plans} == set(now.get("plugins", ()))


def test_verify_names_what_does_not_fit_together(save_model: SaveModel, tmp_path: Path) -> None:
    repository, model = tmp_path / "r", save_model("linear")
    written(repository, plan_to_write(model, tmp_path / "a", H100))
    folder = written(repository, plan_to_write(model, tmp_path / "b", L4))
    manifest = read_manifest(folder)

    def said(**changes: Any) -> list[Finding]:
        config = config_of(folder)
        if "capability" in changes:
            config.cc_model_filenames["9.0"] = "model.cc89.plan"
        if "profile" in changes:
            config.instance_group[0].profile.append("7")
        if "first_only" in changes:
            config.instance_group[0].ClearField("profile")
        return list(check_plans(folder, config, manifest))

    assert "was built for them" in said(capability=1)[0].message
    assert "names profile 7" in said(profile=1)[0].message
    first_only = said(first_only=1)
    assert "batches of up to 1" in first_only[0].message
    assert any("graph_spec of batch 4" in f.message for f in first_only)
    (folder / "2" / "model.cc90.plan").unlink()
    (missing,) = said()
    assert "9.0 have no plan" in missing.why


def test_inspect_of_a_plan_needs_no_gpu_where_a_manifest_knows_it(
    save_model: SaveModel, tmp_path: Path
) -> None:
    folder = written(tmp_path / "r", plan_to_write(save_model("linear"), tmp_path / "a", H100))
    plan = folder / "1" / "model.plan"
    known = describe(plan)
    assert (known.source, known.unchanged) == ("manifest", True)
    rows = dict(known.rows())
    assert rows["built for"] == "H100, compute capability 9.0"
    assert "tensorrt 8.6.0" in rows["built with"]
    assert rows["profile 1"].startswith("x=2x4:4x4:4x4")
    plan.write_bytes(b"another")
    assert "CHANGED" in dict(describe(plan).rows())["file"]


def test_a_plan_that_nobody_knows_is_not_guessed_at(tmp_path: Path) -> None:
    if TensorRTEngine().unavailable_reason() is None:
        pytest.skip("there is a GPU")
    (tmp_path / "model.plan").write_bytes(b"what is this")
    with pytest.raises(RequirementError, match="nothing here can tell"):
        describe(tmp_path / "model.plan")
    with pytest.raises(InputError, match="no plan at"):
        describe(tmp_path / "none.plan")


def test_verify_of_the_folder_says_what_this_machine_lacks(save_model: SaveModel, tmp_path: Path) -> None:
    if TensorRTEngine().unavailable_reason() is None:
        pytest.skip("there is a GPU")
    folder = written(tmp_path / "r", plan_to_write(save_model("linear"), tmp_path / "a", H100))
    findings = list(verify_model(folder, Place(embedded())))
    assert [f.check for f in findings if f.severity == "error"] == ["target"]
    assert "cannot serve a plan" in findings[0].message
