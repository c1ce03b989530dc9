"""What the page says of the other kinds is what is in the rows."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")

from benchmarks.harness.jobs import RESULTS
from benchmarks.harness.rows import read
from benchmarks.messages.micro import section as micro_page
from benchmarks.messages.network.section import section as network_section
from benchmarks.project.projection import projections
from benchmarks.project.proof import proof
from benchmarks.quality.compare.entries import unplanned
from benchmarks.quality.compare.section import sections as compared_sections
from tests.benchmarks.report_rows import (
    cell,
    compared,
    micro,
    network,
    prediction,
    projection,
    tables_of,
    told,
)


def test_messages() -> None:
    section = micro_page.section(micro(slower=1.25))
    lines = told(section)
    place = "Allreduce, 2 ranks on one host, recursive doubling, eager to 8 MiB (tuned)"
    assert f"{place}: latency 0.625 µs, bandwidth 1.60 GB/s" in lines
    assert (
        "apts_mpi, clocks off (without barriers and clocks): at least 80.0 percent of the bare"
        in lines
    )
    best = "recursive doubling, eager to 8 MiB (tuned) is best at 4.19 MB, 2.00 times faster than"
    assert f"{best} Open MPI's defaults (defaults)" in lines


def test_time_to_target() -> None:
    rows = network({"apts": 2.0, "ddp-adam": 12.8}) + network({"ddp-adam": 10.0}, lr=3e-3)
    rows += network({"ddp-adam": None}, lr=1e-1)
    lines = told(network_section(rows))
    assert (
        "APTS reaches 97 percent in 2.00 s, PyTorch DDP, Adam in 10.0 s: 5.00 times sooner."
        in lines
    )
    table = tables_of(network_section(rows))[0]
    assert cell(table, 1, "rate") == "0.003 (best of 3)"


def test_later_than_the_reference_is_a_warning() -> None:
    rows = network({"apts": 5.0, "ddp-adam": 4.0}, "unlimited") + network({"apts": None}, "1gbit")
    lines = told(network_section(rows))
    assert "WARNING Over no limit" in lines
    assert "1.25 times later" in lines
    assert "WARNING Over 1 Gbit/s, ours never reached 97 percent." in lines


def test_diverged_over_a_link() -> None:
    (row,) = network({"adam": None}, lr=9.0)
    settings = row["settings"]
    rows = network({"apts": 2.0})
    rows.append({"settings": settings, "seconds_to_target": None, "diverged": "not finite"})
    assert "2.00 s" in told(network_section(rows))
    assert network_section(rows[1:]) is None, "nothing to tell of a target"


def test_model_proof() -> None:
    of = {"benchmark": "strong", "method": "apts", "ranks": 2}
    rows = [
        prediction({**of, "batch": k}, 1.0, 1 + error) for k, error in enumerate((0.1, -0.2, 0.3))
    ]
    lines = told(proof(rows))
    assert "WARNING The model is off by 20.0 percent (median of 3 points" in lines
    assert "Furthest off: +30.0 percent" in lines


def test_projections_say_so_everywhere() -> None:
    rows = projection("apts", {2: 0.9, 4: 0.8, 8: 0.4}) + projection("adam", {2: 0.3})
    section = projections(rows)
    assert section is not None
    for one in section.walk():
        assert one.title.startswith("Projection")
        for part in one.parts:
            text = getattr(part, "title", None) or getattr(part, "caption", None) or str(part)
            assert "rojection" in text
    assert "ours stays at 50 percent or more up to N = 4 over 1 Gbit/s" in told(section)
    (limits, _) = tables_of(section)
    assert (cell(limits, 0, "APTS"), cell(limits, 0, "Adam")) == ("4", "1")
    pictures = [p.svg for one in section.walk() for p in one.parts if hasattr(p, "svg")]
    assert pictures
    assert all("projection" in svg for svg in pictures)


def test_accuracy_against_work_and_payload() -> None:
    rows = [compared("apts", a, 58, seed) for seed, a in enumerate((0.98, 0.99))]
    rows += [compared("adam", 0.975, 1160, ranks=1, lr=1e-3)]
    rows += [compared("adam", None, 0, ranks=1, lr=9.0)]
    lines = told(compared_sections({"compare": rows})[0])
    assert "APTS ends at 98.50 percent, the best tuned other (Adam) at 97.50" in lines
    assert "20.0 times as many messages" in lines


def test_committed_comparison_can_be_read() -> None:
    rows = read([RESULTS / "compare.jsonl"])
    found = unplanned([r for r in rows["compare"] if r["settings"]["data"] == "mnist"])
    assert {"apts", "adam", "sgd", "local-sgd", "diloco"} <= {entry.method for entry in found}
    assert all(entry.mean > 95 for entry in found)
