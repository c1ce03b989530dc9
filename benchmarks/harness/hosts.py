"""Hosts with narrow links on one Linux machine, to run real MPI over real TCP between them.

A host is a network namespace with a host name of its own; a cable (veth) leads to a bridge, which
has a namespace too, so that no address, route or firewall rule of the machine meets them. A token
bucket at either end of every cable limits its rate, each direction by itself, as a switched
full-duplex network does. Files, processors and memory are the machine's. Needs root.

    with Hosts(2, link="100mbit") as hosts:
        hosts.mpirun(["-m", "apts_mpi", "--epochs", "1"], timeout=60)
        subprocess.run([*hosts.inside(1), "ip", "address"])
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

from apts_mpi.errors import InputError
from benchmarks.harness import namespaces
from benchmarks.harness.jobs import MPIRUN_MISSING, RunFailed, launcher, supervise
from benchmarks.harness.mpi_settings import TUNED, environment

MOST = 64  # hosts
UNLIMITED = "unlimited"  # a link
INTERFACE = "eth0"  # in every host
SUBNET = "10.97.0.0/24"  # in namespaces of their own, so any number of them may be alike
_TOOLS = ("ip", "tc", "unshare", "sh")
_UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_AS_HOST = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'
_count = itertools.count()


def missing() -> str | None:
    """Why hosts cannot be made here, one line; None where they can."""
    if sys.platform != "linux":
        return "hosts on one machine need Linux"
    if os.geteuid() != 0:
        return "hosts on one machine need root"
    lacking = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"hosts on one machine need {', '.join(lacking)} (packages iproute2, util-linux)"
    try:
        namespaces.clear_leftovers()
        with Hosts(1, link="1gbit"):
            return None
    except (RunFailed, OSError) as error:
        return f"hosts on one machine cannot be made: {error}"


def bits_per_second(link: str) -> int:
    """A link's rate from its text, like 100mbit or 1gbit.

    Raises:
        InputError: it is not of this form, or outside 1 Mbit/s to 100 Gbit/s.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(kbit|mbit|gbit)", link)
    rate = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not 10**6 <= rate <= 10**11:
        raise InputError(f"link {link!r} is not like 100mbit or 1gbit, from 1mbit to 100gbit")
    return rate


class Hosts:
    """Some hosts on a switch, there while the context is open.

    They go when it is left, by an exception too; Ctrl-C and, in the main thread, SIGTERM raise
    KeyboardInterrupt. What a killed process has left is cleared when the next hosts are made.

    Args:
        count: of the hosts, 1 to 64.
        link: rate of each cable and direction, like 100mbit; None or "unlimited" has no limit.
        ranks_per_host: MPI ranks of ``mpirun``.

    Attributes:
        names: of the hosts, and of their namespaces. addresses: IPv4, in the same order.
        ranks: MPI ranks on all of them.

    Raises:
        InputError: an argument is out of range.
        RunFailed: the system refuses; ask ``missing()`` before.
    """

    def __init__(self, count: int, *, link: str | None = None, ranks_per_host: int = 1) -> None:
        if not 1 <= count <= MOST or not 1 <= ranks_per_host <= MOST:
            raise InputError(f"hosts and ranks per host must be 1 to {MOST}")
        self.link = link
        self._rate = None if link in (None, UNLIMITED) else bits_per_second(str(link))
        self._name = f"{namespaces.PREFIX}{os.getpid()}-{next(_count)}"
        self.ranks_per_host = ranks_per_host
        self.ranks = count * ranks_per_host
        self.names = [f"{self._name}-{i}" for i in range(count)]
        self.addresses = [f"{SUBNET.rsplit('.', 1)[0]}.{i + 1}" for i in range(count)]
        self._lock = -1
        self._before: object = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def inside(self, i: int) -> list[str]:
        """What goes before a command to run it in host i."""
        name = self.names[i]
        return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", _AS_HOST, name]

    def cut(self, i: int) -> None:
        """Take the link of host i down, for good."""
        namespaces.do("ip", "-n", f"{self._name}-s", "link", "set", f"port{i}", "down")

    def mpi_command(self) -> list[str]:
        """Open MPI's mpirun over all hosts; the program and its arguments go behind.

        Raises:
            InputError: there is no mpirun.
        """
        path = launcher()
        if path is None:
            raise InputError(MPIRUN_MISSING)
        if self._folder is None:
            raise RuntimeError("the hosts are not there: use them in a with block")
        transports = "tcp,self" if self.ranks_per_host == 1 else "tcp,sm,self"
        slots = ",".join(f"{address}:{self.ranks_per_host}" for address in self.addresses)
        return [
            *self.inside(0),
            *(path, "-n", str(self.ranks), "--host", slots, "--bind-to", "none"),
            *("--prtemca", "plm_ssh_agent", str(self._agent)),
            *("--prtemca", "prte_if_include", SUBNET),
            *("--mca", "pml", "ob1", "--mca", "btl", transports),
            *("--mca", "btl_tcp_if_include", SUBNET),
        ]

    def mpirun(
        self,
        arguments: Sequence[str],
        *,
        timeout: float,
        heard: Callable[[str], object] = lambda line: None,
        settings: Mapping[str, str] = TUNED,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Run ``python ARGUMENTS`` on every rank, from the checkout's root.

        Args:
            settings: MCA parameters; no other one that ``mpi_settings`` knows is set.
            variables: of the ranks' environment, besides this process's.
            timeout, heard: as in ``supervise``, which raises the same.
        """
        supervise(
            [*self.mpi_command(), sys.executable, *arguments],
            name=" ".join(arguments),
            env={**environment(settings), **(variables or {})},
            timeout=timeout,
            heard=heard,
        )

    def __enter__(self) -> Hosts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            self._lock = namespaces.reserve(self._name)
            self._build()
            self._folder = tempfile.TemporaryDirectory(prefix="apts_mpi-hosts-")
            self._write_agent()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._end()

    def _build(self) -> None:
        switch = f"{self._name}-s"
        for name in (switch, *self.names):
            namespaces.do("ip", "netns", "add", name)
        namespaces.do("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        namespaces.do("ip", "-n", switch, "link", "set", "bridge", "up")
        for i, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            port, far = f"port{i}", ("peer", "name", INTERFACE, "netns", name)
            namespaces.do("ip", "-n", switch, "link", "add", port, "type", "veth", *far)
            namespaces.do("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
            namespaces.do("ip", "-n", name, "link", "set", "lo", "up")
            # Without addresses of IPv6, no program can choose them.
            namespaces.do("ip", "-n", name, "link", "set", INTERFACE, "addrgenmode", "none", "up")
            mask = SUBNET.rsplit("/", 1)[1]
            namespaces.do("ip", "-n", name, "addr", "add", f"{address}/{mask}", "dev", INTERFACE)
            if self._rate is not None:
                for end, device in ((name, INTERFACE), (switch, port)):
                    namespaces.do(
                        "tc", "-n", end, "qdisc", "add", "dev", device, "root", *self._bucket()
                    )

    def _bucket(self) -> list[str]:
        """A token bucket: what may go at once is half a millisecond of the line, 8 KiB at least.

        More would carry a short message for nothing; less would not reach the rate, as the
        kernel's timers are coarser.
        """
        assert self._rate is not None
        burst = max(8192, self._rate // 8 // 2000)
        return f"tbf rate {self._rate}bit burst {burst}b latency 100ms".split()

    @property
    def _agent(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "agent"

    def _write_agent(self) -> None:
        """What mpirun calls in place of ssh, as AGENT ADDRESS COMMAND."""
        lines = ["#!/bin/sh", 'case "$1" in']
        for i, address in enumerate(self.addresses):
            prefix = shlex.join(self.inside(i))
            lines.append(f'{address}) shift; exec {prefix} sh -c "$*" ;;')
        lines += ["esac", 'echo "no such host: $1" >&2', "exit 1"]
        self._agent.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._agent.chmod(0o700)

    def _end(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        # A second Ctrl-C must not leave half of them behind.
        ignored = (signal.SIGINT, signal.SIGTERM) if main else ()
        before = [(signum, signal.signal(signum, signal.SIG_IGN)) for signum in ignored]
        try:
            namespaces.remove(self._name)
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None
            if self._lock >= 0:
                namespaces.release(self._name, self._lock)
                self._lock = -1
        finally:
            for signum, handler in before:
                signal.signal(signum, handler)
            if main and self._before is not None:
                signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]
                self._before = None


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
