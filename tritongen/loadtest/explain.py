"""Where the time goes, what limits it, and the knob that moves it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tritongen.runs.loadtest import ServerFigures, Waterfall

_MOST = 0.5
"""A part that takes more than half of the time is the bottleneck; else the largest one is."""
_FULL_BATCH = 0.9
_ALONE = 1.05
"""A mean batch below this many requests: they run one at a time."""
_BUSY_GPU = 0.85


@dataclass(frozen=True)
class Knobs:
    """What the model's configuration says about batching; None where the server does not tell."""

    max_batch_size: int | None = None
    dynamic_batching: bool | None = None
    queue_delay_us: int = 0
    instances: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> Knobs:
        """From config.pbtxt as the server gives it."""
        if config is None:
            return cls()
        batcher = config.get("dynamic_batching")
        groups = config.get("instance_group") or [{}]
        return cls(
            max_batch_size=int(config.get("max_batch_size", 0)),
            dynamic_batching=batcher is not None,
            queue_delay_us=int((batcher or {}).get("max_queue_delay_microseconds", 0) or 0),
            instances=sum(int(group.get("count", 1) or 1) for group in groups),
        )


def waterfall(
    lag_ms: float | None, service_ms: float | None, server: ServerFigures | None
) -> Waterfall | None:
    """Means per answered request, from the scheduled time to the answer; None without Triton's counts."""
    if server is None or service_ms is None or lag_ms is None or server.queue_ms is None:
        return None
    parts = [
        part or 0.0
        for part in (
            server.queue_ms,
            server.compute_input_ms,
            server.compute_infer_ms,
            server.compute_output_ms,
        )
    ]
    # Both clocks see slightly different requests at the window's edges: never below nothing.
    network = max(0.0, service_ms - sum(parts))
    return Waterfall(
        sender_lag_ms=max(0.0, lag_ms),
        network_ms=network,
        queue_ms=parts[0],
        compute_input_ms=parts[1],
        compute_infer_ms=parts[2],
        compute_output_ms=parts[3],
    )


@dataclass(frozen=True)
class Scene:
    """All that the rules look at."""

    parts: Waterfall
    server: ServerFigures
    knobs: Knobs
    batch_size: float
    """Items in a request, on average."""
    grpc: bool = False
    shared_memory: bool = False

    @property
    def largest(self) -> str:
        """The field of the waterfall that takes most."""
        values: dict[str, float] = self.parts.model_dump()
        return max(values, key=lambda name: values[name])

    @property
    def share(self) -> float:
        values: dict[str, float] = self.parts.model_dump()
        total = sum(values.values())
        return values[self.largest] / total if total > 0 else 0.0

    @property
    def alone(self) -> bool:
        """Whether requests run one at a time."""
        return (self.server.mean_batch or 0) < self.batch_size * _ALONE

    @property
    def batches(self) -> bool:
        """Whether the model could run several requests at once."""
        return (self.knobs.max_batch_size or 0) >= 2 * self.batch_size

    @property
    def full(self) -> bool:
        most = self.knobs.max_batch_size or 0
        return most > 0 and (self.server.mean_batch or 0) >= _FULL_BATCH * most

    @property
    def gpu_busy(self) -> bool:
        return any((gpu.utilization_mean or 0) >= _BUSY_GPU for gpu in self.server.gpus)

    @property
    def waits_for_delay(self) -> bool:
        """Whether the queue delay itself explains most of the queueing."""
        return 0 < self.parts.queue_ms <= 1.2 * self.knobs.queue_delay_us / 1000


Rule = tuple[str, Callable[[Scene], bool], str]

RULES: tuple[Rule, ...] = (
    (
        "sender_lag_ms",
        lambda _: True,
        "requests wait in the sender: give it more --workers, or another machine",
    ),
    (
        "queue_ms",
        lambda scene: scene.waits_for_delay,
        "requests wait for max_queue_delay_microseconds to pass: lower it",
    ),
    (
        "queue_ms",
        lambda scene: scene.alone and scene.batches and scene.knobs.dynamic_batching is False,
        "requests queue and run one at a time: switch dynamic_batching on",
    ),
    (
        "queue_ms",
        lambda scene: scene.full and not scene.gpu_busy,
        "requests queue though batches are full: raise max_batch_size or instance_group.count",
    ),
    (
        "queue_ms",
        lambda scene: scene.gpu_busy,
        "requests queue for a GPU that is busy: a lower precision, a larger batch, or another GPU",
    ),
    (
        "queue_ms",
        lambda _: True,
        "requests queue for an instance: raise instance_group.count, or lower the rate",
    ),
    (
        "compute_infer_ms",
        lambda scene: scene.gpu_busy,
        "the model's own computation on a busy GPU: a lower precision or another GPU",
    ),
    (
        "compute_infer_ms",
        lambda _: True,
        "the model's own computation: a lower precision or a faster engine (`tritongen build`)",
    ),
    (
        "compute_input_ms",
        lambda _: True,
        "gathering inputs: send smaller tensors or data types, or use shared memory",
    ),
    (
        "compute_output_ms",
        lambda _: True,
        "copying outputs: ask for fewer outputs, or let the model return less (top-k instead of all)",
    ),
    (
        "network_ms",
        lambda scene: scene.shared_memory,
        "network and serialization: use a nearer client, or several items a request",
    ),
    (
        "network_ms",
        lambda scene: scene.grpc,
        "network and serialization: use shared memory, a nearer client, or several items a request",
    ),
    (
        "network_ms",
        lambda _: True,
        "network and serialization: use gRPC, shared memory, a nearer client, or several items a request",
    ),
)
"""Part of the waterfall, when it applies, sentence: the first that fits the largest part is told."""


def bottleneck(scene: Scene) -> str:
    """One sentence: what takes most of the response time, and which knob moves it."""
    largest = scene.largest
    advice = next(text for part, applies, text in RULES if part == largest and applies(scene))
    strength = "" if scene.share > _MOST else ", ahead of others"
    return f"{scene.share:.0%} of the mean response time{strength}: {advice}"
