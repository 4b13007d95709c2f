"""What is known of a plan: from the manifest of its model, which needs no GPU, else from TensorRT itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritongen.errors import InputError, RepositoryError, RequirementError
from tritongen.files import digest_files
from tritongen.repository.manifest import BuiltPlan, read_manifest

_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class PlanDescription:
    """One plan, and where what is said of it comes from."""

    source: str
    """`manifest` or `tensorrt`."""
    size_bytes: int
    unchanged: bool | None
    """Whether the file is the one that the manifest describes; None where it cannot be told."""
    versions: Mapping[str, str]
    details: Mapping[str, Any]
    candidate: str | None = None
    created: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "versions": dict(self.versions), "details": dict(self.details)}

    def rows(self) -> Iterator[tuple[str, str]]:
        """(label, text) of all that is known."""
        yield "size", f"{self.size_bytes / _MEGABYTE:.1f} MB"
        if self.unchanged is False:
            yield "file", "CHANGED since it was built: what follows is about another file"
        if self.candidate:
            yield "candidate", f"{self.candidate}, built {self.created}"
        versions = dict(self.versions)
        if versions:
            capability = versions.pop("compute_capability", "?")
            yield "built for", f"{versions.pop('gpu', 'a GPU')}, compute capability {capability}"
            yield "built with", ", ".join(f"{key} {value}" for key, value in sorted(versions.items()))
        yield from _tensors(self.details.get("bindings", ()))
        for index, profile in enumerate(filter(None, str(self.details.get("profiles", "")).split(";"))):
            yield f"profile {index}", profile.replace(",", ", ")
        precision = self.details.get("precision")
        if isinstance(precision, dict):
            told = [precision.get("summary"), precision.get("beside")]
            yield "precision", f"{precision.get('evidence')}: {'; '.join(map(str, filter(None, told)))}"
        if "layers" in self.details:
            yield "layers", f"{self.details['layers']} (--layers runs them, on a GPU)"
        if "activation_bytes" in self.details:
            yield (
                "activations",
                f"{self.details['activation_bytes'] / _MEGABYTE:.1f} MB per execution context",
            )
        yield "known from", "its manifest" if self.source == "manifest" else "TensorRT, which loaded it"


def describe(plan: Path, plugins: Sequence[Path] = ()) -> PlanDescription:
    """What is known of a plan; InputError if it is not there, RequirementError if nothing can tell.

    `plugins` are loaded where TensorRT is asked, as no manifest names those that the plan needs.
    """
    if not plan.is_file():
        raise InputError(
            f"there is no plan at {plan}", fix="name the file in a version folder of a repository"
        )
    entry = _entry(plan)
    if entry is not None:
        own, _ = needs_of(plan)
        same = all(path.is_file() for path in own) and digest_files([plan, *own]) == entry.digest
        return PlanDescription(
            source="manifest",
            size_bytes=plan.stat().st_size,
            unchanged=same,
            versions=entry.versions,
            details=entry.details,
            candidate=entry.candidate.id,
            created=entry.created,
        )
    return _loaded(plan, plugins)


def needs_of(plan: Path) -> tuple[list[Path], bool]:
    """(plugins to load before the plan, whether to trust code that it carries), by its manifest if any."""
    entry = _entry(plan)
    if entry is None:
        return [], False
    plugins = [plan.parent / name for name in entry.details.get("plugins", ())]
    return plugins, bool(entry.details.get("version_compatible", False))


def _entry(plan: Path) -> BuiltPlan | None:
    """The plan's entry in the manifest of its model; None if it is in no repository of tritongen's."""
    try:
        manifest = read_manifest(plan.absolute().parent.parent)
    except RepositoryError:
        return None
    of_this_version = plan.absolute().parent.name == str(manifest.version)
    return next((one for one in manifest.plans if of_this_version and one.file == plan.name), None)


def _loaded(plan: Path, plugins: Sequence[Path]) -> PlanDescription:
    from tritongen.engines import load_engine
    from tritongen.engines.tensorrt import api, cuda
    from tritongen.engines.tensorrt.plan import load_plan
    from tritongen.engines.tensorrt.profiles import to_text

    engine = load_engine("tensorrt")
    reason = engine.unavailable_reason()
    if reason is not None:
        raise RequirementError(
            f"nothing here can tell what {plan.name} is",
            found=f"no manifest of tritongen's beside it, and {reason}",
            expected="a plan in a repository that tritongen wrote, or TensorRT with a GPU",
        )
    cuda.use_device(0)
    opened = load_plan(api.load(), plan, plugins=plugins)
    bindings = [
        {"name": b.name, "dtype": b.dtype, "shape": list(b.shape), "input": b.is_input}
        for b in opened.bindings
    ]
    details = {
        "bindings": bindings,
        "profiles": to_text(opened.profiles),
        "layers": opened.engine.num_layers,
        "activation_bytes": api.device_memory_bytes(opened.engine),
    }
    return PlanDescription("tensorrt", plan.stat().st_size, None, {}, details)


def _tensors(bindings: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for entry in bindings:
        role = "input" if entry["input"] else "output"
        yield role, f"{entry['name']}: {entry['dtype']} {list(entry['shape'])}"
