"""The load generator's results as a section of docs/benchmarks.md; what it says follows from the figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TOOLS = ("tritongen", "perf_analyzer")
_FULL = 0.85
"""A machine that is busier than this has no more to give."""

Row = dict[str, Any]


def ratio(row: Row) -> float:
    """Our requests per second over perf_analyzer's."""
    ours, theirs = (float(row[tool]["requests_per_s"]) for tool in TOOLS)
    return ours / theirs


def wanted(row: Row) -> float:
    """The ratio that is the goal at this concurrency."""
    return 1.0 if row["concurrency"] == 1 else 1.3


def in_use(row: Row, cores: int, tool: str = "tritongen") -> float:
    """How much of the machine sender and server take together."""
    figures = row[tool]
    cpu_us = figures["client_cpu_us"] + figures["server_cpu_us"]
    return float(figures["requests_per_s"] * cpu_us / 1e6 / cores)


def section(results: dict[str, Any]) -> str:
    """Both tables, and what they say."""
    whole = {
        key: [row for row in results[key] if all(tool in row for tool in TOOLS)] for key in ("closed", "open")
    }
    loads = [row[tool]["load_average"] for rows in whole.values() for row in rows for tool in TOOLS]
    cores = results["cores"]
    return f"""## Load generator

`python bench/load_generator.py --repeats {results["repeats"]}` (8 minutes) and then `--table` repeat it.
Taken on {results["date"]} with {cores} cores ({results["cpu"]}), which the servers share; perf_analyzer
2.49, synchronous, as by default; load average {min(loads):.1f} to {max(loads):.1f}. Requests are counted and
timed by the server, for both alike; both take turns; medians of {results["repeats"]} runs.

**Closed loop**, requests per second, 16 × FP32 each; CPU time in µs per request, of the sender + of the
server; "machine" is how much of all cores tritongen and the server took together:

| server | protocol | in flight | tritongen | perf_analyzer | ratio | its CPU | perf_analyzer's | machine |
|---|---|---:|---:|---:|---:|---:|---:|---:|
{chr(10).join(_closed_row(row, cores) for row in whole["closed"])}

The *null server* (`bench/null_server.py`) answers from a table, in one process. *Triton, cached* answers from
its response cache, so that its own front ends and core are the limit; *Triton, Python model* is limited by
the process of its Python backend, whoever sends.

{chr(10).join(_closed_words(whole["closed"], cores))}

**Open loop** at an even rate against the null server: distance of the arrivals from the schedule.

| protocol | requests/s | tritongen: in 1 ms | median, ms | P99 | perf_analyzer: in 1 ms | median, ms | P99 |
|---|---:|---:|---:|---:|---:|---:|---:|
{chr(10).join(map(_open_row, whole["open"]))}

{chr(10).join(_open_words(whole["open"]))}
{_memory_words(results.get("memory"))}"""


def _closed_row(row: Row, cores: int) -> str:
    cells = [row["target"], row["protocol"], row["concurrency"]]
    cells += [f"{row[tool]['requests_per_s']:,.0f}" for tool in TOOLS]
    cells += [f"**{ratio(row):.2f}**"]
    cells += [f"{row[tool]['client_cpu_us']:.0f} + {row[tool]['server_cpu_us']:.0f}" for tool in TOOLS]
    return "| " + " | ".join(map(str, [*cells, f"{in_use(row, cores):.0%}"])) + " |"


def _open_row(row: Row) -> str:
    cells = [row["protocol"], f"{row['rate']:,}"]
    for tool in TOOLS:
        figures = row[tool]
        cells += [f"{figures['within_1_ms']:.1%}", f"{figures['p50_ms']:.3f}", f"{figures['p99_ms']:.2f}"]
    return "| " + " | ".join(cells) + " |"


def _closed_words(rows: list[Row], cores: int) -> Iterator[str]:
    missed = [row for row in rows if ratio(row) < wanted(row)]
    yield (
        "The goal, 1.3 times perf_analyzer at 8, 16 and 32 in flight and no less than it at 1, is met in "
        f"{len(rows) - len(missed)} of {len(rows)} rows" + (":" if missed else ".")
    )
    for row in missed:
        use = in_use(row, cores)
        full = (
            "which leaves no room for a faster one"
            if use > _FULL
            else "the rest went to others or to waiting"
        )
        yield (
            f"\n- {row['target']}, {row['protocol']}, {row['concurrency']} in flight: {ratio(row):.3f}. "
            f"Sender and server took {use:.0%} of the machine, {full}."
        )


def _open_words(rows: list[Row]) -> Iterator[str]:
    def better(row: Row, key: str, sign: int) -> bool:
        return bool(sign * row["tritongen"][key] >= sign * row["perf_analyzer"][key])

    for words, key, sign in (
        ("More of the requests came within 1 ms", "within_1_ms", 1),
        ("The median error was smaller", "p50_ms", -1),
        ("The P99 of the error was smaller", "p99_ms", -1),
    ):
        worse = [f"{row['protocol']} at {row['rate']:,}/s" for row in rows if not better(row, key, sign)]
        count = len(rows) - len(worse)
        yield f"{words} in {count} of {len(rows)} rows" + (f" (not {', '.join(worse)})." if worse else ".")


def _memory_words(found: dict[str, int] | None) -> str:
    if found is None:
        return ""
    early, late, running, most = (
        f"{found[key] / 1e3:.1f} MB"
        for key in ("worker_early_kb", "worker_kb", "parent_kb", "parent_most_kb")
    )
    sent = found["requests"]
    return f"""
**Memory** (`python bench/load_generator.py --memory 1000000`): the sending process held {early} of its
own after a tenth of the requests and {late} after all {sent:,}. What grows is a file, by 32 bytes a request
({sent * 32 / 1e6:.0f} MB). The process that judges them held {running} while they were sent, and {most} at
its most, when the run was over and it had all of them before it.
"""
