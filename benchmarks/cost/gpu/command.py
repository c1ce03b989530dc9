"""What an outer iteration costs on a GPU, beside a bare loop of the same evaluations.

Time, kernels launched, waits of the host and memory, of networks and precisions; then several ranks
on one GPU against one rank with as many subdomains. Random data that lie on the GPU. Writes gpu.md
and gpu.jsonl; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import apts_mpi
from apts_mpi.errors import InputError
from benchmarks.cost.gpu.cases import CASES, DEFAULT, WAYS
from benchmarks.cost.gpu.report import report
from benchmarks.cost.gpu.worker import MARK
from benchmarks.harness.jobs import RunFailed, mpirun
from benchmarks.harness.options import names, whole_numbers
from benchmarks.harness.progress import Progress
from benchmarks.harness.results import Results, Row, origin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--networks", type=names, default=DEFAULT, help=f"(default {','.join(DEFAULT)})"
    )
    parser.add_argument("--ways", type=names, default=WAYS, help=f"(default {','.join(WAYS)})")
    parser.add_argument(
        "--ranks", type=whole_numbers, default=(2, 4, 8), help="on one GPU (default 2,4,8)"
    )
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="(default cuda; cpu for a trial)"
    )
    parser.add_argument("--repetitions", type=int, default=30, metavar="N", help="(default 30)")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="seconds a case (default 600)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is done")


def run(parsed: argparse.Namespace) -> int:
    """Measure what is missing, write all that is there."""
    for given, known in ((parsed.networks, CASES), (parsed.ways, WAYS)):
        for name in given:
            if name not in known:
                raise InputError(f"{name}: is none of {', '.join(known)}")
    if not 2 <= parsed.repetitions <= 10**4 or not parsed.timeout > 0 or min(parsed.ranks) < 1:
        raise InputError("--repetitions must be 2 to 10000, --ranks and --timeout positive")
    out = Path(parsed.out)
    results = Results(out / "gpu.jsonl", fresh=parsed.fresh)
    wanted = [(name, way, 1, 1) for way in parsed.ways for name in parsed.networks]
    for n in parsed.ranks:
        for pair in ((n, 1), (1, n)):
            wanted += [(name, parsed.ways[0], *pair) for name in parsed.networks]
    missing = [
        each
        for each in dict.fromkeys(wanted)
        if results.get(_settings(*each, parsed.device)) is None
    ]
    progress, failures = Progress(len(missing)), 0
    # A job for each number of ranks: a GPU takes long to start.
    for ranks in sorted({each[2] for each in missing}):
        cases = [[*each[:2], each[3]] for each in missing if each[2] == ranks]

        def heard(line: str, ranks: int = ranks) -> bool:
            if not line.startswith(MARK):
                return False
            name, way, subdomains, row = json.loads(line.removeprefix(MARK))
            settings = _settings(name, way, ranks, subdomains, parsed.device)
            results.add(settings, {**row, **origin()})
            seconds, added = row["seconds"]["own"], row["added"]["own"][1]
            told = f"{name}, {way}, {ranks} ranks x {subdomains} subdomains"
            progress.say(f"{told}: {1e3 * seconds:.1f} ms, {added:+.1f} %")
            return True

        words = ["-m", "benchmarks.cost.gpu.worker", parsed.device, str(parsed.repetitions)]
        try:
            mpirun(ranks, [*words, json.dumps(cases)], timeout=parsed.timeout, heard=heard)
        except RunFailed as error:
            failures += 1
            print(f"{ranks} ranks: failed: {error}", flush=True)
    report(out, results.rows())
    return 1 if failures else 0


def _settings(name: str, way: str, ranks: int, subdomains: int, device: str) -> Row:
    return {
        "apts_mpi": apts_mpi.__version__,
        "network": name,
        "way": way,
        "ranks": ranks,
        "subdomains": subdomains,
        "device": device,
    }
