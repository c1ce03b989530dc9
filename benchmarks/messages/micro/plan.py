"""What the benchmark of single messages measures: its TOML file, and the rows that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness.jobs import ROOT
from benchmarks.harness.mpi_settings import SETTINGS
from benchmarks.harness.plan_file import check, fields, load, typed
from benchmarks.harness.results import Row

CONFIG = ROOT / "benchmarks" / "micro.toml"
OPERATIONS = ("allreduce", "broadcast")
# Through the package's layer as it trains, without its barriers and clocks, through mpi4py alone,
# and through the fused message of a vector and scalars.
THROUGH = ("mpi4py", "comm", "comm-untimed", "message")
SCALARS = 5  # of the fused message
MOST_BYTES = 1 << 31


@dataclass(frozen=True)
class Plan:
    """A file's values, in bytes and seconds, and where they are measured.

    Attributes:
        hosts, link: hosts of the job; "none" stands for what the machine has.
    """

    operations: tuple[str, ...]
    through: tuple[str, ...]
    smallest: int
    largest: int
    factor: int
    parameters: tuple[int, ...]
    ranks: int
    settings: tuple[str, ...]
    seconds: float
    least: int
    most: int
    warmup: int
    hosts: int = 1
    link: str = "none"

    def __post_init__(self) -> None:
        _known("operations", self.operations, OPERATIONS)
        _known("through", self.through, THROUGH)
        _known("settings", self.settings, tuple(SETTINGS))
        check(4 <= self.smallest <= self.largest <= MOST_BYTES, "sizes must be 4 bytes to 2 GiB")
        check(self.smallest % 4 == 0, "smallest must be a multiple of 4 bytes")
        check(2 <= self.factor <= 1024, "factor must be 2 to 1024")
        longest = MOST_BYTES // 4
        check(all(1 <= n <= longest for n in self.parameters), "parameters must be 1 to 2^29")
        check(1 <= self.ranks <= 4096, "ranks must be 1 to 4096")
        check(0 < self.seconds < 1e4, "seconds must be positive, below 10000")
        check(1 <= self.least <= self.most <= 10_000, "least and most must be 1 to 10000 calls")
        check(0 <= self.warmup <= 1000, "warmup must be 0 to 1000 calls")

    @property
    def made(self) -> bool:
        """Whether the hosts are of the benchmark's own making."""
        return self.link != "none"

    @property
    def sizes(self) -> list[int]:
        """Bytes, ascending: powers from the smallest, and each network's vector."""
        found = {4 * n for n in self.parameters}
        size = self.smallest
        while size <= self.largest:
            found.add(size)
            size *= self.factor
        return sorted(found)

    def ways(self, operation: str) -> list[str]:
        """Ways through of an operation: the fused message is for sums."""
        return [way for way in self.through if way != "message" or operation == "allreduce"]

    def row(self, operation: str, through: str, size: int, mpi: str) -> Row:
        """The settings of a row of results."""
        place = {"ranks": self.ranks, "hosts": self.hosts, "link": self.link, "mpi": mpi}
        own = {"operation": operation, "through": through, "bytes": size}
        return {"benchmark": "micro", **own, **place}


_KINDS = fields(Plan, without=("hosts", "link"))
_NARROW = {
    name: _KINDS[name] for name in ("through", "largest", "seconds", "least", "most", "warmup")
}


def read(path: Path, *, narrow: bool, changes: Row) -> Plan:
    """The plan of a file.

    Args:
        narrow: of messages over a limited link. changes: values that go before the file's.

    Raises:
        InputError: it cannot be read, or a value is not right.
    """
    table = load(path)
    try:
        special = table.pop("narrow", {})
        check(isinstance(special, dict), "narrow must be a table")
        values = typed("the file", table, _KINDS, needed=_KINDS)
        values |= typed("narrow", special, _NARROW) if narrow else {}
    except ValueError as error:
        raise InputError(f"--config {path}: {error}") from None
    try:
        return Plan(**{**values, **changes})
    except ValueError as error:
        raise InputError(f"micro: {error}") from None


def _known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    check(len(given) > 0, f"{what} must name one at least")
    for name in given:
        check(name in known, f"{what}: {name!r} is none of {', '.join(known)}")
