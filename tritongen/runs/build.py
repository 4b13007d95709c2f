"""The records of a build: what was looked at before the trials, and how each model came out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tritongen.runs.records import Machine, Record, Selection, Tradeoff, Trial


class PreparedInput(Record):
    """One input with the sizes that the trials use, per item (full sizes if the model does not batch)."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]
    value_range: tuple[int, int] | None = None


class DataFacts(Record):
    """What a data set turned out to hold."""

    source: str
    samples: int
    digest: str
    synthetic: bool
    labelled: bool


class Preparation(Record):
    """What the data and one run of the model said: the ground that all trials stand on."""

    schema_: Literal["tritongen/preparation/1"] = Field(default="tritongen/preparation/1", alias="schema")
    inputs: tuple[PreparedInput, ...]
    batch_status: str
    """A `tritongen.graph.BatchStatus`, settled by running the model."""
    batch_reason: str
    calibration: DataFacts | None = None
    validation: DataFacts | None = None
    warnings: tuple[str, ...] = ()
    """What is suspicious about the calibration data, and what that does to accuracy."""


class ModelBuild(Record):
    """How the build of one model came out."""

    schema_: Literal["tritongen/model-build/1"] = Field(default="tritongen/model-build/1", alias="schema")
    name: str
    status: Literal["built", "unchanged", "failed"]
    seconds: float
    repository: str | None = None
    """The model's folder in the repository."""
    version: int | None = None
    batching: str | None = None
    """Whether the model batches, and how that was established."""
    selection: Selection | None = None
    trials: tuple[Trial, ...] = ()
    tradeoffs: tuple[Tradeoff, ...] = ()
    """Error against speed of every candidate that was measured, most exact first."""
    notes: tuple[str, ...] = ()
    """What the writer of the repository had to decide."""
    error: str | None = None
    """Why it failed, with what was found, expected, and how to mend it."""
    exit_code: int = 0


class Build(Record):
    """How a build came out: what `tritongen build --json` prints."""

    schema_: Literal["tritongen/build/1"] = Field(default="tritongen/build/1", alias="schema")
    machine: Machine
    models: tuple[ModelBuild, ...]
