"""The report: what it finds is what is in the rows, and a browser shows it without complaint."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")

from apts_mpi.comm.clock import PHASES
from apts_mpi.errors import InputError
from benchmarks.__main__ import main
from benchmarks.harness import statistics, units
from benchmarks.harness.jobs import RESULTS
from benchmarks.harness.phase_runs import points, runs
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Section, Table
from benchmarks.messages.micro import page as micro_page
from benchmarks.messages.network import page as network_page
from benchmarks.project import page as project_page
from benchmarks.quality.compare import page as compare_page
from benchmarks.report import command as report
from benchmarks.report import write as report_write
from benchmarks.report.rows import read
from benchmarks.scaling import page as scaling_page
from benchmarks.scaling.series import Network, Series, networks

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SAMPLES = 60_000
SETUP = {
    **{"parameters": 118_282, "host": "node", "cores": 2, "threads": 1, "device": "cpu"},
    **{"date": "2026-01-02", "commit": "abc1234", "versions": {"python": "3.11", "torch": "2.13"}},
}

# ---- synthetic rows ------------------------------------------------------------------------


def scaling(
    kind: str = "strong",
    method: str = "apts-scaled",
    ranks: int = 1,
    *,
    spent: dict[str, float],
    iterations: int = 10,
    evaluations: float = 6000.0,
    batch: int = 250,
    repetitions: int = 3,
    noise: float = 0.0,
    hidden: str = "128,128",
    **changes: Any,
) -> list[Row]:
    """Rows of a configuration whose ranks all spend the same seconds a phase and iteration.

    Args:
        evaluations: sample gradients of all ranks, all iterations.
    """
    chance = np.random.default_rng([ranks, len(method)])
    rows = []
    for repetition in range(repetitions):
        for rank in range(ranks):
            for phase in PHASES:
                each = spent.get(phase, 0.0) * (1 + noise * chance.random(iterations))
                settings = {
                    **{"benchmark": kind, "method": method, "data": "mnist", "hidden": hidden},
                    **{"ranks": ranks, "batch": batch, "repetition": repetition},
                    **{"rank": rank, "phase": phase},
                }
                sent = 4 * 118_282 * iterations if phase == "allreduce" else 0
                values = {
                    **{"run": f"{kind}{method}{ranks}{batch}{repetition}"},
                    **{"seconds": [float(f"{s:.6g}") for s in each], "cpu_seconds": 5.0},
                    **{"evaluations": evaluations, "samples": SAMPLES, "bytes": sent},
                    **{"messages": iterations, "oversubscribed": False, "binding": [rank]},
                    "local_steps": None,
                }
                rows.append({"settings": settings, **values, **SETUP, **changes})
    return rows


def micro(latency: float = 1e-6, bandwidth: float = 1e9, slower: float = 1.0) -> list[Row]:
    """Messages that follow Hockney's model to the letter, those of our layer slower by a factor."""
    return [
        {
            "settings": {
                **{"benchmark": "micro", "operation": operation, "through": through},
                **{"bytes": nbytes, "ranks": 2, "hosts": 1, "link": "none", "mpi": mpi},
            },
            "seconds": [(latency + nbytes / bandwidth) * factor * scale] * 5,
            **SETUP,
        }
        for operation in ("allreduce", "broadcast")
        for mpi, scale in (("defaults", 1.0), ("tuned", 0.5))
        for through, factor in (("mpi4py", 1.0), ("comm-untimed", slower), ("comm", 1.3))
        for nbytes in (4**k for k in range(1, 12))
    ]


def network(seconds: dict[str, float | None], link: str = "1gbit", **settings: Any) -> list[Row]:
    """A run a method that reaches the target after so many seconds."""
    rows = []
    for method, reached in seconds.items():
        end = reached or 10.0
        curve = {
            "seconds": [end * k / 8 for k in range(1, 9)],
            "epoch": [k / 2 for k in range(1, 9)],
            "test_accuracy": [0.972 - 0.2 / k**2 for k in range(1, 9)],
            "bytes": [1e6 * k for k in range(1, 9)],
        }
        rows.append(
            {
                "settings": {
                    **{"benchmark": "network", "hosts": 2, "link": link, "method": method},
                    **{"hidden": "128,128", "batch": 250, "lr": None, "repetition": 0, **settings},
                },
                **{"target": 0.97, "seconds_to_target": reached, "epochs_to_target": 4.0},
                **{"bytes_to_target": 8e6, "seconds_per_epoch": end / 4, "curve": curve},
                **{"messages_per_epoch": 6.0, "bytes_per_epoch": 2e6, **SETUP},
            }
        )
    return rows


def prediction(of: Row, measured: float, predicted: float) -> Row:
    """A point of the cost model's proof."""
    settings = {"benchmark": "project", "kind": "prediction", "of": of}
    return {"settings": settings, "measured": measured, "predicted": predicted}


def projection(method: str, efficiencies: dict[int, float], network: str = "1 Gbit/s") -> list[Row]:
    """A method's projection by ranks."""
    return [
        {
            "settings": {
                **{"benchmark": "project", "kind": "projection", "method": method},
                **{"parameters": 10**8, "network": network, "ranks": ranks},
            },
            **{"seconds_per_epoch": 100 / ranks / efficiency, "efficiency": efficiency},
        }
        for ranks, efficiency in efficiencies.items()
    ]


def compared(
    optimizer: str, accuracy: float | None, messages: int, seed: int = 0, **settings: Any
) -> Row:
    """A run of ``compare``."""
    known = {"data": "mnist", "hidden": "128,128", "ranks": 2, "optimizer": optimizer}
    row: Row = {"settings": {**known, "arguments": [], "seed": seed, **settings}}
    if accuracy is None:
        return {**row, "test_accuracy": None, "diverged": "not finite"}
    curves = {
        "epoch": [float(k) for k in range(1, 11)],
        "test_accuracy": [accuracy - 0.1 / k + 0.01 for k in range(1, 11)],
        "messages": [messages * k / 10 for k in range(1, 11)],
    }
    sent = {"vector_allreduces": messages, "bytes_allreduced": 473_128 * messages}
    return {**row, "test_accuracy": accuracy, "curves": curves, **sent, **SETUP}


def everything() -> list[Row]:
    """Rows of every kind, as a real set of results has them."""
    rows: list[Row] = []
    methods = {"apts-scaled": 0.02, "adam": 0.15, "sgd": 0.7}
    for kind in ("strong", "weak"):
        for name, talk in methods.items():
            for ranks in (1, 2, 4):
                share = ranks if kind == "strong" else 1
                more = 0.0 if ranks == 1 else 0.1 * talk
                spent = {
                    **{"gradient": 0.1 * (1 + 0.03 * (ranks > 1)) / share, "data": 0.004 / share},
                    **{"algebra": 0.01 / share, "allreduce": more, "other": 0.001},
                    **{"wait": more / 3, "evaluation": 0.01},
                }
                work = 6000.0 * (1 if kind == "strong" else ranks)
                rows += scaling(
                    kind,
                    name,
                    ranks,
                    spent=spent,
                    evaluations=work,
                    noise=0.2,
                    oversubscribed=ranks > 2,
                )
    for link, factor in (("100mbit", 6.0), ("1gbit", 1.5), ("unlimited", 1.0)):
        rows += network({"apts": 3.0, "apts-auto": 2.8, "diloco": 4.0, "adam": None}, link)
        rows += network({"ddp-adam": 3.4 * factor}, link, lr=1e-3)
    of = {k: v for k, v in rows[0]["settings"].items() if k not in ("rank", "phase", "repetition")}
    rows += [prediction({**of, "ranks": n}, 0.12 / n, 0.125 / n) for n in (1, 2)]
    reach = {2**k: 1 / (1 + 0.002 * 2**k) for k in range(1, 13)}
    rows += projection("apts-scaled", reach) + projection(
        "adam", {n: e**3 for n, e in reach.items()}
    )
    rows += [compared("apts", 0.981, 58, seed) for seed in range(2)]
    rows += [compared("adam", 0.977, 1200, seed, ranks=1, lr=1e-3) for seed in range(2)]
    rows += [compared("diloco", 0.979, 60, lr=1e-3), compared("sgd", None, 0, ranks=1, lr=9.0)]
    return rows + micro()


def written(path: Path, rows: Iterable[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one_network(rows: list[Row], kind: str = "strong") -> Network:
    made, missing = runs(rows)
    assert missing == 0
    (found,) = networks(points(made), kind)
    return found


def one_series(rows: list[Row], kind: str = "strong") -> Series:
    (series,) = one_network(rows, kind).series
    return series


def told(section: Section | None) -> str:
    """All findings of a section, a line each."""
    assert section is not None
    return "\n".join(f"{'WARNING ' if one.warning else ''}{one.text}" for one in section.findings)


def tables_of(section: Section | None) -> list[Table]:
    assert section is not None
    return [part for one in section.walk() for part in one.parts if isinstance(part, Table)]


def cell(table: Table, row: int, heading: str) -> str:
    return str(table.rows[row][list(table.header).index(heading)])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the report on rows of every kind."""
    folder = tmp_path_factory.mktemp("report")
    assert (
        main(["report", str(written(folder / "all.jsonl", everything())), "--out", str(folder)])
        == 0
    )
    return folder


# ---- statistics ----------------------------------------------------------------------------


def test_median_and_interval() -> None:
    values = np.arange(1.0, 102.0)
    found = statistics.median([values])
    assert found.value == 51
    assert found.low is not None
    assert found.high is not None
    # The interval of a median of 101 even numbers: some 10 either side, by order statistics.
    assert 36 <= found.low < 51 < found.high <= 66
    assert statistics.median([values]) == found, "seeded"
    assert statistics.median([np.array([3.0])]) == statistics.Estimate(3.0)


def test_whole_runs_are_drawn() -> None:
    """Two runs that differ: many iterations of each do not make the interval narrow."""
    runs_ = [np.full(1000, 1.0), np.full(1000, 2.0)]
    found = statistics.median(runs_)
    assert (found.value, found.low, found.high) == (1.5, 1.0, 2.0)
    uneven = statistics.median([np.full(3, 1.0), np.full(5, 1.0)])
    assert (uneven.value, uneven.low, uneven.high) == (1.0, 1.0, 1.0)


def test_quotient_is_of_medians() -> None:
    ratio = statistics.quotient([np.array([1.0, 2.0, 9.0])], [np.array([1.0, 4.0, 4.0])])
    assert ratio.value == 0.5, "not the mean of 1, 1/2 and 9/4"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00001, "10.0 µs"), (0.99996, "1.00 s"), (0.0341, "34.1 ms"), (123.4, "123 s"), (0, "0 µs")],
)
def test_seconds_have_units(value: float, text: str) -> None:
    assert units.seconds(value) == text


def test_sizes_and_shares() -> None:
    assert [units.size(b) for b in (4, 999_999, 27_440_000)] == [
        "4 B",
        "1.00 MB",
        "27.4 MB",
    ]
    assert units.percent(0.0337) == "3.4"
    assert units.percent(0.0007) == "0.07"


# ---- strong and weak -----------------------------------------------------------------------


def strong_pair(method: str = "apts-scaled", **changes: Any) -> list[Row]:
    """1 s and 0.625 s an iteration of the same work: efficiency 0.8; a tenth is communication."""
    one = {"gradient": 0.9, "algebra": 0.05, "data": 0.05, "evaluation": 7.0}
    two = {"gradient": 0.5, "algebra": 0.025, "data": 0.025, "wait": 0.0125, "allreduce": 0.0625}
    return scaling(method=method, spent=one) + scaling(
        method=method, ranks=2, spent=two, **{"batch": 125, **changes}
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
    assert two.an_epoch("messages") == pytest.approx(100)
    assert two.an_epoch("bytes") == pytest.approx(100 * 4 * 118_282)
    assert two.an_epoch("cpu") == pytest.approx(50)


def test_what_is_lost_adds_up() -> None:
    series = one_series(strong_pair())
    lost = series.lost(series.points[1])
    assert lost is not None
    assert lost["gradient"] == pytest.approx(0.1)
    assert lost["allreduce"] == pytest.approx(0.125)
    assert sum(lost.values()) == pytest.approx(1 / 0.8 - 1)


def test_strong_findings() -> None:
    section = scaling_page.section("strong", strong_pair(), [])
    lines = told(section)
    assert "apts-scaled takes 100 s an epoch at N = 1, 62.5 s at N = 2: 1.60 times faster" in lines
    assert "Efficiency is 80.0 [80.0, 80.0] percent at N = 2 (apts-scaled)." in lines
    assert "Communication is 10.0 percent of the time at N = 2 (apts-scaled), waiting 2.0" in lines
    assert "compute a sample gradient grew by 10.5 percent (smaller batches" in lines
    assert "drawing data 4.0" in lines
    assert "WARNING" not in lines
    table = tables_of(section)[0]
    assert cell(table, 0, "speedup") == "base"
    assert cell(table, 1, "speedup") == "1.60"
    assert cell(table, 0, "epoch, s [95\u00a0%]") == "100 [100, 100]"


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
    lines = told(scaling_page.section("weak", rows, []))
    assert (
        "1.67 ms of a rank a sample gradient at N = 1, 2.08 ms at N = 2: 25.0 percent more" in lines
    )


def test_warning_where_communication_exceeds_compute() -> None:
    rows = strong_pair() + scaling(method="sgd", spent={"gradient": 1.0})
    spent = {"gradient": 0.4, "allreduce": 0.5, "wait": 0.1}
    rows += scaling(method="sgd", ranks=2, spent=spent)
    lines = told(scaling_page.section("strong", rows, []))
    assert "WARNING Communication exceeds compute at N = 2 (sgd): 50.0 against 40.0" in lines
    assert lines.count("WARNING") == 1


def test_nothing_is_drawn_from_oversubscribed_ranks() -> None:
    rows = strong_pair(oversubscribed=True)
    series = one_series(rows)
    assert series.efficiency(series.points[1]) is None
    assert series.lost(series.points[1]) is None
    section = scaling_page.section("strong", rows, [])
    lines = told(section)
    assert "times faster" not in lines
    assert "Efficiency is" not in lines
    assert "No efficiency can be told: all on more than one rank are oversubscribed" in lines
    table = tables_of(section)[0]
    assert cell(table, 1, "N") == "2 †"
    assert (cell(table, 1, "speedup"), cell(table, 1, "efficiency, % [95\u00a0%]")) == ("-", "-")
    assert cell(table, 1, "CPU s a rank, an epoch") == "50.0"


def test_without_one_rank_no_efficiency() -> None:
    rows = scaling(ranks=2, spent={"gradient": 1.0}) + scaling(ranks=4, spent={"gradient": 0.5})
    assert "N = 1 was not measured" in told(scaling_page.section("strong", rows, []))


def test_incomplete_run_is_left_out() -> None:
    rows = strong_pair()[:-1]
    assert "WARNING 1 run is left out" in told(scaling_page.section("strong", rows, []))


def test_a_line_is_what_stays_the_same() -> None:
    """Batches as an axis: lines by the batch in all, or a rank, whichever has more ranks in it."""
    spent = {"gradient": 1.0}
    in_all = [(1, 500), (1, 250), (2, 250), (2, 125)]
    rows = [r for n, b in in_all for r in scaling(ranks=n, batch=b, spent=spent, repetitions=1)]
    found = {series.label: [p.ranks for p in series.points] for series in one_network(rows).series}
    assert found == {
        "apts-scaled, batch 500 in all": [1, 2],
        "apts-scaled, batch 250 in all": [1, 2],
    }
    a_rank = [(1, 500), (1, 250), (2, 500), (2, 250)]
    rows = [r for n, b in a_rank for r in scaling(ranks=n, batch=b, spent=spent, repetitions=1)]
    assert len(one_network(rows).series) == 2


def test_model_beside_the_measurement() -> None:
    rows = strong_pair()
    of = {k: v for k, v in rows[0]["settings"].items() if k not in ("rank", "phase", "repetition")}
    lines = told(scaling_page.section("strong", rows, [prediction(of, 1.0, 1.1)]))
    assert "The model is off by 10.0 percent (median, 1 point)." in lines


def test_cost_of_the_clock() -> None:
    settings = {"benchmark": "split", "method": "apts-scaled", "ranks": 2}
    row = {"settings": settings, "on": [1.0, 1.01, 3.0], "off": [1.0, 1.0, 1.0]}
    lines = told(scaling_page.section("strong", strong_pair(), [], [row]))
    assert "Measuring the phases costs 1.00 percent (95 percent interval 0.00 to 200.00)" in lines


# ---- the other kinds -----------------------------------------------------------------------


def test_messages() -> None:
    section = micro_page.section(micro(slower=1.25))
    lines = told(section)
    assert "Allreduce, 2 ranks on one host: latency 1.25 µs, bandwidth 800 MB/s" in lines
    assert "comm-untimed (without barriers and clocks): at least 80.0 percent of the bare" in lines
    assert "MPI settings 'tuned' are best at 4.19 MB, 2.00 times faster than 'defaults'" in lines


def test_time_to_target() -> None:
    rows = network({"apts": 2.0, "ddp-adam": 12.8}) + network({"ddp-adam": 10.0}, lr=3e-3)
    rows += network({"ddp-adam": None}, lr=1e-1)
    lines = told(network_page.section(rows))
    assert "apts reaches 97 percent in 2.00 s, ddp-adam in 10.0 s: 5.00 times sooner." in lines
    table = tables_of(network_page.section(rows))[0]
    assert cell(table, 1, "rate") == "0.003 (best of 3)"


def test_later_than_the_reference_is_a_warning() -> None:
    rows = network({"apts": 5.0, "ddp-adam": 4.0}, "unlimited") + network({"apts": None}, "1gbit")
    lines = told(network_page.section(rows))
    assert "WARNING Over unlimited" in lines
    assert "1.25 times later" in lines
    assert "WARNING Over 1gbit, ours never reached 97 percent." in lines


def test_diverged_over_a_link() -> None:
    (row,) = network({"adam": None}, lr=9.0)
    settings = row["settings"]
    rows = network({"apts": 2.0})
    rows.append({"settings": settings, "seconds_to_target": None, "diverged": "not finite"})
    assert "2.00 s" in told(network_page.section(rows))
    assert network_page.section(rows[1:]) is None, "nothing to tell of a target"


def test_model_proof() -> None:
    of = {"benchmark": "strong", "method": "apts-scaled", "ranks": 2}
    rows = [
        prediction({**of, "batch": k}, 1.0, 1 + error) for k, error in enumerate((0.1, -0.2, 0.3))
    ]
    lines = told(project_page.proof(rows))
    assert "WARNING The model is off by 20.0 percent (median of 3 points" in lines
    assert "Furthest off: +30.0 percent" in lines


def test_projections_say_so_everywhere() -> None:
    rows = projection("apts-scaled", {2: 0.9, 4: 0.8, 8: 0.4}) + projection("adam", {2: 0.3})
    section = project_page.projections(rows)
    assert section is not None
    for one in section.walk():
        assert one.title.startswith("Projection")
        for part in one.parts:
            text = getattr(part, "title", None) or getattr(part, "caption", None) or str(part)
            assert "rojection" in text
    assert "up to N = apts-scaled 4, adam 1" in told(section)
    pictures = [p.svg for one in section.walk() for p in one.parts if hasattr(p, "svg")]
    assert pictures
    assert all("projection" in svg for svg in pictures)


def test_accuracy_against_work_and_payload() -> None:
    rows = [compared("apts", a, 58, seed) for seed, a in enumerate((0.98, 0.99))]
    rows += [compared("adam", 0.975, 1160, ranks=1, lr=1e-3)]
    rows += [compared("adam", None, 0, ranks=1, lr=9.0)]
    lines = told(compare_page.section(rows))
    assert "apts ends at 98.50 percent, the best tuned other (adam) at 97.50" in lines
    assert "20.0 times as many messages" in lines


def test_committed_comparison_can_be_read() -> None:
    rows = read([RESULTS / "compare.jsonl"])
    found = compare_page.entries([r for r in rows["compare"] if r["settings"]["data"] == "mnist"])
    assert {"apts", "adam", "sgd", "local-sgd", "diloco"} <= {entry.method for entry in found}
    assert all(entry.mean > 0.95 for entry in found)


# ---- files that are not as they should be --------------------------------------------------


def complaint(*paths: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(paths)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_truncated_file(tmp_path: Path) -> None:
    path = written(tmp_path / "cut.jsonl", strong_pair())
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:-40], encoding="utf-8")
    last = len(text.splitlines())
    assert complaint(path) == f"{path}: line {last} is not JSON; was the file cut off?"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("[1, 2]", "line 1 is not a result"),
        ('{"settings": {"benchmark": "cooking"}}', "line 1 is not of a benchmark the report knows"),
        ('{"settings": {}}', "line 1 is not of a benchmark"),
        ('{"settings": {"benchmark": "project", "kind": "x"}}', "line 1 is not of a benchmark"),
        ('{"settings": {"benchmark": "strong"}}', "line 1, of strong: method is missing"),
        ("", "holds no results"),
        ("[" * 10_000, "line 1 is not JSON"),
    ],
)
def test_unknown_rows(tmp_path: Path, line: str, part: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    assert part in complaint(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("seconds", v) for v in ([], [float("nan")], [-1.0], ["1"], 3.0, [10**400])],
        *[("evaluations", v) for v in (0, True, None, "many")],
        ("oversubscribed", "no"),
    ],
)
def test_values_out_of_range(tmp_path: Path, name: str, value: Any) -> None:
    rows = strong_pair()
    rows[4][name] = value
    assert f"line 5, of strong: {name} " in complaint(written(tmp_path / "a.jsonl", rows))


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    one, two = strong_pair(), strong_pair()
    two[0]["run"] = "another"
    paths = (written(tmp_path / "a.jsonl", one), written(tmp_path / "b.jsonl", two))
    assert "b.jsonl: line 1 and" in complaint(*paths)
    assert len(read([paths[0], written(tmp_path / "c.jsonl", one)])["strong"]) == len(one)


def test_of_two_results_in_a_file_the_later(tmp_path: Path) -> None:
    rows = network({"apts": 9.0}) + network({"apts": 2.0})
    found = read([written(tmp_path / "a.jsonl", rows)])
    assert [row["seconds_to_target"] for row in found["network"]] == [2.0]


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none.jsonl"), "--out", str(tmp_path)]) == 2
    assert "none.jsonl: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


# ---- the page ------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>|`](javascript:x)&$\\frac{\x00\u202e$\"'"


def test_hostile_names(tmp_path: Path) -> None:
    """Names of any kind stay text: in the page, in pictures, and in Markdown's tables."""
    rows = strong_pair(method="apts" + HOSTILE)
    rows += [{**row, "host": HOSTILE, "commit": HOSTILE} for row in micro()[:22]]
    rows += network({"apts": 1.0, HOSTILE: 2.0}, HOSTILE)
    rows += projection(HOSTILE, {2: 0.9, 4: 0.7}, HOSTILE)
    rows.append(compared(HOSTILE, 0.9, 10))
    path = written(tmp_path / "hostile<b>.jsonl", rows)
    assert main(["report", str(path), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\x00" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "](javascript" not in text
    for picture in (tmp_path / report_write.FIGURES).iterdir():
        ElementTree.parse(picture)  # well-formed
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1, "no cell breaks a table"


class Outline(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all_of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def outline(page: Path) -> Outline:
    parser = Outline()
    parser.feed((page / "report.html").read_text(encoding="utf-8"))
    return parser


def test_page_needs_nothing_else(page: Path) -> None:
    found = outline(page)
    for _, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), value
    text = (page / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert not found.all_of("script", "iframe", "object", "embed", "base")


def test_page_is_accessible(page: Path) -> None:
    found = outline(page)
    assert found.all_of("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    drawings = [a for a in found.all_of("svg") if a.get("role") == "img"]
    assert len(drawings) == len(found.all_of("figure")) == len(found.all_of("svg"))
    assert all(len(str(a["aria-label"])) > 40 for a in drawings)
    ids = [a["id"] for _, a in found.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    links = [str(a.get("href") or a["xlink:href"])[1:] for a in found.all_of("a", "use")]
    assert set(links) <= set(ids)


def test_markdown_has_its_pictures(page: Path) -> None:
    text = (page / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"^!\[.+\]\((.+)\)$", text, flags=re.MULTILINE)
    assert len(linked) == len(set(linked)) > 10
    for name in linked:
        ElementTree.parse(page / name)
    assert "# Communication against compute" in text
    assert "**Warning:** Communication exceeds compute at N = 2 (sgd)" in text


def test_sections_only_where_there_are_rows(tmp_path: Path) -> None:
    rows = read([written(tmp_path / "a.jsonl", network({"apts": 2.0}))])
    titles = [section.title for section in report.page(rows).sections]
    assert titles == ["Training over narrow links", "Set-up", "How to read this"]


def test_set_up_is_told(page: Path) -> None:
    text = (page / "report.md").read_text(encoding="utf-8")
    for told_ in ("torch", "2.13", "abc1234", "2026-01-02", "118282", "node", "all.jsonl"):
        assert told_ in text


# ---- a real browser ------------------------------------------------------------------------

PROBE = """<script>addEventListener("load", () => {
  document.querySelectorAll("details").forEach(one => { one.open = true; });
  const box = one => one.getBoundingClientRect();
  const bad = [...document.querySelectorAll("figure svg")].filter(
    one => box(one).width < 200 || box(one).height < 80 || !one.querySelector("path"));
  const root = document.documentElement;
  const wide = [...document.querySelectorAll("main *")].filter(one => !one.closest(".scroll, svg")
    && box(one).right > innerWidth + 1);
  parent.postMessage([innerWidth, root.scrollWidth, bad.length, wide.length,
    document.querySelectorAll("figure svg").length].join(" "), "*");
});</script>"""
FRAME = """<!DOCTYPE html><title>phone</title><body><script>
addEventListener("message", event => { document.body.dataset.told = event.data; });
</script><iframe src="probe.html" style="width:390px;height:844px;border:0"></iframe>"""


def browse(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The document as a headless browser has it after opening a file, and what its console says."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser on PATH: none of {', '.join(BROWSERS)}")
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile}", "--window-size=390,844", "--enable-logging=stderr"),
        *("--virtual-time-budget=3000", "--dump-dom"),
    ]
    done = subprocess.run(
        [browser, *flags, path.as_uri()], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_browser_opens_the_page(page: Path, tmp_path: Path) -> None:
    """From disk, no complaint in the console, every heading there."""
    shutil.copy(page / "report.html", tmp_path)  # alone, so that nothing beside it can help
    document, console = browse(tmp_path / "report.html", tmp_path / "profile")
    assert console == []
    assert document.count("<h2") == 10
    assert "</html>" in document


def test_page_fits_a_phone(page: Path, tmp_path: Path) -> None:
    """390 pixels: no sideways scrolling, all pictures drawn, everything unfolded."""
    text = (page / "report.html").read_text(encoding="utf-8")
    (tmp_path / "probe.html").write_text(text.replace("</body>", PROBE + "</body>"), "utf-8")
    (tmp_path / "frame.html").write_text(FRAME, "utf-8")
    document, console = browse(tmp_path / "frame.html", tmp_path / "profile")
    assert console == []
    found = re.search(r'data-told="([\d ]+)"', document)
    assert found is not None, "the page did not load in the frame"
    width, needed, undrawn, wide, drawn = map(int, found[1].split())
    assert 370 <= width <= 390
    assert needed <= width
    assert (undrawn, wide) == (0, 0)
    assert drawn == len(outline(page).all_of("figure"))
