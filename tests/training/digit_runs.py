"""Short runs on the digits, begun and resumed: for programs on ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apts_mpi.cli.main import train_settings
from apts_mpi.comm.communicator import Comm
from apts_mpi.training import resuming
from apts_mpi.training.loop import Training

SMALL = ["--hidden", "8", "--threads", "1", "--epochs", "1e6", "--evaluate-every", "2"]


def begin(out: str, *flags: str) -> Training:
    return Training(train_settings([*SMALL, *flags, "--out", out]), Comm())


def go_on(run: str | Path, **given: Any) -> Training:
    comm = Comm()
    config, found = resuming.settings({"resume": str(run), **given}, comm, lambda line: None)
    return Training(config, comm, resumed=found)


def rows(run: str) -> list[dict[str, Any]]:
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if not k.startswith("seconds")} for x in lines]
