"""Network namespaces of hosts, under names that are locked while their process lives."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.harness.jobs import RunFailed

PREFIX = "apts"
_NAMESPACES = Path("/run/netns")
_LOCKS = Path("/run/apts_mpi-hosts")
_OURS = re.compile(rf"({PREFIX}[0-9]+-[0-9]+)-(?:s|[0-9]+)")


def reserve(name: str) -> int:
    """Take a name for hosts, after clearing up; returns the descriptor of its lock."""
    with _alone():
        _clear()
        lock = os.open(_LOCKS / name, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock


def release(name: str, lock: int) -> None:
    """Give a name back."""
    (_LOCKS / name).unlink(missing_ok=True)
    os.close(lock)


def clear_leftovers() -> None:
    """Remove the hosts of processes that are no more.

    Raises:
        OSError: not as root.
    """
    with _alone():
        _clear()


@contextmanager
def _alone() -> Iterator[None]:
    """Only one process at a time looks for leftovers, or takes a name."""
    _LOCKS.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(_LOCKS / ".all", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _clear() -> None:
    """A living process holds the lock of its hosts' name; a dead one does not."""
    found = {match[1] for path in _namespaces() if (match := _OURS.fullmatch(path.name))}
    for name in found | {path.name for path in _LOCKS.glob(f"{PREFIX}*")}:
        lock = os.open(_LOCKS / name, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(name)
            (_LOCKS / name).unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def _namespaces() -> list[Path]:
    return sorted(_NAMESPACES.iterdir()) if _NAMESPACES.is_dir() else []


def remove(name: str) -> None:
    """End what runs in the hosts of this name, then remove them; cables and bridge go with them."""
    own = [path.name for path in _namespaces() if re.fullmatch(rf"{name}-(s|[0-9]+)", path.name)]
    deadline = time.monotonic() + 5
    while any([_killed(namespace) for namespace in own]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for namespace in own:
        do("ip", "netns", "delete", namespace)


def _killed(namespace: str) -> int:
    """Kill the processes in a namespace; returns how many there still were."""
    pids = [int(word) for word in do("ip", "netns", "pids", namespace).split()]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


def do(*command: str) -> str:
    """Run a command of the system.

    Raises:
        RunFailed: with the first line of what it says.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise RunFailed(f"{' '.join(command)}: {said[0]}")
    return done.stdout
