"""The files of `tritongen compose init`: what they say, and whose they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import SaveModel
from tests.repository_models import to_write
from tritongen.cli import run
from tritongen.errors import RepositoryError, SpecError
from tritongen.repository.manifest import FILENAME, Manifest, read_manifest
from tritongen.repository.targets import VERSION_COMPATIBLE
from tritongen.repository.writer import write_model
from tritongen.runs.store import write_record
from tritongen.serving.container.compose import (
    CPU_FILE,
    ENV_FILE,
    FILES,
    GPU_FILE,
    HARDENED_FILE,
    SETTINGS,
    derived,
    init,
    read_environment,
    refresh_environment,
    render_environment,
    repository_of,
    source,
)
from tritongen.serving.container.host import look_for_gpus
from tritongen.serving.container.images import choose_image

CHECKOUT = Path(__file__).parents[2]
HARDENING = ("user", "read_only", "tmpfs", "cap_drop", "pids_limit", "environment")


def services(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CHECKOUT / name).read_text(encoding="utf-8"))["services"]
    return loaded


@pytest.fixture
def repository(save_model: SaveModel, tmp_path: Path) -> Path:
    write_model(tmp_path / "model_repository", to_write(save_model("linear"), tmp_path / "runs"))
    return tmp_path / "model_repository"


def as_plan(repository: Path, tensorrt: str, *, compatible: bool) -> Manifest:
    """Let the manifest say that the model is a plan: there is no TensorRT here to build one."""
    path = repository / "tiny" / FILENAME
    manifest = read_manifest(repository / "tiny")
    candidate = manifest.candidate.model_copy(update={"options": {"version_compatible": compatible}})
    changes = {"backend": "tensorrt", "versions": {"tensorrt": tensorrt}, "candidate": candidate}
    write_record(path, manifest.model_copy(update=changes))
    return read_manifest(repository / "tiny")


def test_gpu_and_cpu_file_differ_only_where_they_must() -> None:
    gpu, cpu = services(GPU_FILE), services(CPU_FILE)
    own = {"image", "build", "command", "deploy", "ulimits", *HARDENING}
    for key in {*gpu["triton"], *cpu["triton"]} - own:
        assert gpu["triton"].get(key) == cpu["triton"].get(key), key
    assert set(gpu) - set(cpu) == {"build"}
    for name in set(cpu) - {"triton"}:
        assert gpu[name] == cpu[name], name


def test_the_overlay_hardens_as_the_cpu_file_does() -> None:
    overlay, cpu = services(HARDENED_FILE)["triton"], services(CPU_FILE)["triton"]
    assert overlay == {key: cpu[key] for key in HARDENING}


def test_the_same_flags_go_to_both_servers() -> None:
    """Triton's own, of which `tritongen serve` hands on what follows its --."""
    for name in (GPU_FILE, CPU_FILE):
        command = services(name)["triton"]["command"]
        assert re.findall(r"\$\{(\w+):-(.*?)\}", command) == [
            ("TRITON_CONTROL", SETTINGS["TRITON_CONTROL"]),
            ("TRITON_ARGS", ""),
        ]


@pytest.mark.parametrize("name", [GPU_FILE, CPU_FILE])
def test_only_loopback_and_no_privileges_without_being_asked(name: str) -> None:
    for key, service in services(name).items():
        variable = "BIND_ADDRESS" if key == "triton" else "MONITORING_ADDRESS"
        assert all(port.startswith(f"${{{variable}:-127.0.0.1}}:") for port in service.get("ports", ()))
        assert "no-new-privileges:true" in service["security_opt"]
        assert not service.get("privileged")


def test_defaults_are_those_of_a_repository_without_models() -> None:
    default = derived(choose_image([]))
    texts = {name: (CHECKOUT / name).read_text(encoding="utf-8") for name in FILES["gpu"]}
    assert f"${{TRITON_IMAGE:-{default['TRITON_IMAGE']}}}" in texts[GPU_FILE]
    assert f"${{TENSORRT_IMAGE:-{default['TENSORRT_IMAGE']}}}" in texts[GPU_FILE]
    assert f"TENSORRT_IMAGE={default['TENSORRT_IMAGE']}\n" in texts["docker/build.Dockerfile"]
    for name, value in SETTINGS.items():
        assert f"${{{name}:-{value}}}" in texts[GPU_FILE], name
    assert (CHECKOUT / ENV_FILE).read_text(encoding="utf-8") == render_environment(choose_image([]))


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_init_writes_what_the_checkout_has(kind: Any, tmp_path: Path) -> None:
    assert {each.what for each in init(tmp_path, tmp_path / "model_repository", kind)} == {"written"}
    for name in FILES[kind]:
        assert (tmp_path / name).read_bytes() == source(name).read_bytes() == (CHECKOUT / name).read_bytes()
    for mentioned in re.findall(r"\./(docker/\S+?):", (CHECKOUT / FILES[kind][0]).read_text()):
        assert (tmp_path / mentioned).is_file(), mentioned
    again = init(tmp_path, tmp_path / "model_repository", kind)
    assert {each.what for each in again} == {"unchanged"}


def test_edited_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "cpu.Dockerfile").write_text("FROM scratch\n")
    (tmp_path / ENV_FILE).write_text("MINE=1\n")
    (tmp_path / ".env").write_text("MINE=2\n")
    with pytest.raises(SpecError, match="did not write") as refused:
        init(tmp_path, tmp_path / "model_repository", "cpu")
    assert refused.value.found == f"docker/cpu.Dockerfile, {ENV_FILE}"
    assert not (tmp_path / CPU_FILE).exists()
    assert (tmp_path / "docker" / "cpu.Dockerfile").read_text() == "FROM scratch\n"

    init(tmp_path, tmp_path / "model_repository", "cpu", force=True)
    assert read_environment(tmp_path / ENV_FILE)["MINE"] == "1"
    assert (tmp_path / ".env").read_text() == "MINE=2\n"
    edited = tmp_path / CPU_FILE
    edited.write_text(edited.read_text() + "# mine\n")
    with pytest.raises(SpecError, match="edited since"):
        init(tmp_path, tmp_path / "model_repository", "cpu")


def test_a_file_of_an_older_tritongen_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours as we left it, though no longer what we write now."""
    older = tmp_path / "older"
    (older / "docker").mkdir(parents=True)
    for name in FILES["cpu"]:
        (older / name).parent.mkdir(parents=True, exist_ok=True)
        (older / name).write_text(source(name).read_text() + "\n")
    project = tmp_path / "project"
    with monkeypatch.context() as patch:
        patch.setattr("tritongen.serving.container.compose.SOURCES", (older,))
        init(project, project / "model_repository", "cpu")
    assert {each.what for each in init(project, project / "model_repository", "cpu")} == {
        "replaced",
        "unchanged",  # triton.env
    }


def test_triton_env_follows_the_models_and_keeps_the_users_settings(repository: Path) -> None:
    folder = repository.parent
    assert refresh_environment(repository) is None  # nobody asked for one
    assert not (folder / ENV_FILE).exists()

    init(folder, repository, "gpu")
    text = (folder / ENV_FILE).read_text()
    (folder / ENV_FILE).write_text(text.replace("HTTP_PORT=8000", "HTTP_PORT=9000") + "MY_OWN='a # b'\n")
    manifest = as_plan(repository, "10.13.3.9", compatible=False)
    assert refresh_environment(repository) == (
        f"{folder / ENV_FILE} now says nvcr.io/nvidia/tritonserver:25.09-py3"
    )
    found = read_environment(folder / ENV_FILE)
    assert found == {**SETTINGS, **derived(choose_image([manifest])), "HTTP_PORT": "9000", "MY_OWN": "a # b"}
    assert found["TENSORRT_IMAGE"] == "nvcr.io/nvidia/tensorrt:25.09-py3"
    assert found["TRITON_ARGS"] == ""
    assert refresh_environment(repository) is None


def test_only_plans_that_need_it_get_the_flag_for_version_compatible_plans(repository: Path) -> None:
    manifest = as_plan(repository, "10.99.0", compatible=True)
    assert derived(choose_image([manifest]))["TRITON_ARGS"] == f"--backend-config={VERSION_COMPATIBLE}"


def test_remarks_and_links_stay(repository: Path, tmp_path: Path) -> None:
    folder, elsewhere = repository.parent / "x", tmp_path / "elsewhere.env"
    folder.mkdir()
    elsewhere.write_text("# mine\nHTTP_PORT=9000  # taken\n\n# more\nTRITON_IMAGE=old\n")
    (folder / ENV_FILE).symlink_to(elsewhere)
    init(folder, folder / "model_repository", "cpu", force=True)
    text = elsewhere.read_text()
    assert (folder / ENV_FILE).is_symlink()
    assert "\n# mine\nHTTP_PORT=9000  # taken\n\n# more\nBIND_ADDRESS=" in text
    assert text.count("TRITON_IMAGE=") == 1
    assert {each.what for each in init(folder, folder / "model_repository", "cpu")} == {"unchanged"}
    (folder / "model_repository").symlink_to(repository)
    as_plan(repository, "10.13.3.9", compatible=False)
    assert refresh_environment(folder / "model_repository") is not None
    assert elsewhere.read_text().partition("# mine")[2] == text.partition("# mine")[2]


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / CPU_FILE).symlink_to("/dev/null")
    with pytest.raises(SpecError, match="something else than files") as refused:
        init(tmp_path, tmp_path / "model_repository", "cpu", force=True)
    assert refused.value.found == CPU_FILE
    assert not (tmp_path / ENV_FILE).exists()


def test_the_image_of_our_own_needs_none_of_nvidias(repository: Path) -> None:
    """Newer ONNX than any image of the table reads, as this environment's ONNX Runtime may."""
    path = repository / "tiny" / FILENAME
    write_record(path, read_manifest(repository / "tiny").model_copy(update={"opsets": {"": 99}}))
    with pytest.raises(RepositoryError):
        init(repository.parent, repository, "gpu")
    init(repository.parent, repository, "cpu")
    assert "though no Triton image loads these models" in (repository.parent / ENV_FILE).read_text()
    assert refresh_environment(repository) is None


def test_a_plan_that_no_image_loads(repository: Path) -> None:
    folder = repository.parent
    init(folder, repository, "gpu")
    before = (folder / ENV_FILE).read_text()
    as_plan(repository, "9.9.9", compatible=False)
    told = refresh_environment(repository)
    assert told is not None
    assert "is left as it was" in told
    assert (folder / ENV_FILE).read_text() == before
    with pytest.raises(RepositoryError):
        init(folder, repository, "gpu")


def test_compose_mounts_the_repository_that_was_named(repository: Path) -> None:
    folder, elsewhere = repository.parent / "x", repository.parent / "b" / "model_repository"
    elsewhere.parent.mkdir()
    elsewhere.symlink_to(repository)
    init(folder, elsewhere, "cpu")
    assert read_environment(folder / ENV_FILE)["MODEL_REPOSITORY"] == "../model_repository"
    assert repository_of(folder).resolve() == repository
    init(folder, folder / "mine", "cpu")
    assert read_environment(folder / ENV_FILE)["MODEL_REPOSITORY"] == "./mine"
    text = (folder / ENV_FILE).read_text()
    assert refresh_environment(folder / "model_repository") is None  # another than the one that is served
    assert (folder / ENV_FILE).read_text() == text
    init(folder, folder / "model_repository", "cpu")
    assert "MODEL_REPOSITORY" not in read_environment(folder / ENV_FILE)


def test_the_command_says_that_there_is_nothing_to_serve(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.parent)
    assert run(["compose", "init", "x", "--cpu", "--repository", "no pe"]) == 2
    assert "tritongen build MODEL.onnx --repository 'no pe'" in capsys.readouterr().err
    assert run(["compose", "init", "a b", "--cpu"]) == 0
    shown = capsys.readouterr()
    assert "tritongen build MODEL.onnx --repository 'a b/model_repository'" in shown.out
    assert "Next: cd 'a b' && " in shown.out
    assert run(["compose", "init", "--cpu"]) == 0
    shown = capsys.readouterr()
    assert "to serve yet" not in shown.out
    assert not shown.err
    as_plan(repository, "10.13.3.9", compatible=False)
    assert run(["compose", "init", "--cpu"]) == 0
    assert "no models for a GPU: tiny" in capsys.readouterr().err


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["compose", "init", "--cpu"]) == 0
    shown, warned = capsys.readouterr()
    assert re.search(f"Next: docker[ -]compose -f {CPU_FILE} --env-file {ENV_FILE} up -d --build\n$", shown)
    assert not warned
    assert run(["compose", "init", "gpu"]) == 0
    warned = capsys.readouterr().err
    assert ("tritongen compose init --cpu" in warned) == (look_for_gpus() == ((), None))
    assert run(["compose", "inti"]) == 2
    assert "did you mean 'init'?" in capsys.readouterr().err
