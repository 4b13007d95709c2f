"""The run directory's records: frozen, versioned, and the only contract between stages."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tritongen.spec import Precision

Option = bool | int | float | str
Options = dict[str, Option]


class Record(BaseModel):
    """Base of everything that is written as JSON; `schema_` names the form and its version."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True
    )


class Machine(Record):
    """Where numbers were taken."""

    hostname: str
    system: str
    """Kernel and C library."""
    python: str
    cpu: str
    cores: int
    """Cores that this process may use."""
    cpu_features: tuple[str, ...] = ()
    """The features that decide integer speed: avx2, avx512_vnni, amx_int8, …"""
    memory_bytes: int
    gpus: tuple[str, ...] = ()
    driver: str | None = None


class Candidate(Record):
    """What could be built: one engine, one precision, one set of build options."""

    id: str
    """Unique in a run and readable: "onnxruntime-int8-entropy"."""
    engine: str
    precision: Precision
    options: Options = Field(default_factory=dict)
    held: tuple[str, ...] = ()
    """Nodes that stay in floating point although the recipe would quantize them: for accuracy (mixed
    precision), or because the engine has no kernel for them."""


class Artifact(Record):
    """A built candidate: the file that a server loads."""

    file: str
    """Relative to the trial's folder."""
    extra_files: tuple[str, ...] = ()
    """External data and the like, relative to the trial's folder."""
    digest: str
    """SHA-256 over file and extra files, hexadecimal."""
    size_bytes: int
    build_seconds: float
    versions: dict[str, str]
    """Of everything that decides whether a server can load it."""
    details: dict[str, Any] = Field(default_factory=dict)
    """What the engine wants to remember."""


class GpuConditions(Record):
    """The GPU while one point was measured, as far as NVML tells."""

    clock_mhz: int | None = None
    """Median of the streaming multiprocessors' clock, after the warm-up; so are the next two."""
    lowest_clock_mhz: int | None = None
    highest_clock_mhz: int | None = None
    temperature_c: int | None = None
    """The highest."""
    throttled: tuple[str, ...] = ()
    """Why clocks were not higher."""
    other_processes: int = 0
    """Other processes that hold the GPU, busy or not."""
    busy_processes: int = 0
    """Other processes that computed on it meanwhile, as far as the driver tells."""
    memory_used_bytes: int | None = None
    """Of the whole GPU, by everyone."""


class LatencyPoint(Record):
    """The bare engine at one batch size, under one runtime setting, with k instances at once."""

    batch_size: int
    instances: int
    runtime: Options
    iterations: int
    """Calls measured, over all instances."""
    mean_ms: float
    median_ms: float
    p99_ms: float
    throughput: float
    """Inferences per second: items ÷ wall time of the measured window, all instances together."""
    spread: float
    """Half-width of the 95 % confidence interval of the median, as a fraction of the median."""
    samples: str | None = None
    """Array name in the trial's samples.npz: raw latencies in nanoseconds."""
    gpu: GpuConditions | None = None
    cpu_taken: float | None = None
    """Share of the processor time that the measurement wanted and other processes had; None: not known."""
    noisy: tuple[str, ...] = ()
    """Why this is noisy; a disturbed GPU was measured again before."""
    repeats: int = 0
    """How often it was measured again because the GPU was disturbed."""


class OutputError(Record):
    """How far one output is from the reference."""

    output: str
    measure: str
    """`top1_agreement`, `relative_l2`, `cosine_distance`, `equal`."""
    value: float
    limit: float
    passed: bool


class Accuracy(Record):
    """The verdict of the accuracy gate on one candidate."""

    basis: Literal["labels", "reference", "synthetic"]
    """What it was judged by: labelled data, the reference's outputs on real data, or on made-up inputs."""
    passed: bool
    summary: str
    """One sentence with the numbers."""
    metric: str | None = None
    reference_value: float | None = None
    value: float | None = None
    loss: float | None = None
    """In points of the metric (percent) with labels."""
    limit: float | None = None
    outputs: tuple[OutputError, ...] = ()
    samples: int = 0


class Outcome(str, Enum):
    """How a trial ended."""

    PASSED = "passed"
    REJECTED = "rejected"
    """Built and measured, and not accurate enough."""
    FAILED = "failed"
    """Could not be built or crashed; the reason says what happened."""


class Trial(Record):
    """What was measured of one candidate."""

    schema_: Literal["tritongen/trial/1"] = Field(default="tritongen/trial/1", alias="schema")
    key: str
    """Digest of everything that the result depends on; an equal key means it need not run again."""
    candidate: Candidate
    outcome: Outcome
    reason: str
    artifact: Artifact | None = None
    accuracy: Accuracy | None = None
    curve: tuple[LatencyPoint, ...] = ()
    memory_bytes: int | None = None
    """Memory that one open instance takes beyond the bare process (GPU memory on a GPU)."""
    peak_memory_bytes: int | None = None
    """Peak resident memory of the trial's process."""
    notes: tuple[str, ...] = ()
    """What differs from the candidate as it was asked for, and why; `candidate.held` has the nodes."""
    machine: Machine
    seconds: float


class Loser(Record):
    """A candidate that was not selected, and why, in one sentence."""

    candidate: str
    reason: str


class Comparison(Record):
    """Two candidates measured in alternation in one process, so that both met the same noise."""

    schema_: Literal["tritongen/comparison/1"] = Field(default="tritongen/comparison/1", alias="schema")
    candidate: str
    against: str
    batch_size: int
    """Of the candidate."""
    against_batch_size: int
    rounds: int
    ratio: float
    """Median over the rounds of the candidate's throughput (or speed) ÷ the other's."""
    low: float
    high: float
    """The 95 % confidence interval of that median."""


class Selection(Record):
    """The winner, and why each loser lost."""

    schema_: Literal["tritongen/selection/1"] = Field(default="tritongen/selection/1", alias="schema")
    objective: str
    winner: str
    """Candidate id."""
    reason: str
    runtime: Options
    instances: int
    batch_size: int
    """The batch size at which the winner was judged."""
    max_batch_size: int
    """What the server will be configured for; 0: no batching."""
    losers: tuple[Loser, ...]
    runners_up: tuple[str, ...]
    """Losers that passed the gate, best first."""
    comparisons: tuple[Comparison, ...] = ()
    """Head-to-head measurements that settled close calls."""
    notes: tuple[str, ...] = ()
    """What was not tried, and why."""


class BlockCost(Record):
    """What quantizing one block of nodes, and nothing else, costs on calibration data."""

    nodes: tuple[str, ...]
    error: float
    """Relative L2 over all outputs."""


class MixedPoint(Record):
    """One mixture of INT8 and floating point that was judged."""

    held: int
    """Blocks held in floating point, the dearest first."""
    error: float
    """What the accuracy gate measured, in percent (`Tradeoff.error`)."""
    passed: bool


class Sensitivity(Record):
    """What each block costs in INT8, and the fewest blocks to hold back until the accuracy gate holds."""

    schema_: Literal["tritongen/sensitivity/1"] = Field(default="tritongen/sensitivity/1", alias="schema")
    key: str
    """Digest of everything that the result depends on."""
    candidate: str
    """The INT8 candidate that failed the gate."""
    simulated: bool
    """Judged by ONNX Runtime on the engine's Q/DQ nodes, not by the engine itself."""
    blocks: tuple[BlockCost, ...]
    """Dearest first."""
    points: tuple[MixedPoint, ...]
    held: int | None
    """Of the mixture with the fewest blocks held that passes; None: there is none."""


class Tradeoff(Record):
    """One candidate's error against its speed, at the point by which the objective judges it."""

    candidate: str
    error: float
    """In percent: points of the metric that were lost, or the loss of the worst output."""
    median_ms: float
    throughput: float
    batch_size: int
    instances: int = 1
    passed: bool
    on_front: bool
    """No other candidate is both more exact and faster."""


class TensorRanges(Record):
    """What was seen of one tensor, and the range that each method gives it."""

    minimum: float
    maximum: float
    zeros: float
    """Share of exact zeros."""
    ranges: dict[str, tuple[float, float]]


class Calibration(Record):
    """Ranges of a model's activations on one data set."""

    schema_: Literal["tritongen/calibration/1"] = Field(default="tritongen/calibration/1", alias="schema")
    model: str
    """Digest of the model."""
    data: str
    """Digest of the data set."""
    symmetric: bool
    samples: int
    tensors: dict[str, TensorRanges]

    def by(self, method: str) -> dict[str, tuple[float, float]]:
        """The ranges of one method; KeyError for an unknown one."""
        return {name: tensor.ranges[method] for name, tensor in self.tensors.items()}


def schema_name(record: type[Record]) -> str:
    """The name and version that files of this record carry ("tritongen/trial/1")."""
    return str(record.model_fields["schema_"].default)
