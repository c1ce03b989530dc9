"""Traces: valid, nested, aligned, and nothing lost or changed for them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import apts_mpi.comm.clock
from apts_mpi.comm import message
from apts_mpi.comm.communicator import ClockReading, Comm
from apts_mpi.comm.trace import Alignment, Trace, refusal
from apts_mpi.errors import AgreedError
from tests.comm.trace_programs import FLAGS
from tests.conftest import TESTS, Launch

RANKS = 3
Events = list[dict[str, Any]]


def load(path: Path) -> tuple[dict[str, Any], list[Events]]:
    """What a trace says of itself, and the spans of each rank in the file's order."""
    trace = json.loads(path.read_text(encoding="utf-8"))
    about, events = trace["otherData"], trace["traceEvents"]
    spans = [[e for e in events if e["ph"] == "X" and e["pid"] == r] for r in range(about["ranks"])]
    assert sum(map(len, spans)) == about["spans"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert list(names) == list(range(about["ranks"]))
    assert all(name.startswith(f"rank {rank} on ") for rank, name in names.items())
    return about, spans


def assert_nested(spans: Events) -> list[tuple[str, str]]:
    """Spans come by start, and each lies within the one around it; returns (inner, outer)."""
    around: list[tuple[int, str]] = []
    pairs, last = [], 0
    for span in spans:
        start, end = round(1e3 * span["ts"]), round(1e3 * (span["ts"] + span["dur"]))
        assert last <= start <= end, span
        while around and around[-1][0] <= start:
            around.pop()
        if around:
            assert end <= around[-1][0], span
            pairs.append((span["name"], around[-1][1]))
        around.append((end, span["name"]))
        last = start
    return pairs


def assert_aligned(about: dict[str, Any], spans: list[Events]) -> None:
    """Nobody leaves a barrier before all have come, and all leave at about the same time."""
    slack = 2 * about["clock_error_us"] + 0.01
    barriers = list(zip(*([e for e in own if e["name"] == "wait"] for own in spans), strict=True))
    assert len(barriers) > 20
    spread = []
    for barrier in barriers:
        ends = [e["ts"] + e["dur"] for e in barrier]
        assert max(e["ts"] for e in barrier) <= min(ends) + slack, barrier
        spread.append(max(ends) - min(ends))
    assert median(spread) < 100e3  # microseconds; more ranks than cores


def results(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """Metrics and summary but for seconds, and the settings of a run."""
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    rest = [{k: v for k, v in d.items() if not k.startswith("seconds")} for d in [*rows, summary]]
    return rest[:-1], rest[-1], (run / "config.toml").read_text()


def test_a_run_of_three_ranks_is_told_whole_and_unchanged(launch: Launch, tmp_path: Path) -> None:
    flags = ("train", *FLAGS, "--out", "run", "--trace", "run/trace.json")
    done = launch(RANKS, "-m", "apts_mpi", *flags)
    assert done.status == 0, done.err
    assert "spans in run/trace.json" in done.err
    names = ["config.toml", "metrics.jsonl", "summary.json", "trace.json"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names
    about, spans = load(tmp_path / "run" / "trace.json")
    assert about["spans_dropped"] == 0
    assert len(spans) == RANKS
    assert_aligned(about, spans)
    _, summary, _ = results(tmp_path / "run")
    n = summary["parameters"]
    for own in spans:
        pairs = assert_nested(own)
        assert [e["name"] for e in own if e["name"].startswith("iteration")] == [
            f"iteration {k}" for k in (1, 2, 3)
        ]
        inner = {("local steps", "iteration 2"), ("gradient", "local steps")}
        assert inner | {("loss", "iteration 3"), ("wait", "evaluation")} <= set(pairs)
        sent = [e["args"]["bytes"] for e in own if e["name"] == "allreduce"]
        scalars = [(size - 4 * n) // (4 * message.DIGITS) for size in sent if size > 4 * n]
        assert [s for s in sent if s > 4 * n] == [
            4 * (n + k * message.DIGITS + message.FLAGS) for k in scalars
        ]
        assert len(scalars) == summary["vector_allreduces"]
        assert all(0 < k <= 8 for k in scalars)
        assert all("args" not in e for e in own if e["cat"] not in ("allreduce", "broadcast"))

    # Then, in one job: clocks that differ, a refusal, the same run without a trace, a full disk.
    programs = ("shifted_clocks", "relay", "refused", "plain", "shifted", "full")
    done = launch(RANKS, TESTS / "comm/trace_programs.py", *programs)
    assert done.status == 0, done.err
    about, spans = load(tmp_path / "shifted.json")
    assert_aligned(about, spans)
    for own in spans:
        assert_nested(own)
    plain = results(tmp_path / "plain")
    assert "trace" not in plain[2]
    for other in ("run", "shifted", "full"):
        assert results(tmp_path / other) == plain


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("there.json", "already exists; name a new file"),
        ("dangling", "already exists"),
        ("nowhere/t.json", "there is no folder nowhere; make it"),
        ("there.json/t.json", "there is no folder there.json"),
        ("run/summary.json", "the run's own summary.json; name another"),
        ("x" * 254, "cannot be written: File name too long; name another file"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_touched(
    file: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("mine")
    Path("dangling").symlink_to("gone")
    before = sorted(os.listdir())
    error = refusal(file, "run")
    assert str(error).startswith(f"--trace {file}: ")
    assert said in str(error)
    assert sorted(os.listdir()) == before
    assert Path("there.json").read_text() == "mine"
    assert refusal("new.json", None) is None
    assert refusal("run/new.json", "run") is None
    assert sorted(os.listdir()) == before


def test_a_folder_that_is_not_writable_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touch(*_: object, **__: object) -> None:  # root may write wherever it is told not to
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "touch", touch)
    assert "cannot be written: Permission denied" in str(refusal(str(tmp_path / "t.json"), None))


@settings(deadline=None, derandomize=True)
@given(
    shift=st.floats(-1e7, 1e7),
    drift=st.floats(-1e-3, 1e-3),
    length=st.floats(0.1, 1e5),
    errors=st.tuples(st.floats(-1e-3, 1e-3), st.floats(-1e-3, 1e-3)),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=20),
)
def test_aligned_times_keep_their_order_and_are_off_by_no_more_than_told(
    shift: float, drift: float, length: float, errors: tuple[float, float], shares: list[float]
) -> None:
    true = 50.0 + length * np.array([0.0, *sorted(shares), 1.0])
    own = true * (1 + drift) + shift
    start, end = (
        ClockReading(float(own[i]), float(true[i]) + error, abs(error) + 1e-6)
        for i, error in zip((0, -1), errors, strict=True)
    )
    alignment = Alignment(start, end)
    told = alignment.nanoseconds(own, 50.0)
    assert (np.diff(told) >= 0).all()
    assert np.abs(told / 1e9 - (true - 50.0)).max() <= alignment.error + 1e-7


def test_a_clock_that_may_be_rank_0s_own_is_taken_for_it() -> None:
    alignment = Alignment(ClockReading(5.0, 5.001, 0.002), ClockReading(9.0, 8.999, 0.002))
    assert alignment.nanoseconds(np.array([5.0, 9.0]), 4.0).tolist() == [10**9, 5 * 10**9]


def record(comm: Comm, spans: int) -> None:
    for k in range(spans):
        with comm.clock.phase("algebra", f'iteration "{k}"'), comm.clock.phase("allreduce", "", 8):
            pass


def test_many_spans_are_valid_and_those_dropped_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apts_mpi.comm.clock, "_MOST_SPANS", 20_001)
    comm, said = Comm(), list[str]()
    trace = Trace(str(tmp_path / "t.json"), comm, said.append)
    record(comm, 15_000)
    trace.finish()
    about, (own,) = load(tmp_path / "t.json")
    assert (about["spans"], about["spans_dropped"]) == (20_001, 9_999)
    assert_nested(own)
    assert own[0]["name"] == 'iteration "0"'
    labels = [e for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"][:3]]
    assert labels[2]["args"]["labels"] == "9999 spans dropped"
    assert [line for line in said if line.startswith("warning: 9999 spans")]
    assert comm.clock.spans is None


def test_a_clock_that_is_off_has_no_trace_and_says_so(tmp_path: Path) -> None:
    comm, said = Comm(timed=False), list[str]()
    trace = Trace(str(tmp_path / "t.json"), comm, said.append)
    record(comm, 3)
    trace.finish()
    assert len(said) == 1
    assert "clocks are off" in said[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_came_meanwhile_is_kept_and_the_trace_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    if not links:
        monkeypatch.setattr(os, "link", link)
    path, comm = tmp_path / "t.json", Comm()
    trace = Trace(str(path), comm, lambda line: None)
    record(comm, 3)
    path.write_text("mine")
    with pytest.raises(AgreedError, match="meanwhile; the trace is in") as caught:
        trace.finish()
    assert path.read_text() == "mine"
    assert load(Path(str(caught.value).split(" is in ")[1]))[0]["spans"] == 6

    path.unlink()
    for other in tmp_path.iterdir():
        other.unlink()
    trace = Trace(str(path), comm, lambda line: None)
    trace.finish()
    assert os.listdir(tmp_path) == ["t.json"]
    assert load(path)[0]["spans"] == 0


@pytest.mark.parametrize("name", ["fsync", "link"])
def test_what_fails_at_the_end_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    comm = Comm()
    trace = Trace(str(tmp_path / "t.json"), comm, lambda line: None)
    record(comm, 3)
    monkeypatch.setattr(os, name, fails)
    if name == "link":
        monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(AgreedError, match="No space left on device; the run itself is complete"):
        trace.finish()
    assert not list(tmp_path.iterdir())
