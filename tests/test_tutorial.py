"""The tutorial: its commands run in their order, and give what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.quality.compare.overview import DOCS
from tests.conftest import Launch

TEXT = (DOCS / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = "".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)).splitlines()
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
FIRST = re.compile(r"(?:mpirun -n (\d+) )?python ")


def test_all_of_it_runs(launch: Launch, tmp_path: Path) -> None:
    """But for the scaling report, and what is timed; the last run is shorter."""
    pytest.importorskip("matplotlib")
    spirals, loaded, network = PROGRAMS
    for name, program in (("spirals", spirals), ("loaded", loaded), ("network", network)):
        (tmp_path / f"{name}.py").write_text(program)
    said = {}
    for command in [*COMMANDS, "python loaded.py"]:
        start = FIRST.match(command)
        assert start is not None, command
        words = command[start.end() :].replace("--epochs 20 --out own", "--epochs 2 --out own")
        done = launch(int(start[1] or 0), *shlex.split(words))
        assert done.status == 0, f"{command}\n{done.out}\n{done.err}"
        said[command] = done.out
    assert (tmp_path / "run.png").exists()
    assert (tmp_path / "compared.png").exists()
    assert (tmp_path / "network.safetensors").exists()
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 6
    assert said["python loaded.py"].startswith("['")

    def accuracy(text: str) -> float:
        return float(re.findall(r"^ *validation accuracy +(\S+)  \(best", text, flags=re.M)[0])

    outs = [out for command, out in said.items() if "--hidden 64,64" in command]
    assert accuracy(outs[0]) == pytest.approx(accuracy(TEXT), abs=0.01)
    assert accuracy(outs[0]) > accuracy(outs[1])
    stated = re.findall(r"It ends at (\S+) of", TEXT)
    assert accuracy(outs[1]) == pytest.approx(float(stated[0]), abs=0.02)
