"""From a spec file, or from bare ONNX files, to a `Spec`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tritongen.errors import ModelError, SpecError
from tritongen.spec import ModelSpec, Spec, is_function, suggest_model_name
from tritongen.spec.problems import explain
from tritongen.spec.yaml_lines import Document, read_yaml


def load(path: Path) -> Spec:
    """What `tritongen.spec.load_spec` returns."""
    document = read_yaml(path)
    _refuse_internal_keys(document)
    try:
        spec = Spec.model_validate(document.data)
    except ValidationError as error:
        raise explain(error, document) from error
    return _anchor(spec, path.parent)


def check_models(path: Path, spec: Spec) -> None:
    """ModelError with file and line for a model of the spec at `path` that does not exist."""
    for name, model in spec.models.items():
        if not model.path.exists():
            where = read_yaml(path).where(("models", name, "path"))
            raise ModelError(
                f"{where}: models.{name}.path: there is no file {model.path}",
                expected=f"an ONNX file; paths count from the folder of {path.name}",
                fix="correct the path",
            )


def check_files(spec: Spec) -> None:
    """SpecError for a plugin library or an accuracy reference that does not exist."""
    for model in spec.models.values():
        reference = model.accuracy.reference
        if reference is not None and not reference.is_file():
            raise SpecError(
                f"there is no reference {reference}",
                found="a folder" if reference.is_dir() else "no such file",
                expected="an FP32 ONNX file to judge accuracy against",
                fix="correct the path that --reference (or accuracy.reference in the spec) gives",
            )
        for plugin in model.tensorrt.plugins:
            if not plugin.is_file():
                raise SpecError(
                    f"there is no library {plugin}",
                    found="a folder" if plugin.is_dir() else "no such file",
                    expected="a shared library (.so) with operators for TensorRT",
                    fix="correct the path that --plugin (or tensorrt.plugins in the spec) gives",
                )


def _refuse_internal_keys(document: Document) -> None:
    models = document.data.get("models")
    for name, entry in models.items() if isinstance(models, dict) else ():
        if isinstance(entry, dict) and "folder" in entry:
            raise SpecError(
                f"{document.where(('models', name, 'folder'))}: unknown key 'models.{name}.folder'",
                expected="paths that count from the spec file",
                fix="remove it",
            )


def _anchor(spec: Spec, folder: Path) -> Spec:
    """Make the paths that the file gives count from its folder; defaults stay in the working directory."""
    models = {name: _anchor_model(model, folder) for name, model in spec.models.items()}
    given: dict[str, Any] = {
        key: folder / getattr(spec, key) for key in ("repository", "run_dir") if key in spec.model_fields_set
    }
    return spec.model_copy(update={"models": models, **given})


def _anchor_model(model: ModelSpec, folder: Path) -> ModelSpec:
    data = {
        key: source if source is None or is_function(source) else str(folder / source)
        for key, source in (("calibration", model.data.calibration), ("validation", model.data.validation))
    }
    changes: dict[str, Any] = {
        "folder": folder,
        "path": folder / model.path,
        "data": model.data.model_copy(update=data),
    }
    if model.accuracy.reference is not None:
        reference = folder / model.accuracy.reference
        changes["accuracy"] = model.accuracy.model_copy(update={"reference": reference})
    if model.serving.template is not None:
        template = folder / model.serving.template
        changes["serving"] = model.serving.model_copy(update={"template": template})
    if model.tensorrt.plugins:
        plugins = tuple(folder / plugin for plugin in model.tensorrt.plugins)
        changes["tensorrt"] = model.tensorrt.model_copy(update={"plugins": plugins})
    return model.model_copy(update=changes)


def from_models(paths: tuple[Path, ...]) -> Spec:
    """What `tritongen.spec.spec_for_models` returns."""
    if not paths:
        raise SpecError("no model is given", fix="name an .onnx file or a spec: tritongen build MODEL.onnx")
    models: dict[str, ModelSpec] = {}
    for path in paths:
        name = suggest_model_name(path.stem)
        if name in models:
            raise SpecError(
                f"two models would both be named '{name}'",
                found=f"{models[name].path} and {path}",
                expected="different names",
                fix="give them names in a spec (models: NAME: path: …), or build them one by one with --name",
            )
        models[name] = ModelSpec(path=path)
    return Spec(models=models)
