"""Flags over a spec: what the command line says wins, and is validated by the same rules."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from tritongen.errors import SpecError
from tritongen.spec import Spec
from tritongen.spec.problems import explain_flags
from tritongen.spec.yaml_lines import Location

_JOB_FLAGS = ("repository", "run_dir")

_MODEL_FLAGS: dict[str, tuple[str, ...]] = {
    "engine": ("engine",),
    "execution_provider": ("execution_provider",),
    "precision": ("precision",),
    "max_batch_size": ("max_batch_size",),
    "objective": ("objective",),
    "slo": ("slo",),
    "shapes": ("shapes",),
    "ranges": ("ranges",),
    "calibration_data": ("data", "calibration"),
    "validation_data": ("data", "validation"),
    "labels": ("data", "labels"),
    "accuracy_metric": ("accuracy", "metric"),
    "accuracy_limit": ("accuracy", "limit"),
    "reference": ("accuracy", "reference"),
    "keep_versions": ("serving", "keep_versions"),
    "target": ("target",),
    "keep_candidates": ("keep_candidates",),
    "tensorrt": ("tensorrt",),
    "plugins": ("tensorrt", "plugins"),
    "build_budget": ("build_budget_minutes",),
    "seed": ("seed",),
}
"""Flag (as a keyword) → key in the model's part of the spec."""

_MERGED = ("shapes", "ranges", "tensorrt")
"""Flags that add to a mapping of the spec instead of replacing it."""

_SPELLING = {
    "shapes": "--shape",
    "ranges": "--range",
    "plugins": "--plugin",
    "keep_versions": "--keep",
    "accuracy_metric": "--metric",
}


def apply(spec: Spec, flags: dict[str, Any]) -> Spec:
    """What `tritongen.spec.override` returns."""
    given = {name: value for name, value in flags.items() if value not in (None, (), {})}
    unknown = sorted(set(given) - set(_MODEL_FLAGS) - set(_JOB_FLAGS) - {"name"})
    if unknown:
        raise TypeError(f"not a flag: {', '.join(unknown)}")
    data = spec.model_dump()
    for entry in data["models"].values():
        for flag, keys in _MODEL_FLAGS.items():
            if flag in given:
                _put(entry, keys, given[flag], merge=flag in _MERGED)
    data.update({flag: given[flag] for flag in _JOB_FLAGS if flag in given})
    if "name" in given:
        data["models"] = _renamed(data["models"], given["name"])
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        places: dict[Location, str] = {
            keys: _spelling(flag) for flag, keys in _MODEL_FLAGS.items() if flag in given
        }
        if "name" in given:
            places["models", given["name"], "[key]"] = "--name"
        raise explain_flags(error, places) from error


def _put(entry: dict[str, Any], keys: tuple[str, ...], value: Any, *, merge: bool) -> None:
    for key in keys[:-1]:
        entry = entry[key]
    entry[keys[-1]] = {**entry[keys[-1]], **value} if merge else value


def _renamed(models: dict[str, Any], name: str) -> dict[str, Any]:
    if len(models) != 1:
        raise SpecError(
            "--name can only name one model",
            found=f"{len(models)} models: {', '.join(models)}",
            expected="one model",
            fix="name them in a spec, or build them one by one",
        )
    return dict(zip([name], models.values(), strict=True))


def _spelling(flag: str) -> str:
    return _SPELLING.get(flag, "--" + flag.replace("_", "-"))
