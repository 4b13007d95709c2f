"""`manifest.json`: what built a served model, where its numbers were taken, and what proves its promises."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from tritongen.errors import InputError, RepositoryError
from tritongen.repository.findings import BUILD, FORCED_BUILD, REBUILD
from tritongen.repository.swap import locked
from tritongen.runs.records import Accuracy, Candidate, LatencyPoint, Machine, Options, Record
from tritongen.runs.store import write_record

FILENAME = "manifest.json"
"""In the model's folder; Triton reads only config.pbtxt and the version folders there."""
_REBUILD = REBUILD.replace(BUILD, FORCED_BUILD)


class FileEntry(Record):
    """One file of the model's folder."""

    digest: str
    """SHA-256 of its content, hexadecimal."""
    size_bytes: int


class Source(Record):
    """The ONNX file that everything was built from."""

    file: str
    """Its name, without the folder."""
    digest: str
    """SHA-256 over the model file and its external data files, hexadecimal."""
    size_bytes: int
    ir_version: int
    opsets: dict[str, int]


class Server(Record):
    """A server that numbers were taken on."""

    kind: Literal["embedded", "container", "remote"]
    version: str
    """Triton's own version ("2.51.0")."""
    image: str | None = None
    backends: dict[str, str] = Field(default_factory=dict)
    """Library versions behind the backends, where they are known."""


class TensorEntry(Record):
    """One input or output as clients see it."""

    name: str
    dtype: str
    """The KServe v2 name ("FP32")."""
    dims: tuple[int, ...]
    """As in config.pbtxt: without the batch axis when the model batches, −1 for dynamic axes."""


class InputEntry(TensorEntry):
    """One input, with all that a load test needs to make values for it."""

    min_shape: tuple[int, ...]
    """Per item, as clients send it: without the batch axis when the model batches."""
    opt_shape: tuple[int, ...]
    max_shape: tuple[int, ...]
    value_range: tuple[int, int] | None = None
    """Inclusive; None where any value will do."""


class KeptVersion(Record):
    """One version folder."""

    version: int
    candidate: str
    artifact_digest: str
    source_digest: str
    created: str
    """ISO 8601, UTC."""


class KeptCandidate(Record):
    """A passing runner-up that lies beside the winner."""

    candidate: Candidate
    file: str
    """In the version folder; name it in `default_model_filename` to serve it."""
    accuracy: Accuracy | None = None


class BuiltPlan(Record):
    """One TensorRT plan in the version folder: what built it, and for which GPU."""

    file: str
    """In the version folder; `cc_model_filenames` names it where there are several."""
    digest: str
    """SHA-256 over the file and the plugins beside it, hexadecimal."""
    candidate: Candidate
    versions: dict[str, str]
    """TensorRT, CUDA, driver, GPU and compute capability that it was built with."""
    machine: Machine
    """Where it was built and measured."""
    created: str
    """ISO 8601, UTC."""
    instances: int
    accuracy: Accuracy | None = None
    curve: tuple[LatencyPoint, ...] = ()
    details: dict[str, Any] = Field(default_factory=dict)
    """What the engine said of it: profiles, tensors, layers, the proof of its precision, memory."""

    @property
    def compute_capability(self) -> str:
        """Of the GPU that it was built for ("9.0"); empty where the build did not tell."""
        return self.versions.get("compute_capability", "")


class Reference(Record):
    """Inputs and the outputs that they gave, to compare a served model with."""

    file: str
    """Relative to the model's folder: an .npz with `input/<name>` and `output/<name>` arrays."""
    digest: str


class Proof(Record):
    """A service-level objective and how a load test on one server decided it."""

    slo: str
    outcome: Literal["PASS", "FAIL", "INVALID", "ERROR"]
    summary: str
    """One sentence with the numbers."""
    server: Server
    machine: Machine
    config_digest: str
    """SHA-256 of the config.pbtxt that was served; another one makes the proof void."""
    taken: str
    """ISO 8601, UTC."""
    report: str | None = None


class Manifest(Record):
    """Everything worth knowing about one served model."""

    schema_: Literal["tritongen/manifest/1"] = Field(default="tritongen/manifest/1", alias="schema")
    name: str
    created: str
    """ISO 8601, UTC."""
    versions: dict[str, str]
    """Of tritongen and every library that took part."""
    machine: Machine
    """Where the trials ran."""
    server: Server | None = None
    """The server on which the serving numbers were taken; None: UNPROVEN on every server."""
    target: str | None = None
    """The image that the files were made for; None: the embedded Triton."""
    source: Source
    spec_digest: str
    """SHA-256 of the model's effective spec, hexadecimal."""
    objective: str
    slo: tuple[str, ...] = ()
    """The service-level objectives of the spec; a load test judges them unless it is given others."""
    engine: str
    backend: str
    candidate: Candidate
    reason: str
    """Why it was selected."""
    runtime: Options
    instances: int
    batch_size: int
    """The batch size at which it was judged."""
    max_batch_size: int
    accuracy: Accuracy | None = None
    curve: tuple[LatencyPoint, ...] = ()
    memory_bytes: int | None = None
    inputs: tuple[InputEntry, ...]
    outputs: tuple[TensorEntry, ...]
    version: int
    """The version folder of this build, which takes unversioned traffic."""
    model_file: str
    """The file in the version folder that is served."""
    ir_version: int
    opsets: dict[str, int]
    """Of the served file; they decide which ONNX Runtime can read it."""
    kept_versions: tuple[KeptVersion, ...]
    """Every version folder, newest first; the first is this build's."""
    plans: tuple[BuiltPlan, ...] = ()
    """TensorRT: one per compute capability, this build's first; empty for other engines."""
    runners_up: tuple[KeptCandidate, ...] = ()
    files: dict[str, FileEntry]
    """Every file that tritongen wrote, this one excepted, by path relative to the model's folder."""
    reference: Reference | None = None
    proofs: tuple[Proof, ...] = ()
    notes: tuple[str, ...] = ()
    """What was changed on the way, and why."""


def now() -> str:
    """The time as manifests write it: ISO 8601, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def check_repository(repository: Path) -> None:
    """InputError unless there is a folder."""
    if not repository.is_dir():
        raise InputError(
            f"there is no model repository at {repository}",
            found="a file" if repository.exists() else "nothing",
            expected="a folder with one folder per model",
            fix="name its folder, or write one with `tritongen build MODEL.onnx`",
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a model's folder; RepositoryError if it is missing or of another form."""
    path = folder / FILENAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise RepositoryError(
            f"{folder} was not written by tritongen",
            found=f"no {FILENAME}",
            fix=f"{_REBUILD}, which replaces the folder",
        ) from error
    except OSError as error:
        raise RepositoryError(f"{path} cannot be read", found=str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise RepositoryError(
            f"{path} is not a manifest that this version of tritongen can read",
            found=f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}",
            expected="schema tritongen/manifest/1",
            fix=_REBUILD,
        ) from error


def record_proofs(folder: Path, server: Server, proofs: tuple[Proof, ...]) -> Manifest:
    """Add proofs to a model's manifest, in place of older ones of the same objective on the same server."""
    replaced = {(proof.slo, proof.server.kind, proof.server.image) for proof in proofs}
    with locked(folder.parent):  # or a build might put another manifest there meanwhile
        manifest = read_manifest(folder)
        kept = (p for p in manifest.proofs if (p.slo, p.server.kind, p.server.image) not in replaced)
        updated = manifest.model_copy(update={"server": server, "proofs": (*kept, *proofs)})
        try:
            write_record(folder / FILENAME, updated)
        except OSError as error:
            raise RepositoryError(f"{folder / FILENAME} cannot be written", found=str(error)) from error
    return updated
