"""Hosts on one machine: real MPI between them at the line's rate, and nothing left afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apts_mpi.errors import InputError
from benchmarks.harness import hosts as hosts_module
from benchmarks.harness import jobs as launch
from benchmarks.harness import mpi_settings as hosts_mpi
from benchmarks.harness.hosts import Hosts, bits_per_second, missing
from benchmarks.harness.jobs import ROOT, RunFailed
from benchmarks.harness.mpi_settings import SETTINGS, TUNED
from benchmarks.harness.namespaces import clear_leftovers

# Rank 0 tells who is there, then how long sums of 1 MB took.
TIMED = """
import socket, time, numpy
from mpi4py import MPI
world = MPI.COMM_WORLD
names = world.gather(socket.gethostname())
if world.rank == 0:
    print("names", *names, flush=True)
buffer = numpy.ones(250_000, dtype="f4")
for _ in range(3):
    world.Barrier()
    start = time.perf_counter()
    world.Allreduce(MPI.IN_PLACE, buffer)
    seconds = world.allreduce(time.perf_counter() - start, op=MPI.MAX)
    if world.rank == 0:
        print("seconds", seconds, flush=True)
assert (buffer == 4**3).all()
"""
STAYING = """
import os, time
print("pid", os.getpid(), flush=True)
time.sleep(100)
"""
HOLDING = f"""
from benchmarks.harness.hosts import Hosts
with Hosts(2) as hosts:
    print("name", hosts.names[0], flush=True)
    hosts.mpirun(["-c", {STAYING!r}], timeout=100, heard=lambda line: print(line, flush=True))
"""


@pytest.fixture
def root() -> None:
    """Skips where hosts cannot be made."""
    reason = missing()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def holder(root: None) -> Iterator[subprocess.Popen[str]]:
    """A process with two hosts and a job on them."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    yield process
    process.kill()
    process.wait(timeout=10)


def running(process: subprocess.Popen[str]) -> tuple[str, list[int]]:
    """The holder's name of its hosts, and its ranks, once both are there."""
    assert process.stdout is not None
    name, pids = "", list[int]()
    while len(pids) < 2:
        line = process.stdout.readline()
        assert line, "ended early"
        kind, _, value = line.strip().partition(" ")
        if kind == "name":
            name = value.rsplit("-", 1)[0]
        elif kind == "pid":
            pids.append(int(value))
    return name, pids


def left(name: str) -> list[str]:
    """Namespaces and locks of this name."""
    folders = (Path("/run/netns"), Path("/run/apts_mpi-hosts"))
    return [str(path) for folder in folders for path in folder.glob(f"{name}*")]


def alive(pid: int) -> bool:
    """Whether it runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("text", "rate"), [("100mbit", 10**8), ("1gbit", 10**9), ("2.5gbit", 25 * 10**8)]
)
def test_rates(text: str, rate: int) -> None:
    assert bits_per_second(text) == rate


@pytest.mark.parametrize("text", ["100", "fast", "100 mbit", "1kbit", "1000gbit", "-1mbit", ""])
def test_wrong_rates_are_told(text: str) -> None:
    with pytest.raises(InputError, match="is not like 100mbit"):
        Hosts(2, link=text)


@pytest.mark.parametrize(("count", "ranks"), [(0, 1), (65, 1), (2, 0)])
def test_wrong_counts_are_told(count: int, ranks: int) -> None:
    with pytest.raises(InputError, match="must be 1 to 64"):
        Hosts(count, ranks_per_host=ranks)


def test_users_that_cannot_make_hosts_are_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    assert missing() == "hosts on one machine need root"
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setattr(hosts_module.shutil, "which", lambda tool: None if tool == "tc" else tool)
    assert "need tc" in (missing() or "")


def test_settings_replace_each_other_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_MCA_mpi_yield_when_idle", "0")
    monkeypatch.setenv("OMPI_MCA_btl_tcp_sndbuf", "1")
    monkeypatch.setenv("OMPI_MCA_pml", "ucx")
    plain, tuned = hosts_mpi.environment({}), hosts_mpi.environment(TUNED)
    assert plain["OMPI_MCA_pml"] == tuned["OMPI_MCA_pml"] == "ucx"
    assert "OMPI_MCA_mpi_yield_when_idle" not in plain
    assert "OMPI_MCA_btl_tcp_sndbuf" not in plain
    assert {f"OMPI_MCA_{name}": value for name, value in TUNED.items()}.items() <= tuned.items()
    line = hosts_mpi.export_line(SETTINGS["yield"])
    assert line == "export OMPI_MCA_mpi_yield_when_idle=1"
    assert hosts_mpi.export_line({}).startswith("#")
    with pytest.raises(InputError, match="'fast' are none of defaults, "):
        hosts_mpi.named("fast")


def test_a_job_that_stays_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(RunFailed, match=r"no end within 0.5 s: sleeper"):
        launch.supervise(["sleep", "30"], name="sleeper", env=os.environ, timeout=0.5)
    assert time.monotonic() - start < 10
    command = ["sh", "-c", "echo the reason; exit 3"]
    with pytest.raises(RunFailed, match="status 3: failer: the reason"):
        launch.supervise(command, name="failer", env=os.environ, timeout=10)


@pytest.mark.usefixtures("all_cores")
def test_mpi_between_hosts_takes_the_lines_time(root: None) -> None:
    said: list[list[str]] = []
    with Hosts(2, link="100mbit", ranks_per_host=2) as hosts:
        hosts.mpirun(["-c", TIMED], timeout=60, heard=lambda line: said.append(line.split()))
        plain = subprocess.run(
            [*hosts.inside(1), "sh", "-c", "cat /proc/sys/kernel/hostname; echo $WHO"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "WHO": "caller"},
        )
        assert plain.stdout.split() == [hosts.names[1], "caller"]
        both = [hosts.names[0]] * 2 + [hosts.names[1]] * 2
        name = hosts.names[0].rsplit("-", 1)[0]
        assert left(name)
    assert not left(name)
    assert [words[1:] for words in said if words[:1] == ["names"]] == [both]
    seconds = [float(words[1]) for words in said if words[:1] == ["seconds"]]
    assert len(seconds) == 3
    # 80 ms of the line, less the 1.3 ms that the buckets at a cable's ends let pass.
    assert all(0.078 < second < 5 for second in seconds)


def test_two_at_once_and_an_exception(root: None) -> None:
    names: list[str] = []

    def fail() -> None:
        with Hosts(1) as one, Hosts(1) as other:
            names.extend(one.names + other.names)
            assert one.names != other.names
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(names) == 2
    assert not any(left(name) for name in names)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_terminated_process_leaves_nothing(holder: subprocess.Popen[str]) -> None:
    name, pids = running(holder)
    assert left(name)
    holder.send_signal(signal.SIGTERM)
    holder.wait(timeout=15)
    assert not left(name)
    assert not any(map(alive, pids))


def test_a_killed_process_is_cleared_up_after(holder: subprocess.Popen[str]) -> None:
    name, pids = running(holder)
    clear_leftovers()
    assert left(name)
    assert all(map(alive, pids))
    holder.kill()
    holder.wait(timeout=15)
    clear_leftovers()
    assert not left(name)
    assert not any(map(alive, pids))
