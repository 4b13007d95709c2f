"""The writer: contents, versions, foreign content, refusals."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import models
from tests.conftest import SaveModel
from tests.repository_models import built, other_linear, snapshot, to_write
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.errors import InputError, ModelError, RepositoryError, SpecError
from tritongen.repository.manifest import Proof, Server, read_manifest, record_proofs
from tritongen.repository.swap import staging_folder
from tritongen.repository.targets import embedded
from tritongen.repository.verify import Place, verify_model
from tritongen.repository.writer import ModelToWrite, write_model
from tritongen.runs.events import Event
from tritongen.spec import Precision


class TestContents:
    def test_everything_is_there_and_listed(self, linear: ModelToWrite, repository: Path) -> None:
        written = write_model(
            repository, replace(linear, reference={"input/x": np.zeros((1, 4), np.float32)})
        )
        assert written.folder == repository / "tiny"
        assert written.version == 1
        manifest = read_manifest(written.folder)
        assert manifest == written.manifest
        on_disk = set(snapshot(written.folder))
        assert on_disk == {*manifest.files, "manifest.json"}
        assert set(manifest.files) == {"config.pbtxt", "1/model.onnx", "reference.npz"}
        assert manifest.server is None
        assert manifest.inputs[0].model_dump() == {
            "name": "x",
            "dtype": "FP32",
            "dims": (4,),
            "min_shape": (4,),
            "opt_shape": (4,),
            "max_shape": (4,),
            "value_range": None,
        }
        assert list(repository.iterdir()) == [written.folder]
        assert not staging_folder(repository).exists()

    def test_anyone_may_read_it_whatever_the_umask(self, linear: ModelToWrite, repository: Path) -> None:
        before = os.umask(0o077)
        try:
            folder = write_model(repository, linear).folder
        finally:
            os.umask(before)
        assert {mode for _, mode in snapshot(folder).values()} == {0o644}
        folders = (p for p in (repository, folder, *folder.iterdir()) if p.is_dir())
        assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o755}

    def test_external_data_keeps_its_name(
        self, save_model: SaveModel, tmp_path: Path, repository: Path
    ) -> None:
        model = to_write(save_model("convolutional", external=True), tmp_path / "runs")
        folder = write_model(repository, model).folder
        assert {"1/model.onnx", "1/convolutional.onnx.data"} <= set(read_manifest(folder).files)
        assert not list(verify_model(folder, Place(embedded())))

    def test_artifacts_are_copies(self, linear: ModelToWrite, repository: Path) -> None:
        folder = write_model(repository, linear).folder
        ours, theirs = folder / "1/model.onnx", linear.winner.folder / "model.onnx"
        assert ours.stat().st_ino != theirs.stat().st_ino

    def test_an_artifact_that_changed_since_its_trial_is_refused(
        self, linear: ModelToWrite, repository: Path
    ) -> None:
        path = linear.winner.folder / "model.onnx"
        proto = onnx.load(path)
        proto.doc_string = "changed"
        onnx.save_model(proto, path)
        with pytest.raises(RepositoryError, match="changed after"):
            write_model(repository, linear)
        assert not list(repository.iterdir())

    def test_shapes_are_those_that_the_engine_reports(self, tmp_path: Path, repository: Path) -> None:
        proto = models.relu()
        proto.graph.output[0].CopyFrom(models.value("y", ["anything", "undeclared"]))
        model = to_write(models.save(proto, tmp_path / "relu.onnx"), tmp_path / "runs")
        assert write_model(repository, model).manifest.outputs[0].dims == (4,)

    def test_ir_version_is_lowered_for_the_target(self, tmp_path: Path, repository: Path) -> None:
        proto = models.linear()
        proto.ir_version = 10
        model = to_write(models.save(proto, tmp_path / "linear.onnx"), tmp_path / "runs")
        model = replace(model, spec=model.spec.model_copy(update={"target": "24.04"}))
        manifest = write_model(repository, model).manifest
        assert manifest.ir_version == 9
        assert "from 10 down to 9" in manifest.notes[0]

    def test_an_opset_beyond_the_target_is_refused(self, tmp_path: Path, repository: Path) -> None:
        proto = models.linear()
        proto.opset_import[0].version = 21
        model = to_write(models.save(proto, tmp_path / "linear.onnx"), tmp_path / "runs")
        model = replace(model, spec=model.spec.model_copy(update={"target": "24.04"}))
        with pytest.raises(ModelError, match="cannot be served") as caught:
            write_model(repository, model)
        assert "opset 21" in str(caught.value.found)
        assert not list(repository.iterdir())

    @pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", 'quo"te', "x" * 300])
    def test_names_that_are_no_folder_are_refused(
        self, name: str, linear: ModelToWrite, repository: Path
    ) -> None:
        with pytest.raises(SpecError):
            write_model(repository, replace(linear, name=name))
        assert not repository.exists()


class TestRunnersUp:
    def test_lie_beside_the_winner(self, linear: ModelToWrite, repository: Path, tmp_path: Path) -> None:
        other = models.save(models.linear(seed=3), tmp_path / "int8.onnx")
        runner_up = built(other, tmp_path / "runs/int8", Precision.INT8)
        folder = write_model(repository, replace(linear, runners_up=[runner_up])).folder
        manifest = read_manifest(folder)
        assert [kept.file for kept in manifest.runners_up] == ["model.int8.onnx"]
        assert (folder / "1/model.int8.onnx").read_bytes() == other.read_bytes()

    def test_two_of_one_precision_are_told_apart(
        self, linear: ModelToWrite, repository: Path, tmp_path: Path
    ) -> None:
        kept = []
        for seed in (3, 4):
            candidate = built(
                models.save(models.linear(seed=seed), tmp_path / f"{seed}.onnx"),
                tmp_path / f"runs/{seed}",
                Precision.INT8,
            )
            trial = candidate.trial
            renamed = trial.candidate.model_copy(update={"id": f"int8-{seed}"})
            kept.append(replace(candidate, trial=trial.model_copy(update={"candidate": renamed})))
        manifest = write_model(repository, replace(linear, runners_up=kept)).manifest
        assert [one.file for one in manifest.runners_up] == ["model.int8.onnx", "model.int8-4.onnx"]

    def test_other_shapes_are_left_out_with_a_reason(
        self, linear: ModelToWrite, repository: Path, tmp_path: Path
    ) -> None:
        path = models.save(models.linear(outputs=5), tmp_path / "wider.onnx")
        wider = built(path, tmp_path / "wider", Precision.INT8)
        events: list[Event] = []
        written = write_model(repository, replace(linear, runners_up=[wider]), events=events.append)
        assert written.manifest.runners_up == ()
        assert [e.message for e in events if e.status == "warning" and "other shapes" in e.message]

    def test_weights_files_of_one_name_do_not_meet(
        self, save_model: SaveModel, repository: Path, tmp_path: Path
    ) -> None:
        model = to_write(save_model("linear", external=True), tmp_path / "runs")
        other = models.save(models.linear(seed=9), tmp_path / "other/linear.onnx", external=True)
        runner_up = built(other, tmp_path / "runs/int8", Precision.INT8)
        folder = write_model(repository, replace(model, runners_up=[runner_up])).folder
        assert {path.name for path in (folder / "1").iterdir()} == {
            "model.onnx",
            "linear.onnx.data",
            "model.int8.onnx",
            "model.int8.linear.onnx.data",
        }
        x = np.arange(4, dtype=np.float32)[None]
        for kept, source in (("model", model.winner.folder), ("model.int8", runner_up.folder)):
            paths = (folder / f"1/{kept}.onnx", source / "model.onnx")
            with OnnxRuntimeRunner(paths[0]) as ours, OnnxRuntimeRunner(paths[1]) as theirs:
                assert np.array_equal(ours.infer({"x": x})["y"], theirs.infer({"x": x})["y"])
        assert not list(verify_model(folder, Place(embedded())))


class TestVersions:
    def test_an_unchanged_model_keeps_its_number(self, linear: ModelToWrite, repository: Path) -> None:
        first = write_model(repository, linear)
        again = write_model(repository, linear)
        assert (first.version, again.version) == (1, 1)
        assert snapshot(first.folder).keys() == snapshot(again.folder).keys()

    def test_older_versions_stay_as_asked(self, repository: Path, tmp_path: Path) -> None:
        for seed in (1, 2, 3):
            written = write_model(repository, other_linear(tmp_path, seed, keep_versions=2))
        assert written.version == 3
        assert [kept.version for kept in written.manifest.kept_versions] == [3, 2]
        assert {path.name for path in written.folder.iterdir() if path.is_dir()} == {"2", "3"}
        first_left = models.save(models.linear(seed=2), tmp_path / "expected.onnx")
        assert (written.folder / "2/model.onnx").read_bytes() == first_left.read_bytes()
        assert not list(verify_model(written.folder, Place(embedded())))

    def test_one_is_the_default_and_numbers_go_on(self, repository: Path, tmp_path: Path) -> None:
        write_model(repository, other_linear(tmp_path, 1))
        written = write_model(repository, other_linear(tmp_path, 2))
        assert [kept.version for kept in written.manifest.kept_versions] == [2]
        assert not (written.folder / "1").exists()

    def test_a_config_that_does_not_fit_the_old_ones_says_why(self, repository: Path, tmp_path: Path) -> None:
        write_model(repository, other_linear(tmp_path, 1, keep_versions=3))
        events: list[Event] = []
        changed = other_linear(tmp_path, 2, keep_versions=3, max_batch_size=16)
        written = write_model(repository, changed, events=events.append)
        assert written.replaced is not None
        assert "max_batch_size in config.pbtxt changed from 4 to 16" in written.replaced
        assert [kept.version for kept in written.manifest.kept_versions] == [2]
        assert any("max_batch_size" in event.message for event in events if event.status == "warning")

    def test_proofs_stay_only_while_what_they_prove_does(
        self, linear: ModelToWrite, repository: Path, tmp_path: Path
    ) -> None:
        manifest = write_model(repository, linear).manifest
        server = Server(kind="embedded", version="2.51.0")
        proof = Proof(
            slo="p99<=20ms",
            outcome="PASS",
            summary="p99 12 ms",
            server=server,
            machine=manifest.machine,
            config_digest=manifest.files["config.pbtxt"].digest,
            taken="2026-01-01T00:00:00+00:00",
        )
        record_proofs(repository / "tiny", server, (proof,))
        assert record_proofs(repository / "tiny", server, (proof,)).proofs == (proof,)
        assert write_model(repository, linear).manifest.proofs == (proof,)
        assert write_model(repository, other_linear(tmp_path, 5)).manifest.proofs == ()


class TestForeignContent:
    def test_a_folder_without_a_manifest_is_not_touched(self, linear: ModelToWrite, repository: Path) -> None:
        folder = repository / "tiny"
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text("mine", encoding="utf-8")
        with pytest.raises(RepositoryError, match="not written by tritongen"):
            write_model(repository, linear)
        assert (folder / "config.pbtxt").read_text(encoding="utf-8") == "mine"
        assert write_model(repository, linear, force=True).version == 2

    def test_an_edited_config_is_not_touched(self, linear: ModelToWrite, repository: Path) -> None:
        config = write_model(repository, linear).folder / "config.pbtxt"
        config.write_text(config.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
        with pytest.raises(RepositoryError, match="changed by hand"):
            write_model(repository, linear)
        assert "# mine" in config.read_text(encoding="utf-8")
        write_model(repository, linear, force=True)
        assert "# mine" not in config.read_text(encoding="utf-8")

    def test_a_number_is_used_once_even_by_force(self, repository: Path, tmp_path: Path) -> None:
        for seed in (1, 2):
            folder = write_model(repository, other_linear(tmp_path, seed)).folder
        (folder / "config.pbtxt").write_text("mine", encoding="utf-8")
        assert write_model(repository, other_linear(tmp_path, 3), force=True).version == 3

    def test_a_foreign_version_is_not_touched(self, linear: ModelToWrite, repository: Path) -> None:
        folder = write_model(repository, linear).folder
        (folder / "9").mkdir()
        (folder / "9/model.onnx").write_bytes(b"mine")
        with pytest.raises(RepositoryError, match="version folders"):
            write_model(repository, linear)

    def test_labels_and_notes_move_along(
        self, linear: ModelToWrite, repository: Path, tmp_path: Path
    ) -> None:
        folder = write_model(repository, linear).folder
        (folder / "labels.txt").write_text("cat\ndog\n", encoding="utf-8")
        write_model(repository, other_linear(tmp_path))
        assert (folder / "labels.txt").read_text(encoding="utf-8") == "cat\ndog\n"

    def test_links_move_along_as_links(self, linear: ModelToWrite, repository: Path, tmp_path: Path) -> None:
        folder = write_model(repository, linear).folder
        (tmp_path / "labels").mkdir()
        targets = {"file": "config.pbtxt", "folder": str(tmp_path / "labels"), "nothing": "nowhere"}
        for name, target in targets.items():
            (folder / name).symlink_to(target)
        os.mkfifo(folder / "pipe")
        write_model(repository, other_linear(tmp_path))
        assert {name: str((folder / name).readlink()) for name in targets} == targets
        assert (folder / "pipe").is_fifo()

    @pytest.mark.parametrize("kind", ["file", "link"])
    def test_what_is_no_folder_is_in_the_way(
        self, kind: str, linear: ModelToWrite, repository: Path, tmp_path: Path
    ) -> None:
        repository.mkdir()
        if kind == "file":
            (repository / "tiny").write_bytes(b"x")
        else:
            (repository / "tiny").symlink_to(tmp_path)
        with pytest.raises(RepositoryError, match="in the way"):
            write_model(repository, linear, force=True)

    def test_a_manifest_of_another_form_is_not_touched(self, linear: ModelToWrite, repository: Path) -> None:
        path = write_model(repository, linear).folder / "manifest.json"
        path.write_text('{"schema": "tritongen/manifest/99"}', encoding="utf-8")
        with pytest.raises(RepositoryError, match="manifest"):
            write_model(repository, linear)


class TestRefusals:
    def test_a_broken_rule_leaves_everything_as_it_was(
        self, linear: ModelToWrite, repository: Path, tmp_path: Path
    ) -> None:
        folder = write_model(repository, linear).folder
        before = snapshot(folder)
        raw = 'model_warmup { name: "w" batch_size: 99 }'
        with pytest.raises(SpecError, match="would not work in Triton"):
            write_model(repository, other_linear(tmp_path, raw=raw))
        assert snapshot(folder) == before
        assert not staging_folder(repository).exists()

    def test_raw_additions_that_are_no_config(self, tmp_path: Path, repository: Path) -> None:
        with pytest.raises(SpecError, match=r"tiny\.serving\.raw, line 2: not a Triton model configuration"):
            write_model(repository, other_linear(tmp_path, raw="# mine\nnonsense {"))

    def test_raw_additions_that_name_a_file_that_is_not_there(self, tmp_path: Path, repository: Path) -> None:
        with pytest.raises(SpecError, match="names a file that its version lacks"):
            write_model(repository, other_linear(tmp_path, raw='default_model_filename: "model.int8.onnx"'))
        assert not any(repository.iterdir())

    def test_a_template_that_names_another_model(self, tmp_path: Path, repository: Path) -> None:
        template = tmp_path / "t.j2"
        template.write_text('name: "other" backend: "onnxruntime"', encoding="utf-8")
        with pytest.raises(SpecError, match="names another model"):
            write_model(repository, other_linear(tmp_path, template=str(template)))

    def test_the_repository_is_a_file(self, linear: ModelToWrite, repository: Path) -> None:
        repository.write_bytes(b"x")
        with pytest.raises(InputError, match="could not be written"):
            write_model(repository, linear)
