"""How the rate changes over a run: steady, steps, spikes and ramps. `100..2000@60s,500@10s`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tritongen.errors import InputError

_SEGMENT = re.compile(
    r"\s*(?P<start>\d+(?:\.\d*)?)\s*(?:\.\.\s*(?P<end>\d+(?:\.\d*)?))?\s*"
    r"(?:@\s*(?P<length>\d+(?:\.\d*)?)\s*(?P<unit>ms|s|m|h)?)?\s*"
)
_UNITS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}
_EXPECTED = "R, R@TIME or R1..R2@TIME, more of them after commas, as in 100@30s,500..2000@10s"


@dataclass(frozen=True)
class Segment:
    """The rate goes evenly from `start` to `end` requests/s."""

    start: float
    end: float
    length_s: float | None
    """None: it shares what the others leave of the run."""


@dataclass(frozen=True)
class RateShape:
    """Segments one after another, begun anew as often as the run is longer."""

    segments: tuple[Segment, ...]
    text: str

    @property
    def steady(self) -> float | None:
        """The rate, if it never changes."""
        rates = {rate for each in self.segments for rate in (each.start, each.end)}
        return rates.pop() if len(rates) == 1 else None

    def over(self, duration_s: float) -> RateCurve:
        """The rate over a run of this length; InputError if segments without a length have no room."""
        given = sum(each.length_s for each in self.segments if each.length_s is not None)
        free = sum(each.length_s is None for each in self.segments)
        if free and duration_s - given <= 0:
            raise InputError(
                "the steps of --rate fill the whole run",
                found=f"{self.text} in --duration {duration_s:g}s",
                expected="time left for the steps without one of their own",
            )
        before_last = given - (self.segments[-1].length_s or 0.0)
        if not free and before_last >= duration_s:
            raise InputError(
                "the run ends before the last step of --rate begins",
                found=f"{self.text} in --duration {duration_s:g}s",
                fix=f"--duration {given:g}s for all of it, or fewer steps",
            )
        rest = (duration_s - given) / free if free else 0.0
        pieces = list(self._repeated(duration_s, rest))
        return RateCurve(
            *(np.array(column, dtype=float) for column in zip(*pieces, strict=True)),
        )

    def _repeated(self, duration_s: float, rest_s: float) -> Iterator[tuple[float, float, float]]:
        """(start rate, end rate, seconds) of every piece, the last one cut where the run ends."""
        left = duration_s
        while left > 0:
            for each in self.segments:
                length = rest_s if each.length_s is None else each.length_s
                part = min(length, left) / length
                yield each.start, each.start + (each.end - each.start) * part, length * part
                left -= length
                if left <= 0:
                    return


@dataclass(frozen=True)
class RateCurve:
    """A rate that is linear in pieces."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    length_s: NDArray[np.float64]

    @property
    def requests(self) -> float:
        """How many are expected in all."""
        return float(self._counts[-1])

    @property
    def _counts(self) -> NDArray[np.float64]:
        return np.cumsum((self.start + self.end) / 2 * self.length_s)

    def times(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """When so many requests are due, in seconds: the inverse of the area under the curve."""
        ends = self._counts
        piece = np.minimum(np.searchsorted(ends, counts, side="right"), len(ends) - 1)
        before = np.concatenate([[0.0], ends[:-1]])[piece]
        began = np.concatenate([[0.0], np.cumsum(self.length_s)[:-1]])[piece]
        rate, slope = self.start[piece], ((self.end - self.start) / self.length_s)[piece]
        need = np.maximum(counts - before, 0.0)
        # Of slope·t²/2 + rate·t = need the root that stays exact when the slope is nothing.
        root = np.sqrt(np.maximum(rate**2 + 2 * slope * need, 0.0))
        within = np.divide(2 * need, rate + root, out=np.zeros_like(need), where=rate + root > 0)
        return np.asarray(began + within)


def parse_rate(text: str) -> RateShape:
    """`500`, `100..2000`, `100@30s,500@10s`; InputError for anything else."""
    segments = []
    for part in text.split(","):
        match = _SEGMENT.fullmatch(part)
        if match is None:
            raise InputError(f"'{text}' is not a rate", found=part.strip() or "nothing", expected=_EXPECTED)
        start, end, length = match["start"], match["end"], match["length"]
        seconds = None if length is None else float(length) * _UNITS[match["unit"]]
        segments.append(Segment(float(start), float(end if end is not None else start), seconds))
    if all(each.start == each.end == 0 for each in segments) or any(s.length_s == 0 for s in segments):
        raise InputError(f"'{text}' is not a rate", expected="rates and times that are more than 0")
    return RateShape(tuple(segments), text)
