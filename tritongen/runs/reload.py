"""The record of a reload: which version took over from which, and how its answers compared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tritongen.runs.records import OutputError, Record

ReloadOutcome = Literal["switched", "unchanged"]


class ReloadReport(Record):
    """A version that a running server took over."""

    schema_: Literal["tritongen/reload/1"] = Field(default="tritongen/reload/1", alias="schema")
    model: str
    url: str
    server: str
    """Name and version as the server gives them."""
    outcome: ReloadOutcome
    """switched: clients get `version` now; unchanged: they did before."""
    version: int
    before: int | None
    """The version that clients got before; None: the model was not loaded."""
    kept: int | None = None
    """The version that `tritongen reload MODEL --to` goes back to."""
    answers: tuple[OutputError, ...]
    """Against the outputs that the build kept; empty where it kept none."""
    lost: tuple[str, ...] = ()
    """What clients of `before` may send or read that `version` does not take or give any more."""
    load_s: float = 0.0
    """Until the new version was ready beside the old one."""
    switch_s: float = 0.0
    """Of the `load` call after which clients get the new version; the old one serves during it."""
