"""Measurements of ``gpu``, one after another, on every rank: ``worker DEVICE REPEATS CASES``.

CASES is JSON, a list of [network, way, subdomains]; rank 0 prints a line a case.
"""

from __future__ import annotations

import gc
import json
import sys

from apts_mpi.__main__ import guarded

MARK = "measured: "  # of the lines that are meant for the benchmark


def main() -> int:
    """Measure what the command line says."""
    import torch

    from apts_mpi.comm.communicator import Comm
    from benchmarks.cost.gpu.measure import measure

    device, repeats, cases = sys.argv[1:]
    comm = Comm()
    for name, way, subdomains in json.loads(cases):
        row = measure(name, way, subdomains, comm, device, int(repeats))
        if comm.rank == 0:
            print(MARK + json.dumps([name, way, subdomains, row]), flush=True)
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
