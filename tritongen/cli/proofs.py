"""A verdict on one's own server goes into the manifest of the model that it proves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tritongen.repository.manifest import Manifest
    from tritongen.runs.loadtest import LoadReport, Objective
    from tritongen.runs.records import Machine


@dataclass(frozen=True)
class Loaded:
    """What the server runs, which need not be what lies in its repository by now."""

    version: str
    config: Mapping[str, Any]


def loaded(report: LoadReport) -> Loaded | None:
    """The version that was tested and its configuration, from the server; None if it does not tell."""
    from tritongen.errors import ServerError
    from tritongen.serving.control import connect

    control = connect(report.url)
    try:
        versions = control.model_metadata(report.model).versions
        version = report.version or max(versions, key=int, default="")
        return Loaded(version, control.model_config(report.model, version))
    except ServerError:
        return None
    finally:
        control.close()


def record(report: LoadReport, repository: Path, served: Loaded | None) -> str | None:
    """Write PASS or FAIL of every decided objective into the manifest; what was done, in a sentence.

    A server that runs another state than the repository holds proves nothing of the latter. Only for the
    embedded server, which does not poll: a polling Triton reloads a model whose folder changes. None where
    there is nothing to prove (a mix says little of one model), or no manifest of ours to write it into.
    Counts that began anew mean that the server or the version changed meanwhile: nothing is recorded either.
    """
    from tritongen.errors import TritongenError
    from tritongen.repository.manifest import FILENAME
    from tritongen.runs.loadtest import LoadOutcome

    folder = repository / report.model
    decided = [each for each in report.objectives if each.outcome != "undecided"]
    proves = (
        report.outcome in (LoadOutcome.PASS, LoadOutcome.FAIL) and not report.partial and not report.load.mix
    )
    if not proves or not decided or not (folder / FILENAME).is_file() or report.machine is None:
        return None
    try:
        reason = _write(report, report.machine, decided, folder, served)
    except TritongenError as error:  # it must not take the report away
        reason = str(error.message)
    return f"not recorded in {folder / FILENAME}: {reason}" if reason else f"recorded in {folder / FILENAME}"


def _write(
    report: LoadReport, machine: Machine, decided: Sequence[Objective], folder: Path, served: Loaded | None
) -> str | None:
    """Add the proofs to the manifest, or why they prove nothing of what lies there."""
    from tritongen.repository.existing import CONFIG
    from tritongen.repository.manifest import Proof, Server, read_manifest, record_proofs

    manifest = read_manifest(folder)
    if (other := _other_state(served, folder, manifest)) is not None:
        return other
    if report.server_figures is None:  # another version may have given some of the answers
        return report.server_figures_note or "the server has no statistics of the window"
    server = Server(kind="embedded", version=(report.server or "").removeprefix("triton").strip())
    load = report.load
    rate = load.shape or (load.rate and f"{load.rate:g}")
    where = f"{rate} requests/s" if rate else f"{load.concurrency} in flight"
    proofs = tuple(
        Proof(
            slo=each.slo,
            outcome="PASS" if each.outcome == "pass" else "FAIL",
            summary=f"at {where} for {report.window_s:.0f} s: {each.reason}",
            server=server,
            machine=machine,
            config_digest=manifest.files[CONFIG].digest,
            taken=report.started,
        )
        for each in decided
    )
    record_proofs(folder, server, proofs)
    return None


def _other_state(served: Loaded | None, folder: Path, manifest: Manifest) -> str | None:
    """How what the server runs differs from what the repository holds, in a sentence; None if it does not."""
    from tritongen.files import digest_files
    from tritongen.repository.config_text import difference, parse
    from tritongen.repository.existing import CONFIG

    if served is None:
        return "the server does not tell what it runs"
    if served.version != str(manifest.version):
        return f"the server answered with version {served.version}, and version {manifest.version} lies there"
    path = folder / CONFIG
    if not path.is_file() or digest_files([path]) != manifest.files[CONFIG].digest:
        return f"its {CONFIG} is not what was built"
    field = difference(parse(path.read_text(encoding="utf-8")), served.config)
    return None if field is None else f"the server runs another {CONFIG} than lies there ({field})"
