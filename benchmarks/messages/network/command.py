"""Time to an accuracy over narrow links: real messages between hosts made on this machine.

Two or more hosts (network namespaces) with a link of a limited rate, real Open MPI over TCP between
them, and PyTorch's own DistributedDataParallel with gloo as a reference from outside. What has
learning rates is tuned before, without links. Needs root and MNIST's four files. Writes
network.jsonl and network.md; runs that are in network.jsonl are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from apts_mpi.data import load_source, write_shards
from apts_mpi.errors import InputError
from benchmarks.harness.data import find
from benchmarks.harness.hosts import Hosts, missing
from benchmarks.harness.jobs import ROOT, RunFailed
from benchmarks.harness.options import job_folder, names, positive, whole_numbers
from benchmarks.harness.progress import Progress
from benchmarks.harness.results import Results, Row, origin
from benchmarks.messages.network import report as network_report
from benchmarks.messages.network.jobs import make
from benchmarks.messages.network.plan import UNLIMITED, Method, Network, Plan, read_plan, run_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--config",
        type=Path,
        default=ROOT / "benchmarks" / "network.toml",
        metavar="FILE",
        help="TOML of methods, networks, links, hosts (default benchmarks/network.toml)",
    )
    parser.add_argument("--hosts", type=whole_numbers, help="run these of the file, '2'")
    parser.add_argument("--links", type=names, help="run these of the file, '1gbit,unlimited'")
    parser.add_argument("--methods", type=names, help="run these of the file (default all)")
    parser.add_argument("--networks", help="run these of the file: '128,128 1024,784'")
    parser.add_argument(
        "--repetitions", type=positive, metavar="K", help="of every run (default the file's)"
    )
    parser.add_argument(
        "--timeout", type=float, default=900.0, metavar="S", help="seconds per run (default 900)"
    )
    parser.add_argument(
        "--mnist",
        type=Path,
        metavar="DIR",
        help="folder of the four IDX files (default $APTS_MPI_TEST_DATA/mnist, or "
        "shared/data/mnist beside the checkout)",
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keeps the shards (default a temporary folder)"
    )
    parser.add_argument("--fresh", action="store_true", help="forget all runs that are done")
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing, write what the runs so far show"
    )


def run(parsed: argparse.Namespace) -> int:
    """Run what is missing, and write the tables; returns the exit status."""
    whole = read_plan(parsed.config)
    plan = chosen(whole, parsed)
    out = Path(parsed.out)
    reason = None if parsed.report_only else missing()
    if reason is not None:
        print(f"skipped: {reason}", file=sys.stderr)
        return 0
    results = Results(out / "network.jsonl", fresh=parsed.fresh and not parsed.report_only)
    failed = 0
    if not parsed.report_only:
        with job_folder(parsed.work) as folder:
            original = find(plan.data, parsed.mnist)
            shards = folder / f"{plan.data}-1"
            if not shards.exists():
                source = load_source(plan.data, path=original)
                write_shards(source, shards, shards=1, exist_ok=True)
            failed = _Work(plan, whole, results, shards, parsed.timeout).all()
    network_report.write(out / "network.md", whole, results)
    return 1 if failed else 0


def chosen(plan: Plan, parsed: argparse.Namespace) -> Plan:
    """The part of the plan that the command line asks for.

    Raises:
        InputError: it asks for what is not in it.
    """
    changes: Row = {}
    options = (("hosts", parsed.hosts), ("links", parsed.links), ("methods", parsed.methods))
    for name, given in options:
        if given:
            known = {getattr(item, "name", item): item for item in getattr(plan, name)}
            _within(f"--{name}", given, known)
            changes[name] = tuple(known[word] for word in given)
    if parsed.networks:
        known_networks = {network.hidden: network for network in plan.networks}
        _within("--networks", tuple(parsed.networks.split()), known_networks)
        changes["networks"] = tuple(known_networks[w] for w in parsed.networks.split())
    if parsed.repetitions:
        changes["repetitions"] = parsed.repetitions
    if not 0 < parsed.timeout < 1e6:
        raise InputError(f"--timeout {parsed.timeout:g}: must be positive")
    return Plan(**{**vars(plan), **changes})


def _within(option: str, given: Sequence[object], known: Mapping[Any, object]) -> None:
    unknown = [str(word) for word in given if word not in known]
    if unknown:
        raise InputError(f"{option} {','.join(unknown)}: none of {', '.join(map(str, known))}")


class _Work:
    """The runs in their order: rates tuned without links, then link by link, in random order."""

    def __init__(
        self, plan: Plan, whole: Plan, results: Results, shards: Path, timeout: float
    ) -> None:
        # Of the plan are the runs that are made; in the whole one what they depend on is found.
        self.plan, self.whole, self.results = plan, whole, results
        self.shards, self.timeout = shards, timeout
        self.failed = 0
        self._progress = Progress(sum(1 for _ in self._expected()))

    def all(self) -> int:
        """Make all that are missing; returns how many failed."""
        for network in self.plan.networks:
            self._tune(network)
        for hosts in self.plan.hosts:
            links = [(link, network) for link in self.plan.links for network in self.plan.networks]
            random.Random(0).shuffle(links)
            for link, network in links:
                self._link(link, network, hosts)
        return self.failed

    def _expected(self) -> Iterator[str]:
        """A name for every run there will be, those done before included."""
        plan = self.plan
        for network, method in itertools.product(plan.networks, plan.methods):
            yield from map(str, network_report.tuning(plan, network, method))
            more = max(len(method.batches), 1) + plan.repetitions - 1
            yield from [method.name] * (len(plan.hosts) * len(plan.links) * more)

    def _tune(self, network: Network) -> None:
        """Work to the target for every rate and minibatch, on this machine alone."""
        for method in self.plan.methods:
            for settings in network_report.tuning(self.whole, network, method):
                self._one(network, method, settings, None)

    def _link(self, link: str, network: Network, count: int) -> None:
        """All runs over one link: the minibatch by the clock on seed 0, then the other seeds."""
        chance = random.Random(1)
        with ExitStack() as stack:
            rate = None if link == UNLIMITED else link
            hosts = stack.enter_context(Hosts(count, link=rate))
            first = list(self.plan.methods)
            chance.shuffle(first)
            for method in sorted(first, key=lambda method: bool(method.like)):
                self._method(link, network, method, hosts, count, [0])
            for repetition in range(1, self.plan.repetitions):
                chance.shuffle(first)
                for method in first:
                    self._method(link, network, method, hosts, count, [repetition])

    def _method(
        self,
        link: str,
        network: Network,
        method: Method,
        hosts: Hosts,
        count: int,
        repetitions: list[int],
    ) -> None:
        for repetition in repetitions:
            for settings in network_report.wanted(
                self.whole, self.results, link, network, method, count, repetition
            ):
                self._one(network, method, settings, hosts)

    def _one(self, network: Network, method: Method, settings: Row, hosts: Hosts | None) -> None:
        if self.results.get(settings) is not None:
            self._progress.skip()
            return
        made = run_of(self.plan, network, method, settings)
        name = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in settings.values())
        try:
            values = make(made, self.plan, self.shards, hosts, self.timeout)
        except RunFailed as error:
            if "not finite" not in str(error):
                self.failed += 1
                self._progress.say(f"{name}: failed: {error}")
                return
            values = {"seconds_to_target": None, "epochs_to_target": None, "diverged": str(error)}
        self.results.add(settings, {**values, "mpi": self.plan.mpi, **origin()})
        seconds = values["seconds_to_target"]
        reached = "not reached" if seconds is None else f"{seconds:.2f} s"
        self._progress.say(f"{name}: {reached}")
