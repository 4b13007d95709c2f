"""What is sent: a group of ready-made requests for each model and batch size of the mix, and their order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tritongen.errors import InputError
from tritongen.loadtest.inputs import Inputs, prepare_inputs
from tritongen.loadtest.request import Wire, check, encode
from tritongen.loadtest.schedule import NS_PER_S, Schedule, open_loop, shaped
from tritongen.loadtest.settings import Settings
from tritongen.loadtest.shared_memory import shared_tensors
from tritongen.loadtest.target import Address, ServedModel, check_batch_size, describe
from tritongen.loadtest.trace import Arrival
from tritongen.serving.control import ServerControl
from tritongen.shapes import check_input_names

_CYCLE = 8192
"""Requests after which the order of a closed loop's mix begins anew."""
_MOST_PREPARED = 0xFFFF
"""A sample's row has two bytes for the number of its request."""
_CHOICES = 0x10AD
"""Keeps the draws of the mix apart from those of the arrivals, which have the same seed."""


@dataclass(frozen=True)
class Group:
    """Requests of one model and batch size: `count` of them from number `first` on, in rotation."""

    model: ServedModel
    batch_size: int
    weight: float
    inputs: Inputs
    first: int

    @property
    def count(self) -> int:
        return len(self.inputs.batches)


@dataclass(frozen=True)
class Workload:
    """Every group; the first one's model is the one whose name the test bears."""

    groups: tuple[Group, ...]

    @property
    def inputs(self) -> Inputs:
        """Of all groups together."""
        sources = dict.fromkeys(group.inputs.source for group in self.groups)
        return Inputs(
            tuple(each for group in self.groups for each in group.inputs.batches), ", ".join(sources)
        )

    @property
    def batches(self) -> tuple[int, ...]:
        """Items in each prepared request."""
        return tuple(group.batch_size for group in self.groups for _ in range(group.count))

    @property
    def first_model_count(self) -> int:
        """How many of the prepared requests are for the first model; they come first."""
        name = self.groups[0].model.name
        return sum(group.count for group in self.groups if group.model.name == name)

    def order(self, count: int, seed: int) -> NDArray[np.uint16]:
        """Which request each of `count` arrivals sends: groups by weight, in a group one after another."""
        if len(self.groups) == 1:
            return (np.arange(count) % self.groups[0].count).astype(np.uint16)
        weights = np.array([group.weight for group in self.groups])
        # A longer order begins with the shorter one: one number is drawn for each arrival.
        drawn = np.random.default_rng([seed, _CHOICES]).random(count)
        chosen = np.searchsorted(np.cumsum(weights / weights.sum()), drawn, side="right")
        return self._rotate(np.minimum(chosen, len(self.groups) - 1))

    def cycle(self, seed: int) -> tuple[int, ...]:
        """The order of a closed loop, which begins anew at its end."""
        count = self.groups[0].count if len(self.groups) == 1 else _CYCLE
        return tuple(self.order(count, seed).tolist())

    def replay(self, arrivals: Sequence[Arrival], duration_s: float) -> Schedule:
        """The schedule of a trace as far as the run goes; InputError for models that are not in the mix."""
        kept = [each for each in arrivals if each.offset_s < duration_s]
        chosen = np.array([self._group_of(each) for each in kept])
        requests = self._rotate(chosen)
        for place, each in enumerate(kept):
            if each.sample is not None:
                group = self.groups[chosen[place]]
                requests[place] = group.first + each.sample % group.count
        offsets = np.array([each.offset_s for each in kept]) * NS_PER_S
        return Schedule(offsets.astype(np.int64), requests)

    def _group_of(self, arrival: Arrival) -> int:
        for place, group in enumerate(self.groups):
            if arrival.model in (None, group.model.name) and arrival.batch_size in (None, group.batch_size):
                return place
        known = ", ".join(f"{group.model.name} with batch {group.batch_size}" for group in self.groups)
        raise InputError(
            "the trace asks for something that is not prepared",
            found=f"model {arrival.model or 'any'}, batch {arrival.batch_size or 'any'}",
            expected=known,
            fix="name the model with --mix and the sizes with --batch-size",
        )

    def _rotate(self, chosen: NDArray[np.intp]) -> NDArray[np.uint16]:
        requests = np.zeros(len(chosen), np.uint16)
        for place, group in enumerate(self.groups):
            mine = chosen == place
            requests[mine] = group.first + np.arange(int(mine.sum())) % group.count
        return requests


def prepare_workload(settings: Settings, control: ServerControl) -> Workload:
    """Ask the server about every model of the mix, and prepare inputs for each of its batch sizes."""
    groups: list[Group] = []
    sizes = settings.batch_weights
    models = [
        describe(control, name, settings.version if name == settings.model else "")
        for name in settings.model_weights
    ]
    check_named(settings.shapes, models, "--shape")
    check_named(settings.ranges, models, "--range")
    for model, (name, weight) in zip(models, settings.model_weights.items(), strict=True):
        for size, share in sizes.items():
            check_batch_size(model, size)
            inputs = prepare_inputs(
                model,
                size,
                shapes=of_model(settings.shapes, model),
                ranges=of_model(settings.ranges, model),
                data=settings.data if name == settings.model else None,
                seed=settings.seed,
            )
            first = groups[-1].first + groups[-1].count if groups else 0
            groups.append(Group(model, size, weight * share, inputs, first))
    workload = Workload(tuple(groups))
    if len(workload.batches) > _MOST_PREPARED:
        raise InputError(
            "too many models and batch sizes at once",
            found=f"{len(groups)} pairs with {len(workload.batches)} prepared requests",
            expected=f"at most {_MOST_PREPARED}",
        )
    return workload


@contextlib.contextmanager
def encoded(
    settings: Settings, address: Address, control: ServerControl, workload: Workload
) -> Iterator[list[bytes]]:
    """The ready-made requests. Where tensors are in shared memory, they are there until this is left."""
    wire = Wire(() if address.protocol == "grpc" else settings.access.headers, settings.compression)
    asked = [(group.model, arrays) for group in workload.groups for arrays in group.inputs.batches]
    if not settings.shared_memory:
        yield [encode(model, address, arrays, wire) for model, arrays in asked]
        return
    for model, arrays in asked:
        check(model, arrays)
    # The answers to a stream's request are several: they would overwrite each other.
    with shared_tensors(settings.shared_memory, control, asked, with_outputs=not settings.streaming) as (
        region,
        places,
    ):
        there = replace(wire, region=region)
        yield [
            encode(model, address, arrays, there, place)
            for (model, arrays), place in zip(asked, places, strict=True)
        ]


def make_schedule(settings: Settings, workload: Workload) -> Schedule | None:
    """The whole schedule of an open loop; None for a closed one. Same settings, same schedule.

    InputError where no request of it would be measured.
    """
    rate = settings.offered_rate
    if rate is None:
        return None
    how = settings.duration_s, settings.arrival, settings.seed
    if settings.trace is not None:
        schedule = workload.replay(settings.trace, settings.duration_s)
    else:
        shape = settings.rate_shape
        offsets_ns = open_loop(rate, *how) if shape is None else shaped(shape, *how)
        schedule = Schedule(offsets_ns, workload.order(len(offsets_ns), settings.seed))
    if not (schedule.offsets_ns[-1:] >= settings.effective_warmup_s * NS_PER_S).any():
        raise InputError(
            "no request would be measured",
            found=f"{len(schedule)} in all, none of them after {settings.effective_warmup_s:g} s of warm-up",
            fix="give a longer --duration, a shorter --warmup or a higher --rate",
        )
    return schedule


def of_model(named: Mapping[str, str], model: ServedModel) -> Mapping[str, str]:
    """Of what is named INPUT or MODEL:INPUT what is for this model, by input; MODEL:INPUT counts more."""
    found = {}
    for name in (each.name for each in model.inputs):
        for key in (name, f"{model.name}:{name}"):
            if key in named:
                found[name] = named[key]
    return found


def check_named(named: Mapping[str, str], models: Sequence[ServedModel], flag: str) -> None:
    """SpecError for the first name that is for none of the models."""
    known = [each.name for each in models[0].inputs]
    if len(models) > 1:
        known = [f"{model.name}:{each.name}" for model in models for each in model.inputs]
    for name, text in named.items():
        if not any(of_model({name: text}, model) for model in models):
            check_input_names([name], known, flag)
