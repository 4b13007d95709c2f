"""How often is a load test's verdict wrong when the truth lies exactly at the limit, and what does one cost?

    python bench/verdict_rule.py                    # 20,000 runs a row: some twenty minutes of one core
    python bench/verdict_rule.py --runs 2000        # a first impression

Every row judges simulated runs with the load test's own rule (tritongen.loadtest.simulation) and fixed seeds.
Writes bench/results/verdict_rule.json and verdict_rule.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tritongen.loadtest.distributions import beta_quantile
from tritongen.loadtest.simulation import (
    Outcomes,
    Process,
    independent,
    queue,
    stalls,
    swings_below,
    try_early,
    try_rule,
)

RESULTS = Path(__file__).parent / "results"
PROMISE = 0.01
SHARE = 0.01
_CHUNK_VALUES = 4_000_000

QUEUES = [independent(), *(queue(service, rho) for service in ("M", "D") for rho in (0.5, 0.7, 0.9))]
DOUBLING = (2500, 5000, 10_000, 20_000)
EARLY = ((320, 640, 1280), (1500, 3000, 6000))
"""With the fewest requests that may fail, and at 200 requests/s."""
MINUTE = (12_000, 24_000, 48_000)
"""200 requests/s from the default minimum of a minute on."""


@dataclass(frozen=True)
class Row:
    """One process at one set of looks."""

    table: str
    process: str
    share: float
    looks: tuple[int, ...]
    runs: int
    passed: tuple[int, ...]
    failed: tuple[int, ...]

    @property
    def wrong(self) -> tuple[str, str]:
        """False PASS and false FAIL with their upper 95 % bounds."""
        return _bounded(sum(self.passed), self.runs), _bounded(sum(self.failed), self.runs)

    @property
    def holds(self) -> bool:
        return all(_upper(sum(counts), self.runs) <= PROMISE for counts in (self.passed, self.failed))


def _upper(count: int, runs: int) -> float:
    return beta_quantile(0.95, count + 1, runs - count)


def _bounded(count: int, runs: int) -> str:
    return f"{count / runs:.2%} (≤ {_upper(count, runs):.2%})"


def judge(table: str, process: Process, looks: Sequence[int], runs: int, share: float = SHARE) -> Row:
    """So many runs, in chunks that fit into memory."""
    random = np.random.default_rng(1)
    chunk = max(1, _CHUNK_VALUES // looks[-1])
    total: Outcomes | None = None
    started = time.perf_counter()
    while total is None or total.runs < runs:
        left = runs - (total.runs if total else 0)
        attempt = try_early if table == "early" else try_rule
        part = attempt(process, share, looks, min(chunk, left), random)
        total = total + part if total else part
    row = Row(table, process.name, share, tuple(looks), runs, total.passed, total.failed)
    print(f"{table:9} {process.name:32} PASS {row.wrong[0]:20} FAIL {row.wrong[1]:20} "
          f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
    return row


def at_the_limit(runs: int) -> Iterator[Row]:
    """The promise itself."""
    for process in QUEUES:
        yield judge("limit", process, DOUBLING, runs)
    for process in (stalls(2, 200), stalls(5, 500), swings_below(2, 200), swings_below(5, 500)):
        yield judge("limit", process, MINUTE, runs)


def quick_misses(runs: int) -> Iterator[Row]:
    """FAIL is allowed before PASS is: from 320 requests on."""
    for process in [*QUEUES, queue("M", 0.98), stalls(5, 500)]:
        for requests in (320, 1250):
            yield judge("quick", process, (requests,), runs)


def early_looks(runs: int) -> Iterator[Row]:
    """Before the shortest window that may decide, only a plain miss ends a run."""
    for process in [*QUEUES, queue("M", 0.98), stalls(5, 500)]:
        for looks in EARLY:
            yield judge("early", process, looks, runs)


def rare_stalls(runs: int) -> Iterator[Row]:
    """What no window can show: stalls that hardly ever fall into it."""
    for seen in (48, 24, 12, 6, 3):
        cycle = MINUTE[0] // seen
        yield judge(f"{seen} stalls", stalls(cycle * SHARE, cycle), MINUTE, runs)


def headroom(runs: int) -> Iterator[Row]:
    """Queues that swing more slowly than the promise says: does the headroom rule pass them?"""
    for rho in (0.95, 0.98):
        for looks in (DOUBLING, MINUTE):
            yield judge("slow", queue("M", rho), looks, runs)


def far_away(runs: int) -> Iterator[Row]:
    """Healthy servers that swing far below the limit: do they get their PASS?"""
    for share, process in ((0.001, swings_below(2, 2000)), (0.001, swings_below(5, 5000))):
        yield judge("far", process, MINUTE, runs, share)
    yield judge("far", swings_below(2, 400), MINUTE, runs, 0.005)


def power(runs: int) -> Iterator[Row]:
    """How many requests a right verdict takes."""
    looks = tuple(2500 * 2**j for j in range(7))
    for share in (0.005, 0.02):
        for process in [*QUEUES, stalls(5, 500)]:
            yield judge("power", process, looks, runs, share)


def markdown(rows: Sequence[Row]) -> str:
    """The tables of docs/loadtest.md."""
    limit = [row for row in rows if row.table == "limit"]
    quick = [row for row in rows if row.table == "quick"]
    early = [row for row in rows if row.table == "early"]
    slow = [row for row in rows if row.table == "slow"]
    far = [row for row in rows if row.table == "far"]
    rare = [row for row in rows if row.table.endswith("stalls")]
    lines = [
        f"True share over the limit: exactly 1 %. {limit[0].runs} runs a row; (≤ upper 95 % bound).",
        "",
        "| latencies | looks at requests | false PASS | false FAIL |",
        "|---|---|---|---|",
        *(f"| {r.process} | {_looks(r.looks)} | {r.wrong[0]} | {r.wrong[1]} |" for r in limit),
        "",
        f"FAIL before the first look that may PASS ({quick[0].runs} runs a row):",
        "",
        "| latencies | requests | false FAIL |",
        "|---|---|---|",
        *(f"| {r.process} | {r.looks[0]} | {r.wrong[1]} |" for r in quick),
        "",
        f"A plain miss at one of the early looks ({early[0].runs} runs a row):",
        "",
        "| latencies | early looks at requests | false FAIL, at most |",
        "|---|---|---|",
        *(f"| {r.process} | {_looks(r.looks)} | {r.wrong[1]} |" for r in early),
        "",
        f"Queues that swing more slowly than promised ({slow[0].runs} runs a row):",
        "",
        "| latencies | looks at requests | false PASS | false FAIL |",
        "|---|---|---|---|",
        *(f"| {r.process} | {_looks(r.looks)} | {r.wrong[0]} | {r.wrong[1]} |" for r in slow),
        "",
        f"Healthy servers whose latencies swing slowly at a tenth of the limit ({far[0].runs} runs a row):",
        "",
        "| latencies | true share | PASS by 12,000 | 24,000 | 48,000 |",
        "|---|---|---|---|---|",
        *(_far_line(r) for r in far),
        "",
        f"Stalls that are rare in the shortest window (a minute at 200/s, {rare[0].runs} runs a row):",
        "",
        "| stalls to expect in the first look | false PASS |",
        "|---|---|",
        *(f"| {r.table.split()[0]} | {r.wrong[0]} |" for r in rare),
        "",
        "Requests until the right verdict, at 7 looks from 2500 to 160,000:",
        "",
        "| latencies | true share | decided by 2500 | 10,000 | 40,000 | 160,000 | half of the runs by |",
        "|---|---|---|---|---|---|---|",
        *(_power_line(row) for row in rows if row.table == "power"),
    ]
    return "\n".join(lines) + "\n"


def _looks(looks: Sequence[int]) -> str:
    return ", ".join(map(str, looks))


def _far_line(row: Row) -> str:
    shown = " | ".join(f"{part:.1%}" for part in np.cumsum(row.passed) / row.runs)
    return f"| {row.process} | {row.share:.1%} | {shown} |"


def _power_line(row: Row) -> str:
    right = np.cumsum(row.passed if row.share < SHARE else row.failed) / row.runs
    half = next((str(look) for look, part in zip(row.looks, right, strict=True) if part >= 0.5), "> 160000")
    shown = " | ".join(f"{right[j]:.0%}" for j in (0, 2, 4, 6))
    return f"| {row.process} | {row.share:.1%} | {shown} | {half} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--power-runs", type=int, default=500)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = [
        *at_the_limit(arguments.runs),
        *quick_misses(arguments.runs),
        *early_looks(arguments.runs),
        *headroom(max(1, arguments.runs // 5)),
        *far_away(arguments.power_runs),
        *rare_stalls(max(1, arguments.runs // 5)),
        *power(arguments.power_runs),
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = [asdict(row) for row in rows]
    (arguments.out / "verdict_rule.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "verdict_rule.md").write_text(markdown(rows), encoding="utf-8")
    broken = [row.process for row in rows if row.table in ("limit", "quick", "early") and not row.holds]
    print(f"promise broken: {', '.join(broken)}" if broken else "the promise holds in every row")


if __name__ == "__main__":
    main()
