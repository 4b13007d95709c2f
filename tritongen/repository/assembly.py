"""One model's folder in the making: winner, runners-up, older versions, config, manifest."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tritongen import __version__
from tritongen.errors import ModelError, RepositoryError, SpecError
from tritongen.files import digest_files, digest_json
from tritongen.repository import manifest as manifests
from tritongen.repository.adaptation import ir_note, lower_ir_version
from tritongen.repository.config_text import parse, parse_rendered, render
from tritongen.repository.contents import Contents
from tritongen.repository.existing import CONFIG, Existing, why_incompatible
from tritongen.repository.manifest import (
    InputEntry,
    KeptCandidate,
    KeptVersion,
    Manifest,
    Reference,
    Source,
    TensorEntry,
)
from tritongen.repository.model_config import ModelConfig, ServedTensors, TensorConfig, make_model_config
from tritongen.repository.onnx_versions import load_proto, onnx_versions, with_external_data_at
from tritongen.repository.plans import PlanSet, built_plan, plan_set
from tritongen.repository.rules import check_rules, refuse
from tritongen.repository.served_tensors import onnx_served_tensors
from tritongen.repository.targets import find_target
from tritongen.runs.events import Event, EventSink
from tritongen.runs.store import write_record
from tritongen.tensors import from_triton

if TYPE_CHECKING:
    from pathlib import Path

    from tritongen.repository.request import BuiltCandidate, ModelToWrite
    from tritongen.runs.records import Artifact
    from tritongen.shapes import ResolvedInput

REFERENCE = "reference.npz"


@dataclass
class Assembly:
    """Fills `contents` with everything that belongs to `model`."""

    model: ModelToWrite
    contents: Contents
    existing: Existing | None
    """The folder that is being replaced, if tritongen wrote it."""
    events: EventSink
    highest_version: int = 0
    """The highest number in the folder that is replaced and in states beside it: it is not used again."""
    replaced: str | None = None
    """Why older versions could not stay, once `run` has found out."""
    notes: list[str] = field(default_factory=list)
    """What had to be changed, for the manifest."""
    plans: PlanSet | None = None
    """TensorRT: this build's plan and those for other GPUs."""

    def run(self) -> Manifest:
        """Write every file, flush it to the disk, and return the manifest."""
        tensors = self._served(_file(self.model.winner))
        config, text, parsed = self._rendered(self._config(tensors))
        if config.backend == "tensorrt":
            self._choose_plans(parsed)
            config, text, parsed = self._rendered(self._with_plans(config))
        versions = self._versions(parsed)
        newest = versions[0].version
        self._copy(self.model.winner, newest, self._filename)
        for path, plan in self.plans.carried if self.plans else ():
            self._link(path, f"{newest}/{plan.file}")
        runners_up = self._copy_runners_up(newest, tensors)
        self._check_named(parsed, newest)
        for older in versions[1:]:
            self._link_version(older.version)
        self.contents.write(CONFIG, text.encode("utf-8"))
        for name, data in config.warmup_files.items():
            self.contents.write(f"warmup/{name}", data)
        reference = self._write_reference()
        self._link_foreign()
        manifest = self._manifest(config, versions, runners_up, reference)
        write_record(self.contents.folder / manifests.FILENAME, manifest)
        self.contents.sync()
        return manifest

    @property
    def _filename(self) -> str:
        """The winner's file in the version folder."""
        return self.plans.own.file if self.plans else self.model.traits.filename

    def _rendered(self, config: ModelConfig) -> tuple[ModelConfig, str, Any]:
        text = render(config, self.model.spec.serving.template)
        return config, text, self._checked(text, config)

    def _choose_plans(self, parsed: Any) -> None:
        """Which plans for other GPUs stay beside the winner."""
        winner = self.model.winner
        own = built_plan(winner.trial, self.model.selection)
        plugins = {name: digest_files([winner.folder / name]) for name in own.details.get("plugins", ())}
        self.plans = plan_set(own, plugins, self.existing, self.model.graph.digest, parsed)
        for note in self.plans.notes:
            self.events(Event("write", "warning", note, subject=self.model.name))
        self.notes += self.plans.notes
        if self.plans.carried:
            beside = ", ".join(f"{plan.compute_capability} ({plan.file})" for _, plan in self.plans.carried)
            message = f"beside the plans for compute capability {beside}"
            self.events(Event("write", "note", message, subject=self.model.name))

    def _with_plans(self, config: ModelConfig) -> ModelConfig:
        if self.plans is None or not self.plans.carried:
            return config
        # GPUs that none was built for get this one, so that TensorRT says what is wrong.
        return replace(
            config, cc_model_filenames=self.plans.filenames, default_model_filename=self.plans.own.file
        )

    def _config(self, tensors: ServedTensors | None) -> ModelConfig:
        model = self.model
        return make_model_config(
            model.name,
            serving=model.spec.serving,
            graph=model.graph,
            inputs=model.inputs,
            selection=model.selection,
            traits=model.traits,
            tensors=tensors,
            sample=model.sample,
        )

    def _served(self, file: Path) -> ServedTensors | None:
        """Shapes as the serving engine sees them, where it can be asked on this machine."""
        if self.model.traits.inputs:
            return ServedTensors(self.model.traits.inputs, self.model.traits.outputs)
        if self.model.traits.backend != "onnxruntime":
            return None
        parsed = parse(f"optimization {{ {self.model.traits.optimization} }}", "the engine's settings")
        return onnx_served_tensors(file, parsed.optimization.graph.level)

    def _checked(self, text: str, config: ModelConfig) -> Any:
        """The parsed text; SpecError if Triton would refuse it."""
        parsed = parse_rendered(text, config, self.model.spec.serving.template)
        refuse(self.model.name, check_rules(parsed))
        return parsed

    def _check_named(self, parsed: Any, version: int) -> None:
        """SpecError if serving.raw or a template names a model file that is not there."""
        named, beside = parsed.default_model_filename, sorted(self.contents.files)
        if named and f"{version}/{named}" not in beside:
            raise SpecError(
                f"the configuration of model '{self.model.name}' names a file that its version lacks",
                found=f"default_model_filename {named}",
                expected=", ".join(path.partition("/")[2] for path in beside),
                fix="correct serving.raw or serving.template, or keep the runners-up (keep_candidates: true)",
            )

    def _versions(self, config: Any) -> list[KeptVersion]:
        """The version folders to come, newest first; an unchanged artifact keeps its number."""
        old = sorted(self.existing.manifest.kept_versions, key=lambda v: -v.version) if self.existing else []
        artifact = _artifact(self.model.winner)
        new = KeptVersion(
            version=self.highest_version + 1,
            candidate=self.model.selection.winner,
            artifact_digest=artifact.digest,
            source_digest=self.model.graph.digest,
            created=manifests.now(),
        )
        keep = self.model.spec.serving.keep_versions
        if not old or self.existing is None:
            return [new]
        self.replaced = why_incompatible(self.existing, config, self._filename)
        if self.replaced is not None:
            if keep > 1:
                message = f"older versions are not kept: {self.replaced}"
                self.events(Event("write", "warning", message, subject=self.model.name))
            return [new]
        if old[0].artifact_digest == artifact.digest:
            return old[:keep]
        return [new, *old[: keep - 1]]

    def _copy(self, candidate: BuiltCandidate, version: int, filename: str) -> None:
        """Copy an artifact; RepositoryError if it is not what its trial measured."""
        artifact = _artifact(candidate)
        extras = self._extra_names(candidate, version, filename)
        names = [(artifact.file, filename), *extras.items()]
        digest = self.contents.copy((candidate.folder / name, f"{version}/{to}") for name, to in names)
        if digest != artifact.digest:
            raise RepositoryError(
                f"the files of candidate '{candidate.trial.candidate.id}' changed after they were measured",
                found=f"SHA-256 {digest[:16]}…",
                expected=f"{artifact.digest[:16]}…",
                fix=f"remove {candidate.folder} and build again",
            )
        if any(name != to for name, to in extras.items()):
            path = f"{version}/{filename}"
            self.contents.rewrite(path, with_external_data_at(self.contents.folder / path, extras))
        if filename.endswith(".onnx") and self.model.spec.target is not None:
            self._fit(f"{version}/{filename}")  # without a target: this environment, which just opened it

    def _extra_names(self, candidate: BuiltCandidate, version: int, filename: str) -> dict[str, str]:
        """Weights files keep their names, unless another candidate of this version has one of that name."""
        stem = filename.rpartition(".")[0]
        return {
            name: f"{stem}.{name}" if f"{version}/{name}" in self.contents.files else name
            for name in _artifact(candidate).extra_files
        }

    def _fit(self, path: str) -> None:
        """See to it that the target reads an ONNX file, by the IR version's number alone."""
        target, file = find_target(self.model.spec.target), self.contents.folder / path
        before, opsets = onnx_versions(file)
        if target.max_ir_version is not None and before > target.max_ir_version:
            proto = load_proto(file)
            lower_ir_version(proto, target, file)
            self.contents.rewrite(path, proto.SerializeToString())
            self.notes.append(f"{path}: {ir_note(before, proto.ir_version, target)}")
            before = proto.ir_version
        reason = target.why_unreadable(before, opsets.get("", 0))
        if reason is not None:
            raise ModelError(
                f"model '{self.model.name}' cannot be served by {target.name}",
                found=reason,
                expected="a file that the target reads",
                fix="export it with an older opset, or choose a newer serving image (target)",
            )

    def _copy_runners_up(self, version: int, tensors: ServedTensors | None) -> tuple[KeptCandidate, ...]:
        kept = []
        for candidate in self.model.runners_up:
            filename = self._runner_up_name(candidate, version)
            if tensors is not None and _shapes(self._served(_file(candidate))) != _shapes(tensors):
                message = (
                    f"candidate '{candidate.trial.candidate.id}' is not kept: its inputs or outputs have "
                    "other shapes than the winner's, and they share one config.pbtxt"
                )
                self.events(Event("write", "warning", message, subject=self.model.name))
                continue
            self._copy(candidate, version, filename)
            kept.append(
                KeptCandidate(
                    candidate=candidate.trial.candidate, file=filename, accuracy=candidate.trial.accuracy
                )
            )
        return tuple(kept)

    def _runner_up_name(self, candidate: BuiltCandidate, version: int) -> str:
        """`model.int8.onnx`, or with the candidate's id where that is taken."""
        stem, _, suffix = self.model.traits.filename.rpartition(".")
        name = f"{stem}.{candidate.trial.candidate.precision}.{suffix}"
        return (
            name
            if f"{version}/{name}" not in self.contents.files
            else (f"{stem}.{candidate.trial.candidate.id}.{suffix}")
        )

    def _link_version(self, version: int) -> None:
        if self.existing is None:
            return
        for path, entry in self.existing.manifest.files.items():
            if path.startswith(f"{version}/"):
                self.contents.link(self.existing.folder / path, path, entry)

    def _link(self, old: str, new: str) -> None:
        """Take over one file of the folder that is being replaced, under another name."""
        if self.existing is not None:
            self.contents.link(self.existing.folder / old, new, self.existing.manifest.files[old])

    def _link_foreign(self) -> None:
        """Files that someone put into the model's folder (labels, notes) move along."""
        for path in self.existing.foreign if self.existing else ():
            if self.existing and path not in self.contents.files:
                self.contents.link(self.existing.folder / path, path, None)

    def _write_reference(self) -> Reference | None:
        if not self.model.reference:
            return None
        stream = io.BytesIO()
        np.savez(stream, **{name: np.asarray(array) for name, array in self.model.reference.items()})
        self.contents.write(REFERENCE, stream.getvalue())
        return Reference(file=REFERENCE, digest=self.contents.files[REFERENCE].digest)

    def _manifest(
        self,
        config: ModelConfig,
        versions: Sequence[KeptVersion],
        runners_up: tuple[KeptCandidate, ...],
        reference: Reference | None,
    ) -> Manifest:
        model, trial, graph = self.model, self.model.winner.trial, self.model.graph
        artifact = _artifact(model.winner)
        ir_version, opsets = graph.ir_version, graph.opsets
        if model.traits.filename.endswith(".onnx"):
            ir_version, opsets = onnx_versions(
                self.contents.folder / str(versions[0].version) / model.traits.filename
            )
        same = self._unchanged(versions[0].artifact_digest)
        return Manifest(
            name=model.name,
            created=manifests.now(),
            versions={"tritongen": __version__, **model.versions, **artifact.versions},
            machine=trial.machine,
            server=same.server if same else None,
            target=model.spec.target,
            source=Source(
                file=graph.path.name,
                digest=graph.digest,
                size_bytes=graph.size_bytes,
                ir_version=graph.ir_version,
                opsets=graph.opsets,
            ),
            spec_digest=digest_json(model.spec.model_dump(mode="json")),
            objective=model.selection.objective,
            slo=model.spec.slo,
            engine=trial.candidate.engine,
            backend=config.backend,
            candidate=trial.candidate,
            reason=model.selection.reason,
            runtime=model.selection.runtime,
            instances=config.instance_groups[0].count,
            batch_size=model.selection.batch_size,
            max_batch_size=config.max_batch_size,
            accuracy=trial.accuracy,
            curve=trial.curve,
            memory_bytes=trial.memory_bytes,
            inputs=_input_entries(config, model.inputs),
            outputs=tuple(_tensor_entry(tensor) for tensor in config.outputs),
            version=versions[0].version,
            model_file=self._filename,
            ir_version=ir_version,
            opsets=opsets,
            kept_versions=tuple(versions),
            plans=self.plans.plans if self.plans else (),
            runners_up=runners_up,
            files=dict(sorted(self.contents.files.items())),
            reference=reference,
            proofs=same.proofs if same else (),
            notes=(*model.notes, *self.notes),
        )

    def _unchanged(self, artifact_digest: str) -> Manifest | None:
        """The manifest before this one, if the same files are served by the same configuration."""
        if self.existing is None:
            return None
        old = self.existing.manifest
        same_files = old.kept_versions[:1] and old.kept_versions[0].artifact_digest == artifact_digest
        same_config = old.files[CONFIG].digest == self.contents.files[CONFIG].digest
        return old if same_files and same_config else None


def _artifact(candidate: BuiltCandidate) -> Artifact:
    artifact = candidate.trial.artifact
    if artifact is None:
        raise RepositoryError(
            f"candidate '{candidate.trial.candidate.id}' has no artifact", fix="build again"
        )
    return artifact


def _file(candidate: BuiltCandidate) -> Path:
    return candidate.folder / _artifact(candidate).file


def _shapes(tensors: ServedTensors | None) -> Any:
    """What config.pbtxt would say of them: symbolic names do not matter."""
    if tensors is None:
        return None
    both = (*tensors.inputs, *tensors.outputs)
    return [(t.name, t.dtype, [dim if isinstance(dim, int) else -1 for dim in t.shape]) for t in both]


def _tensor_entry(tensor: TensorConfig) -> TensorEntry:
    return TensorEntry(name=tensor.name, dtype=from_triton(tensor.data_type).triton, dims=tensor.dims)


def _input_entries(config: ModelConfig, inputs: Sequence[ResolvedInput]) -> tuple[InputEntry, ...]:
    resolved = {one.spec.name: one for one in inputs}
    return tuple(
        InputEntry(
            **_tensor_entry(tensor).model_dump(),
            min_shape=resolved[tensor.name].min or (1,),
            opt_shape=resolved[tensor.name].opt or (1,),
            max_shape=resolved[tensor.name].max or (1,),
            value_range=resolved[tensor.name].value_range,
        )
        for tensor in config.inputs
    )
