"""verify: a clean repository is clean, and each kind of damage is found, explained and mended."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from tests import models
from tests.conftest import SaveModel
from tests.repository_models import MACHINE, to_write
from tritongen.cli import cli
from tritongen.errors import InputError
from tritongen.files import digest_files
from tritongen.repository.findings import Finding
from tritongen.repository.manifest import Manifest, Proof, Server, read_manifest
from tritongen.repository.swap import staging_folder
from tritongen.repository.targets import embedded, find_target
from tritongen.repository.verify import Place, verify_model, verify_repository
from tritongen.repository.writer import write_model
from tritongen.runs.store import write_record

HERE = Place(embedded(), MACHINE)


def edit_config(folder: Path, change: Callable[[str], str]) -> None:
    """Change config.pbtxt and let the manifest agree, so that only what the change means is found."""
    path = folder / "config.pbtxt"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    relist(folder, "config.pbtxt")


def relist(folder: Path, name: str) -> None:
    manifest = read_manifest(folder)
    entry = manifest.files[name].model_copy(
        update={"digest": digest_files([folder / name]), "size_bytes": (folder / name).stat().st_size}
    )
    update(folder, files={**manifest.files, name: entry})


def update(folder: Path, **changes: Any) -> Manifest:
    manifest = read_manifest(folder).model_copy(update=changes)
    write_record(folder / "manifest.json", manifest)
    return manifest


def replace_model(folder: Path, proto: Any) -> None:
    onnx.save_model(proto, folder / "1/model.onnx")
    relist(folder, "1/model.onnx")


def found(folder: Path, place: Place = HERE) -> list[Finding]:
    findings = list(verify_model(folder, place))
    assert all(finding.message and finding.why and finding.fix for finding in findings)
    return findings


def checks(folder: Path, place: Place = HERE) -> list[tuple[str, str]]:
    return [(finding.check, finding.severity) for finding in found(folder, place)]


def test_every_servable_model_is_clean(servable_model: Path, tmp_path: Path) -> None:
    model = to_write(servable_model, tmp_path / "runs")
    assert not found(write_model(tmp_path / "repository", model).folder)


@pytest.mark.parametrize("harm", ["manifest.json", "config.pbtxt"])
@pytest.mark.parametrize("gone", [True, False])
def test_the_fix_is_the_command_that_works(folder: Path, tmp_path: Path, harm: str, gone: bool) -> None:
    (folder / harm).unlink() if gone else (folder / harm).write_text("nonsense {")
    fixes = [each.fix for each in found(folder) if "tritongen build" in each.fix]
    assert fixes
    assert all("`tritongen build --force`" in each for each in fixes)
    assert any("and its spec (or its ONNX file and flags)" in each for each in fixes)
    models.save(models.linear(), tmp_path / "linear.onnx")
    write_model(folder.parent, to_write(tmp_path / "linear.onnx", tmp_path / "again"), force=True)
    assert not found(folder)


class TestFiles:
    def test_a_changed_byte(self, folder: Path) -> None:
        proto = onnx.load(folder / "1/model.onnx")
        proto.producer_name = "someone else"
        onnx.save_model(proto, folder / "1/model.onnx")
        (finding,) = found(folder)
        assert finding.check == "digest"
        assert "1/model.onnx is not what was built" in finding.message

    def test_a_missing_model(self, folder: Path) -> None:
        (folder / "1/model.onnx").unlink()
        assert checks(folder) == [("digest", "error"), ("model-file", "error")]

    def test_a_cut_model(self, folder: Path) -> None:
        path = folder / "1/model.onnx"
        path.write_bytes(path.read_bytes()[:-20])
        assert checks(folder) == [("digest", "error"), ("model-file", "error")]

    def test_missing_external_data(self, save_model: SaveModel, tmp_path: Path) -> None:
        model = to_write(save_model("linear", external=True), tmp_path / "runs")
        folder = write_model(tmp_path / "repository", model).folder
        (folder / "1/linear.onnx.data").unlink()
        assert checks(folder) == [("digest", "error"), ("model-file", "error")]

    def test_no_version(self, folder: Path) -> None:
        (folder / "1").rename(folder / "one")
        assert ("versions", "error") in checks(folder)

    def test_a_version_above_the_manifests(self, folder: Path) -> None:
        (folder / "7").mkdir()
        (folder / "7/model.onnx").write_bytes((folder / "1/model.onnx").read_bytes())
        assert checks(folder) == [("foreign", "warning"), ("versions", "error")]

    def test_files_of_others_are_only_mentioned(self, folder: Path) -> None:
        (folder / "labels.txt").write_text("cat", encoding="utf-8")
        assert checks(folder) == [("foreign", "warning")]

    def test_closed_files(self, folder: Path) -> None:
        (folder / "1/model.onnx").chmod(0o600)
        (finding,) = found(folder)
        assert (finding.check, finding.severity) == ("permissions", "warning")
        assert finding.fix.startswith("chmod -R a+rX ")

    def test_commands_hold_for_any_path(self, folder: Path, tmp_path: Path) -> None:
        repository = folder.parent.rename(tmp_path / "my models; $(x)")
        (repository / "tiny/1/model.onnx").chmod(0o600)
        (finding,) = found(repository / "tiny")
        assert shlex.split(finding.fix) == ["chmod", "-R", "a+rX", str(repository / "tiny")]

    @pytest.mark.parametrize("target", ["nowhere", "model.onnx.link"])
    def test_links_that_lead_nowhere(self, target: str, folder: Path) -> None:
        (folder / "1/model.onnx.link").symlink_to(target)  # the second one leads to itself
        foreign, unreadable = found(folder)
        assert (foreign.check, unreadable.check) == ("foreign", "unreadable")
        assert f"{folder / '1/model.onnx.link'} (a symbolic link: " in unreadable.message


class TestManifest:
    def test_none(self, folder: Path) -> None:
        (folder / "manifest.json").unlink()
        (finding,) = found(folder)
        assert (finding.check, finding.severity) == ("manifest", "warning")
        assert "not written by tritongen" in finding.message

    def test_an_ensemble_of_ones_own(self, folder: Path) -> None:
        ensemble = folder.parent / "whole"
        (ensemble / "1").mkdir(parents=True)
        (ensemble / "config.pbtxt").write_text(
            """name: "whole" platform: "ensemble" max_batch_size: 4
            input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "y" data_type: TYPE_FP32 dims: 3 }
            ensemble_scheduling { step { model_name: "tiny" model_version: -1
              input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } } }""",
            encoding="utf-8",
        )
        assert checks(ensemble) == [("manifest", "warning")]

    @pytest.mark.parametrize("text", ["", "{", '{"schema": "tritongen/manifest/2"}', "[]"])
    def test_another_form(self, text: str, folder: Path) -> None:
        (folder / "manifest.json").write_text(text, encoding="utf-8")
        assert checks(folder) == [("manifest", "error")]

    def test_a_proof_with_another_config(self, folder: Path) -> None:
        proof = Proof(
            slo="p99<=20ms",
            outcome="PASS",
            summary="p99 12 ms",
            server=Server(kind="embedded", version="2.51.0"),
            machine=MACHINE,
            config_digest="other",
            taken="2026-01-01T00:00:00+00:00",
        )
        update(folder, proofs=(proof,))
        (finding,) = found(folder)
        assert (finding.check, finding.severity) == ("proof", "warning")
        assert "UNPROVEN" in finding.why


class TestConfig:
    def test_an_edit_by_hand(self, folder: Path) -> None:
        path = folder / "config.pbtxt"
        path.write_text(path.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
        (finding,) = found(folder)
        assert "--force" in finding.fix

    def test_none(self, folder: Path) -> None:
        (folder / "config.pbtxt").unlink()
        assert checks(folder) == [("digest", "error"), ("config", "error")]
        assert found(folder)[1].message == "config.pbtxt cannot be read: No such file or directory"

    def test_bytes_that_are_no_text(self, folder: Path) -> None:
        (folder / "config.pbtxt").write_bytes(b"\x95\xff")
        assert "it is not UTF-8 (invalid start byte)" in found(folder)[1].message

    def test_what_is_no_config(self, folder: Path) -> None:
        edit_config(folder, lambda _: "hello")
        assert checks(folder) == [("config", "error")]

    def test_another_name(self, folder: Path) -> None:
        renamed = folder.rename(folder.parent / "other")
        assert checks(renamed) == [("config", "error")]

    def test_a_broken_rule(self, folder: Path) -> None:
        edit_config(folder, lambda text: text + 'model_warmup { name: "w" batch_size: 99 }\n')
        assert {check for check, _ in checks(folder)} == {"rule:warmup"}

    def test_a_response_cache_needs_a_server_with_one(self, folder: Path) -> None:
        edit_config(folder, lambda text: text + "response_cache { enable: true }\n")
        (finding,) = found(folder)
        assert "--cache-config" in finding.fix

    @pytest.mark.parametrize(
        ("old", "new", "complaint"),
        [
            ('name: "x"', 'name: "z"', "has no input 'z'"),
            ("TYPE_FP32", "TYPE_FP16", "is TYPE_FP16 in config.pbtxt and TYPE_FP32"),
            ("dims: [ 3 ]", "dims: [ -1 ]", "has dims [-1] in config.pbtxt and [3]"),
            ("dims: [ 4 ]", "dims: [ 5 ]", "has dims [5] in config.pbtxt and [4]"),
            ("dims: [ 4 ]", "dims: [ 4, 1 ]", "has dims [4, 1]"),
        ],
    )
    def test_another_model_than_it_describes(self, old: str, new: str, complaint: str, folder: Path) -> None:
        edit_config(folder, lambda text: text.replace(old, new, 1))
        findings = [finding for finding in found(folder) if finding.check == "tensors"]
        assert complaint in findings[0].message

    def test_a_static_batch_behind_max_batch_size(self, folder: Path) -> None:
        replace_model(folder, models.static_batch(4))
        assert "no dynamic axis 0" in found(folder)[0].message

    def test_an_input_that_is_left_out(self, folder: Path) -> None:
        proto = models.model(
            [onnx.helper.make_node("Add", ["x", "more"], ["y"])],
            [models.value("x", ["b", 4]), models.value("more", ["b", 4])],
            [models.value("y", ["b", 4])],
        )
        replace_model(folder, proto)
        messages = [finding.message for finding in found(folder)]
        assert any("leaves out 1/model.onnx's input 'more'" in message for message in messages)


class TestPlaces:
    def test_an_image_that_cannot_read_the_file(self, folder: Path) -> None:
        proto = models.linear()
        proto.ir_version = 10
        replace_model(folder, proto)
        (finding,) = found(folder, Place(find_target("24.04")))
        assert (finding.check, finding.severity) == ("target", "error")
        assert "IR version 10" in finding.message
        assert "--target" in finding.fix
        assert not found(folder, Place(find_target("24.05")))

    def test_an_unverified_row_says_so(self, folder: Path) -> None:
        (finding,) = found(folder, Place(find_target("26.10")))
        assert finding.severity == "warning"
        assert "unverified" in finding.message

    def test_an_unknown_onnx_runtime_says_so(self, folder: Path) -> None:
        (finding,) = found(folder, Place(find_target("24.03")))
        assert finding.severity == "warning"
        assert "nothing is known" in finding.message

    def test_a_newer_file_than_this_onnxruntime(self, folder: Path) -> None:
        old = replace(embedded(), max_ir_version=7)
        (finding,) = found(folder, Place(old, MACHINE))
        assert "pip install --upgrade onnxruntime" in finding.fix

    def test_another_processor(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        features = ("avx2", "avx512_vnni")
        update(folder, machine=manifest.machine.model_copy(update={"cpu_features": features}))
        (finding,) = found(folder)
        assert (finding.check, finding.severity) == ("machine", "warning")
        assert "avx512_vnni" in finding.message

    @pytest.mark.parametrize(
        ("built", "image", "severities"),
        [
            ("10.16.0.72", "26.03", []),
            ("10.11.0.33", "26.03", ["error"]),
            ("11.4", "26.10", ["warning"]),
            ("8.6.1", None, ["error"]),
        ],
    )
    def test_plans_need_their_very_tensorrt(
        self, built: str, image: str | None, severities: list[str], folder: Path
    ) -> None:
        update(folder, backend="tensorrt", versions={"tensorrt": built})
        targets = [
            finding for finding in found(folder, Place(find_target(image))) if finding.check == "target"
        ]
        about_plans = [finding for finding in targets if "plan" in finding.message + finding.why]
        assert [finding.severity for finding in about_plans] == severities


class TestRepository:
    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no model repository"):
            list(verify_repository(tmp_path / "none", (), HERE))

    def test_no_such_model(self, folder: Path) -> None:
        with pytest.raises(InputError, match="no model 'nope'"):
            list(verify_repository(folder.parent, ("nope",), HERE))

    def test_an_empty_one(self, tmp_path: Path) -> None:
        (finding,) = verify_repository(tmp_path, (), HERE)
        assert finding.check == "empty"

    def test_a_stray_folder(self, folder: Path) -> None:
        (folder.parent / ".git").mkdir()
        stray = [finding for finding in verify_repository(folder.parent, (), HERE) if finding.model == ".git"]
        assert {finding.check for finding in stray} >= {"manifest", "config"}

    def test_an_interrupted_write(self, folder: Path) -> None:
        workspace = staging_folder(folder.parent) / "linear.abc"
        workspace.mkdir(parents=True)
        folder.rename(workspace / "old")
        findings = list(verify_repository(folder.parent, (), HERE))
        assert findings[0].check == "interrupted"


class TestCommand:
    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(cli, ["verify", *arguments], standalone_mode=False)

    def test_clean(self, folder: Path) -> None:
        result = self.run(str(folder.parent))
        assert result.return_value == 0
        assert "tiny: fit for this machine" in result.output

    def test_findings_and_exit_code(self, folder: Path) -> None:
        (folder / "1/model.onnx").unlink()
        result = self.run(str(folder.parent), "tiny")
        assert result.return_value == 1
        assert "why:" in result.output
        assert "to fix:" in result.output

    def test_json(self, folder: Path) -> None:
        result = self.run(str(folder.parent), "--json", "--image", "26.10", "--elsewhere")
        report = json.loads(result.output)
        assert result.return_value == 0
        assert report["ok"] is True
        assert report["target"] == "nvcr.io/nvidia/tritonserver:26.10-py3"
        assert [finding["severity"] for finding in report["findings"]] == ["warning"]

    def test_unknown_image(self, folder: Path) -> None:
        result = self.run(str(folder.parent), "--image", "ubuntu")
        assert result.exit_code == 1
        assert result.exception is not None
