"""The image for a repository: by the plans' TensorRT, the files' versions, the GPU and the driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tritongen.errors import RepositoryError
from tritongen.repository.manifest import Manifest
from tritongen.repository.targets import (
    VERSION_COMPATIBLE,
    Known,
    find_target,
    known_tags,
    loads_version_compatible,
)
from tritongen.serving.container.images import choose_image

DOCS = Path(__file__).parents[2] / "docs"
IMAGE = "nvcr.io/nvidia/tritonserver"


def changed(manifest: Manifest, **changes: Any) -> Manifest:
    return manifest.model_copy(update=changes)


def plan(manifest: Manifest, tensorrt: str, *, compatible: bool = False, **versions: str) -> Manifest:
    """A manifest that says that it is a plan's: there is no TensorRT here to build one."""
    options = {"version_compatible": compatible}
    return changed(
        manifest,
        backend="tensorrt",
        versions={"tensorrt": tensorrt, **versions},
        candidate=manifest.candidate.model_copy(update={"options": options}),
    )


def on_driver(manifest: Manifest, driver: str) -> Manifest:
    machine = manifest.machine.model_copy(update={"gpus": ("NVIDIA H100",), "driver": driver})
    return changed(manifest, machine=machine)


def test_without_plans_the_newest_that_is_known_for_sure(manifest: Manifest) -> None:
    choice = choose_image([manifest])
    assert choice == choose_image([]), "the default of the compose files"
    assert choice.sure
    chosen = find_target(choice.image)
    assert chosen.tensorrt is not None
    assert chosen.onnxruntime is not None
    assert chosen.tensorrt.verified
    assert chosen.onnxruntime.verified


@pytest.mark.parametrize(
    ("tensorrt", "tag"), [("11.2.1", "26.08"), ("10.5.0", "24.10"), ("8.6.1", "23.07"), ("10.16.1", "26.05")]
)
def test_a_plan_gets_the_image_with_its_tensorrt(manifest: Manifest, tensorrt: str, tag: str) -> None:
    assert choose_image([plan(manifest, tensorrt)]).image == f"{IMAGE}:{tag}-py3"


def test_an_unverified_row_is_the_last_resort_and_says_so(manifest: Manifest) -> None:
    choice = choose_image([plan(manifest, "11.4")])
    assert choice.image == f"{IMAGE}:26.10-py3"
    assert not choice.sure
    assert "unverified" in choice.reason


def test_no_image_has_it(manifest: Manifest) -> None:
    with pytest.raises(RepositoryError, match="no Triton image") as caught:
        choose_image([plan(manifest, "8.6.0")])
    assert "a plan of TensorRT 8.6.0" in str(caught.value.found)
    assert "--profile build" in str(caught.value.fix)


def test_only_a_version_compatible_plan_gets_the_flag(manifest: Manifest) -> None:
    choice = choose_image([plan(manifest, "8.6.0", compatible=True)])
    assert choice.backend_config == (VERSION_COMPATIBLE,)
    chosen = find_target(choice.image).tensorrt
    assert chosen is not None
    assert chosen.version.startswith("10.")
    assert not choose_image([plan(manifest, "11.2.1", compatible=True)]).backend_config


@pytest.mark.parametrize(
    ("built", "image", "loads"),
    [
        ("8.6.0", "8.6.1", True),
        ("8.6.1", "8.6.0", False),
        ("8.6.1", "10.14.1", True),
        ("10.5.0", "11.2.1", True),
        ("8.6.1", "11.2.1", False),
        ("11.1.0.106", "10.16.1", False),
        ("10.5.0.18", "10.5", True),
        ("9.1", "10.0.1", False),
    ],
)
def test_version_compatible_plans_go_one_major_up(built: str, image: str, loads: bool) -> None:
    assert loads_version_compatible(built, image) is loads


def test_an_old_driver_gets_an_older_image(manifest: Manifest) -> None:
    chosen = find_target(choose_image([on_driver(manifest, "550.54.14")]).image)
    assert chosen.cuda is not None
    assert chosen.cuda.version.startswith("12.")


def test_an_old_gpu_gets_an_older_image(manifest: Manifest) -> None:
    old = changed(manifest, versions={"compute_capability": "7.0"})
    chosen = find_target(choose_image([old]).image)
    assert chosen.min_compute_capability != "7.5"


def test_models_that_need_different_images(manifest: Manifest) -> None:
    with pytest.raises(RepositoryError, match="no Triton image"):
        choose_image([plan(manifest, "11.2.1"), plan(manifest, "10.5.0")])


def test_a_target_decides(manifest: Manifest) -> None:
    choice = choose_image([changed(manifest, target="25.09"), manifest])
    assert (choice.image, choice.reason) == (f"{IMAGE}:25.09-py3", "the models were built for it")


def test_two_targets_are_refused(manifest: Manifest) -> None:
    one, other = changed(manifest, target="25.09"), changed(manifest, target="25.10", name="other")
    with pytest.raises(RepositoryError, match="different images") as caught:
        choose_image([one, other])
    assert "other" in str(caught.value.found)


def test_a_target_that_cannot_load_another_model_says_which(manifest: Manifest) -> None:
    new = changed(manifest, name="new", ir_version=11)
    with pytest.raises(RepositoryError, match=r"24\.05-py3 cannot load every model") as caught:
        choose_image([changed(manifest, target="24.05"), new])
    assert str(caught.value.found).startswith("new: ")


def test_every_cuda_has_its_driver() -> None:
    targets = [find_target(tag) for tag in known_tags()]
    assert all(target.min_driver for target in targets if target.cuda is not None)
    assert {target.min_compute_capability for target in targets} == {"6.0", None, "7.5"}


def test_every_fact_names_its_source() -> None:
    targets = [find_target(tag) for tag in known_tags()]
    facts = [fact for t in targets for fact in (t.triton, t.tensorrt, t.onnxruntime, t.cuda)]
    assert all(fact.source for fact in facts if fact is not None)


def test_the_table_of_images_is_the_data_files() -> None:
    def marked(fact: Known | None) -> str:
        return "?" if fact is None else fact.version + ("" if fact.verified else " ¿")

    lines = (DOCS / "config.md").read_text(encoding="utf-8").splitlines()
    for target in map(find_target, known_tags()):
        cells = (
            target.name.rpartition(":")[2].removesuffix("-py3"), marked(target.triton),
            marked(target.tensorrt), marked(target.cuda), target.min_driver or "?",
            target.min_compute_capability or "?", marked(target.onnxruntime),
            target.max_ir_version or "?", target.max_opset or "?",
        )  # fmt: skip
        assert f"| {' | '.join(map(str, cells))} |" in lines
