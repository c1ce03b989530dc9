"""What the page says of ``strong`` and ``weak`` is what is in the rows."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")

from benchmarks.scaling.section import section as section_of
from tests.benchmarks.report_rows import (
    cell,
    one_network,
    one_series,
    prediction,
    scaling,
    strong_pair,
    tables_of,
    told,
)


def test_strong_efficiency() -> None:
    series = one_series(strong_pair())
    one, two = series.points
    found = series.efficiency(two)
    assert found is not None
    assert found.value == pytest.approx(0.8)
    assert found.low == pytest.approx(0.8)
    # 10 iterations of 600 sample gradients: a tenth of an epoch.
    assert one.per_epoch.value == pytest.approx(100.0)
    assert two.per_epoch.value == pytest.approx(62.5)
    assert two.communication == pytest.approx(0.1)
    assert two.per_epoch_of("messages") == pytest.approx(100)
    assert two.per_epoch_of("bytes") == pytest.approx(100 * 4 * 118_282)
    assert two.per_epoch_of("cpu") == pytest.approx(50)


def test_what_is_lost_adds_up() -> None:
    series = one_series(strong_pair())
    lost = series.lost(series.points[1])
    assert lost is not None
    assert lost["gradient"] == pytest.approx(0.1)
    assert lost["allreduce"] == pytest.approx(0.125)
    assert sum(lost.values()) == pytest.approx(1 / 0.8 - 1)


def test_strong_findings() -> None:
    section = section_of("strong", strong_pair())
    lines = told(section)
    assert "APTS takes 100 s per epoch at N = 1, 62.5 s at N = 2: 1.60 times faster" in lines
    assert "Efficiency is 80.0 [80.0, 80.0] percent at N = 2 (APTS)." in lines
    assert "Communication is 10.0 percent of the time at N = 2 (APTS), waiting 2.0" in lines
    assert "compute per sample gradient grew by 10.5 percent (smaller batches" in lines
    assert "drawing data 4.0" in lines
    assert "WARNING" not in lines
    table = tables_of(section)[0]
    assert cell(table, 0, "speedup") == "base"
    assert cell(table, 1, "speedup") == "1.60"
    assert cell(table, 0, "epoch, s [95\u00a0%]") == "100.000 [100.000, 100.000]"


def test_the_slowest_rank_counts() -> None:
    rows = scaling(ranks=2, spent={"gradient": 1.0})
    for row in rows:
        if row["settings"]["rank"] == 1 and row["settings"]["phase"] == "gradient":
            row["seconds"] = [2.0 * value for value in row["seconds"]]
    (point,) = one_series(rows).points
    assert point.per_iteration.value == pytest.approx(2.0)
    assert point.share("gradient") == pytest.approx(1.0)


def test_weak_efficiency() -> None:
    spent = {"gradient": 1.0}
    rows = scaling("weak", spent=spent)
    rows += scaling("weak", ranks=2, spent={**spent, "allreduce": 0.25}, evaluations=12_000)
    series = one_series(rows, "weak")
    found = series.efficiency(series.points[1])
    assert found is not None
    assert found.value == pytest.approx(0.8)
    lines = told(section_of("weak", rows))
    line = "1.67 ms of a rank per sample gradient at N = 1, 2.08 ms at N = 2: 25.0 percent more"
    assert line in lines


def test_warning_where_communication_exceeds_compute() -> None:
    rows = strong_pair() + scaling(method="sgd", spent={"gradient": 1.0})
    spent = {"gradient": 0.4, "allreduce": 0.5, "wait": 0.1}
    rows += scaling(method="sgd", ranks=2, spent=spent)
    lines = told(section_of("strong", rows))
    assert "WARNING Communication exceeds compute at N = 2 (SGD): 50.0 against 40.0" in lines
    assert lines.count("WARNING") == 1


def test_nothing_is_drawn_from_oversubscribed_ranks() -> None:
    rows = strong_pair(oversubscribed=True)
    series = one_series(rows)
    assert series.efficiency(series.points[1]) is None
    assert series.lost(series.points[1]) is None
    section = section_of("strong", rows)
    lines = told(section)
    assert "times faster" not in lines
    assert "Efficiency is" not in lines
    assert "No efficiency can be given: all on more than one rank are oversubscribed" in lines
    table = tables_of(section)[0]
    assert cell(table, 1, "N") == "2 †"
    assert (cell(table, 1, "speedup"), cell(table, 1, "efficiency, % [95\u00a0%]")) == ("-", "-")
    assert cell(table, 1, "CPU s per rank and epoch") == "50.0"


def test_without_one_rank_no_efficiency() -> None:
    rows = scaling(ranks=2, spent={"gradient": 1.0}) + scaling(ranks=4, spent={"gradient": 0.5})
    assert "N = 1 was not measured" in told(section_of("strong", rows))


def test_incomplete_run_is_left_out() -> None:
    rows = strong_pair()[:-1]
    assert "WARNING 1 run is left out" in told(section_of("strong", rows))


def test_a_line_is_what_stays_the_same() -> None:
    """Batches as an axis: lines by the batch in all, or a rank, whichever has more ranks in it."""
    spent = {"gradient": 1.0}
    in_all = [(1, 500), (1, 250), (2, 250), (2, 125)]
    rows = [r for n, b in in_all for r in scaling(ranks=n, batch=b, spent=spent, repetitions=1)]
    found = {series.label: [p.ranks for p in series.points] for series in one_network(rows).series}
    assert found == {
        "APTS, batch 500 in all": [1, 2],
        "APTS, batch 250 in all": [1, 2],
    }
    a_rank = [(1, 500), (1, 250), (2, 500), (2, 250)]
    rows = [r for n, b in a_rank for r in scaling(ranks=n, batch=b, spent=spent, repetitions=1)]
    assert len(one_network(rows).series) == 2


def test_model_beside_the_measurement() -> None:
    rows = strong_pair()
    of = {k: v for k, v in rows[0]["settings"].items() if k not in ("rank", "phase", "repetition")}
    lines = told(section_of("strong", rows, [prediction(of, 1.0, 1.1)]))
    assert "The model is off by 10.0 percent (median, 1 point)." in lines


def test_cost_of_the_clock() -> None:
    settings = {"benchmark": "split", "method": "apts", "ranks": 2}
    row = {"settings": settings, "on": [1.0, 1.01, 3.0], "off": [1.0, 1.0, 1.0]}
    lines = told(section_of("strong", strong_pair(), split=[row]))
    assert "Measuring the phases costs 1.00 percent (95 percent interval 0.00 to 200.00)" in lines
