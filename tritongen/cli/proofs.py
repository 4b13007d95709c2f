"""A verdict on one's own server goes into the manifest of the model that it proves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tritongen.runs.loadtest import LoadReport

_CONFIG = "config.pbtxt"


def record(report: LoadReport, repository: Path) -> str | None:
    """Write PASS or FAIL of every decided objective into the manifest; what was done, in a sentence.

    Only for the embedded server, which does not poll: a polling Triton reloads a model whose folder changes.
    None where there is nothing to prove (a mix says little of one model), or no manifest of ours to
    write it into.
    """
    from tritongen.repository.manifest import FILENAME, Proof, Server, read_manifest, record_proofs
    from tritongen.runs.loadtest import LoadOutcome

    folder = repository / report.model
    decided = [each for each in report.objectives if each.outcome != "undecided"]
    proves = (
        report.outcome in (LoadOutcome.PASS, LoadOutcome.FAIL) and not report.partial and not report.load.mix
    )
    if not proves or not decided or not (folder / FILENAME).is_file() or report.machine is None:
        return None
    config = read_manifest(folder).files.get(_CONFIG)
    if config is None:
        return None
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
            machine=report.machine,
            config_digest=config.digest,
            taken=report.started,
        )
        for each in decided
    )
    record_proofs(folder, server, proofs)
    return f"recorded in {folder / FILENAME}"
