"""The batch script that docs/clusters.md has for a loop of one's own."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster

ROOT = Path(__file__).parent.parent.parent
WHO = """
with optimizer.averaged():
    norm = sum(float(p.double().square().sum()) for p in model.parameters())
print("of", optimizer.comm.size, norm)
"""


@pytest.mark.slurm
def test_a_loop_of_ones_own_trains_on_all_ranks(cluster: Cluster, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "train.py").write_text(program + WHO)
    page = (ROOT / "docs/clusters.md").read_text()
    (lines,) = re.findall(r"\n\n((?:    .*\n)+)", page[page.index("**A loop of your own**") :])[:1]
    script = textwrap.dedent(lines)
    assert script.startswith("#!/bin/bash\n#SBATCH --nodes=2 --ntasks=16 --ntasks-per-node=8 ")
    (tmp_path / "own.sbatch").write_text(script.replace("train.py", f"{tmp_path}/train.py"))
    out = tmp_path / "out"
    size = ("--nodes=1", "--ntasks=2", "--ntasks-per-node=2")
    job = cluster.submit(*size, f"--output={out}", tmp_path / "own.sbatch")
    states = cluster.wait(job)
    assert states == {"COMPLETED"}, out.read_text()
    ended = re.findall(r"^of 2 (\S+)$", out.read_text(), flags=re.MULTILINE)
    assert len(ended) == 2
    assert len(set(ended)) == 1, "both ranks have the same network"
