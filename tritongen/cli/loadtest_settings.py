"""What the flags of `loadtest`, the running server's record and the model's manifest add up to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tritongen.cli import load_options
from tritongen.cli.servers import find_server
from tritongen.errors import InputError
from tritongen.slo import Slo, parse_slo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from tritongen.loadtest.settings import Settings
    from tritongen.repository.manifest import InputEntry, Manifest

_SEARCH_LEAST_S, _SEARCH_MOST_S = 15.0, 60.0
"""A search makes up to sixteen probes."""


def settings_of(
    *,
    model: str,
    url: str | None,
    protocol: Any,
    repository: Path | None,
    slo: tuple[str, ...],
    p99_ms: float | None,
    shapes: dict[str, str],
    ranges: dict[str, str],
    duration: float | None,
    min_duration: float | None,
    max_duration: float | None,
    find_max: bool,
    metrics_url: str | None,
    warmup: float | None,
    timeout: float,
    **same: Any,
) -> tuple[Settings, Path | None]:
    """The settings, and the repository that our own server serves, where it is the one under test."""
    from tritongen.loadtest.settings import Settings

    offered = load_options.load_settings(**same)
    lengths = _varying_duration(offered, duration or max_duration, least=min_duration, find_max=find_max)
    server = find_server(url, repository)
    manifest = _manifest(model, server.repository)
    mixed = [_manifest(name, server.repository) for name in offered["mix"]]
    slos = _objectives(slo, p99_ms, manifest)
    if lengths is None:
        lengths = _durations(duration, min_duration, max_duration, objectives=bool(slos), find_max=find_max)
    settings = Settings(
        model=model,
        url=url or server.address(protocol),
        protocol=protocol,
        slos=slos,
        shapes={**_known_shapes(shapes, *mixed, manifest), **shapes},
        ranges={**_known_ranges(ranges, *mixed, manifest), **ranges},
        **lengths,
        metrics_url=metrics_url or server.metrics_url,
        warmup_s=warmup,
        timeout_s=timeout,
        **offered,
    )
    return settings, server.repository if server.own else None


def _objectives(slo: tuple[str, ...], p99_ms: float | None, manifest: Manifest | None) -> tuple[Slo, ...]:
    """Those of the flags, else those that the model was built for; SpecError for one that cannot be read."""
    promised = (*slo, *([f"p99<={p99_ms:.15g}ms"] if p99_ms is not None else []))
    if not promised and manifest is not None:
        promised = manifest.slo
    return tuple(map(parse_slo, promised))


def _varying_duration(
    offered: Mapping[str, Any], given_s: float | None, *, least: float | None, find_max: bool
) -> dict[str, Any] | None:
    """The length of a run whose rate changes or comes from a trace, which no look may shorten; else None."""
    from tritongen.loadtest.settings import DEFAULT_DURATION_S

    trace = offered["trace"]
    if trace is None and offered.get("rate_shape") is None:
        return None
    if find_max:
        raise InputError("a search tries steady rates", found="a rate that changes", fix="give one --rate")
    if least is not None:
        raise InputError(
            "a run whose rate changes is judged once, at its end",
            found="--min-duration",
            fix="leave it away: --duration is how long it takes",
        )
    usual = DEFAULT_DURATION_S if trace is None else trace[-1].offset_s * (1 + 1 / len(trace)) + 0.001
    return {"duration_s": given_s or usual, "min_duration_s": None}


def _durations(
    duration: float | None, least: float | None, most: float | None, *, objectives: bool, find_max: bool
) -> dict[str, Any]:
    """The run's length, and from when on looks may end it, from the three flags."""
    from tritongen.loadtest import settings

    if duration is not None:
        if least is not None or most is not None:
            raise InputError(
                "two kinds of duration at once",
                found="--duration with --min-duration or --max-duration",
                fix="--duration runs exactly that long; the other two end as soon as the verdict is clear",
            )
        return {"duration_s": duration, "min_duration_s": None}
    if not objectives:
        return {"duration_s": most or least or settings.DEFAULT_DURATION_S, "min_duration_s": None}
    usual = (_SEARCH_LEAST_S, _SEARCH_MOST_S) if find_max else (60.0, settings.DEFAULT_MAX_DURATION_S)
    shortest = least if least is not None else min(usual[0], most or usual[0])
    longest = most if most is not None else max(usual[1], 2 * shortest)
    if longest < shortest:
        raise InputError("--max-duration is below --min-duration", found=f"{longest:g}s and {shortest:g}s")
    return {"duration_s": longest, "min_duration_s": shortest}


def _manifest(model: str, repository: Path | None) -> Manifest | None:
    """What tritongen wrote down about the model, if it built it and the repository is at hand."""
    from tritongen.repository.manifest import FILENAME, read_manifest

    if repository is None or not (repository / model / FILENAME).is_file():
        return None
    return read_manifest(repository / model)


def _known_shapes(given: Mapping[str, str], *manifests: Manifest | None) -> dict[str, str]:
    """The usual sizes of inputs with dynamic axes, by MODEL:INPUT, unless INPUT is given."""
    return {
        name: "x".join(map(str, each.opt_shape))
        for name, each in _inputs(manifests, given)
        if -1 in each.dims and each.opt_shape
    }


def _known_ranges(given: Mapping[str, str], *manifests: Manifest | None) -> dict[str, str]:
    return {
        name: f"{each.value_range[0]}..{each.value_range[1]}"
        for name, each in _inputs(manifests, given)
        if each.value_range is not None
    }


def _inputs(
    manifests: Iterable[Manifest | None], given: Mapping[str, str]
) -> Iterator[tuple[str, InputEntry]]:
    for manifest in filter(None, manifests):
        for each in manifest.inputs:
            if each.name not in given:
                yield f"{manifest.name}:{each.name}", each
