"""What a server counts of a model: Triton's statistics as typed values, and their difference over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Timing:
    """How often something happened, and the time that it took in total."""

    count: int = 0
    ns: int = 0

    @property
    def mean_ms(self) -> float:
        """Milliseconds per time; 0 if it never happened."""
        return self.ns / self.count / 1e6 if self.count else 0.0

    def continues(self, earlier: Timing) -> bool:
        """Whether neither figure went back."""
        return self.count >= earlier.count and self.ns >= earlier.ns

    def __sub__(self, earlier: Timing) -> Timing:
        return Timing(self.count - earlier.count, self.ns - earlier.ns)


@dataclass(frozen=True)
class BatchStatistics:
    """Executions of one batch size; each `count` is the number of executions."""

    batch_size: int
    compute_input: Timing
    compute_infer: Timing
    compute_output: Timing

    def continues(self, earlier: BatchStatistics) -> bool:
        """Whether no figure went back."""
        return all(
            getattr(self, name).continues(getattr(earlier, name))
            for name in ("compute_input", "compute_infer", "compute_output")
        )

    def __sub__(self, earlier: BatchStatistics) -> BatchStatistics:
        return BatchStatistics(
            self.batch_size,
            self.compute_input - earlier.compute_input,
            self.compute_infer - earlier.compute_infer,
            self.compute_output - earlier.compute_output,
        )


@dataclass(frozen=True)
class ModelStatistics:
    """Counts and times of one version of a model since it was loaded (or between two moments)."""

    name: str
    version: str
    inference_count: int = 0
    """Items: a request of batch 8 counts 8. Requests that the cache answered are not among them."""
    execution_count: int = 0
    """Calls of the backend, each with one (dynamic) batch."""
    success: Timing = Timing()
    """Requests that were answered, with their whole time in the server."""
    fail: Timing = Timing()
    queue: Timing = Timing()
    compute_input: Timing = Timing()
    compute_infer: Timing = Timing()
    compute_output: Timing = Timing()
    cache_hit: Timing = Timing()
    cache_miss: Timing = Timing()
    batches: tuple[BatchStatistics, ...] = ()

    @property
    def mean_batch(self) -> float:
        """Inferences per execution; 0 if nothing was executed."""
        return self.inference_count / self.execution_count if self.execution_count else 0.0

    def continues(self, earlier: ModelStatistics) -> bool:
        """Whether it still counts on from `earlier`: a load of the model or a restart begins at nothing."""
        now = {batch.batch_size: batch for batch in self.batches}
        return (
            self.version == earlier.version
            and self.inference_count >= earlier.inference_count
            and self.execution_count >= earlier.execution_count
            and all(getattr(self, name).continues(getattr(earlier, name)) for name in TIMINGS)
            and all(b.batch_size in now and now[b.batch_size].continues(b) for b in earlier.batches)
        )

    def __sub__(self, earlier: ModelStatistics) -> ModelStatistics:
        """What happened since `earlier`; a model that was loaded again in between counts from its load."""
        if not self.continues(earlier):
            return self
        known = {batch.batch_size: batch for batch in earlier.batches}
        batches = (b - known[b.batch_size] if b.batch_size in known else b for b in self.batches)
        return ModelStatistics(
            name=self.name,
            version=self.version,
            inference_count=self.inference_count - earlier.inference_count,
            execution_count=self.execution_count - earlier.execution_count,
            batches=tuple(batch for batch in batches if batch.compute_infer.count),
            **{name: getattr(self, name) - getattr(earlier, name) for name in TIMINGS},
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelStatistics:
        """From one entry of `model_stats`, as the HTTP and gRPC APIs give it."""
        timings = value.get("inference_stats", {})
        return cls(
            name=value.get("name", ""),
            version=str(value.get("version", "")),
            inference_count=int(value.get("inference_count", 0)),
            execution_count=int(value.get("execution_count", 0)),
            batches=tuple(_batch(batch) for batch in value.get("batch_stats", ())),
            **{name: _timing(timings.get(name)) for name in TIMINGS},
        )


TIMINGS = tuple(each.name for each in fields(ModelStatistics) if each.default == Timing())


def _timing(value: Mapping[str, Any] | None) -> Timing:
    return Timing(int(value.get("count", 0)), int(value.get("ns", 0))) if value else Timing()


def _batch(value: Mapping[str, Any]) -> BatchStatistics:
    return BatchStatistics(
        int(value.get("batch_size", 0)),
        _timing(value.get("compute_input")),
        _timing(value.get("compute_infer")),
        _timing(value.get("compute_output")),
    )
