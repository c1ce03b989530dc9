"""How ranks join their corrections: in few bits, within hosts and between them, on real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.harness.hosts import Hosts, missing
from benchmarks.harness.results import Row
from benchmarks.harness.sections import to_markdown
from benchmarks.messages.joining import WAYS, section


@pytest.mark.usefixtures("all_cores")
def test_between_hosts_that_are_found_by_the_memory_they_share() -> None:
    reason = missing()
    if reason:
        pytest.skip(reason)
    code = (
        "from tests.comm import joining_programs as p\n"
        "comm = p.Comm(hierarchical=True)\n"
        "assert (comm.parts, comm.local_size, comm.size) == (2, 2, 4)\n"
        "p.sums(); p.traffic()"
    )
    with Hosts(2, ranks_per_host=2) as hosts:
        hosts.mpirun(["-c", code], timeout=180)


def rows(ranks: int, link: str, scale: float) -> list[Row]:
    """Made up: the i-th way takes scale / (i + 1) seconds and sends as many MB."""
    settings = {"benchmark": "joining", "hosts": 2, "ranks": ranks, "link": link, "mpi": "eager"}
    shared = {"versions": {"mpi": "X 1"}, "load": 1.0, "date": "d", "commit": "c", "cores": 2}
    return [
        {
            "settings": {**settings, "parameters": 1000, "way": way},
            "seconds": [scale / (i + 1), scale / (i + 1), 9.0],
            "bytes_left": [1e6 * scale / (i + 1)] * 3,
            **shared,
        }
        for i, way in enumerate(WAYS)
    ]


def test_the_table_has_medians_and_ratios_of_one_run() -> None:
    found = section([*rows(4, "100mbit", 1.2), *rows(8, "unlimited", 0.6)])
    text = "\n".join(to_markdown(found))
    assert "## 1000 parameters, 2 hosts x 2 ranks, 100mbit; the line itself takes 0 ms" in text
    assert "## 1000 parameters, 2 hosts x 4 ranks, unlimited\n" in text
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
    lines = [line for line in cells if line[0] == "eager"]
    assert len(lines) == 2 * len(WAYS)
    assert lines[0][1:] == ["flat", "float32", "1200.0 [1200.0, 9000.0]", "1.00", "1.20"]
    assert lines[6][1:] == ["hierarchical", "bf16", "171.4 [171.4, 9000.0]", "7.00", "0.17"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--hosts", "1"), "'1' is not a whole number from 2 up"),
        (("--links", "fast"), "'fast' is not like 100mbit"),
        (("--settings", "fast"), "'fast' is none of"),
        (("--timeout", "0"), "'0' is not a number from"),
    ],
)
def test_bad_usage_of_the_benchmark_is_one_line(
    flags: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["joining", *flags, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1
