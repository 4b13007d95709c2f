"""What a person who watches a run is shown of its last seconds."""

from __future__ import annotations

from pathlib import Path

from tritongen.loadtest import samples
from tritongen.loadtest.evidence import late_ms
from tritongen.loadtest.live import Live
from tritongen.loadtest.samples import SampleFile
from tritongen.loadtest.watch import _in_words
from tritongen.slo import parse_slo

MS = 1_000_000


def test_what_was_not_sent_or_sent_late_is_told_apart_from_errors(tmp_path: Path) -> None:
    file = SampleFile(tmp_path / "rows", 8)
    # (sent, done, status); every request is scheduled at 100 ms, the eighth has not ended.
    rows = (
        (100, 105, samples.OK),
        (109, 115, samples.OK),
        (111, 115, samples.OK),
        (400, 410, 503),
        (100, 110, 503),
        (100, 100, samples.NOT_SENT),
        (200, 200, samples.LATE),
    )
    for row, (sent, done, status) in enumerate(rows):
        file.write(row, 100 * MS, sent * MS, done * MS, status, 0, 1)
    file.close()
    live = Live([tmp_path / "rows"], late_ms([parse_slo("p99<=20ms"), parse_slo("p50<=1s")]))
    figures = live.look(0, 1000 * MS)
    assert figures is not None
    assert (figures.rate, figures.failed, figures.unsent, figures.late) == (3, 2, 2, 2)
    assert live.pending() == 1
    assert _in_words(figures)[2:] == ["2 errors", "2 not sent", "2 sent late"]


def test_a_send_is_late_by_the_strictest_limit() -> None:
    assert late_ms([parse_slo("p99<=0.5ms")]) == 1.0
    assert late_ms([]) == late_ms([parse_slo("throughput>=5/s")]) == 100.0
