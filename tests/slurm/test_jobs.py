"""The batch scripts under a real Slurm: they run, resume after the time limit, and end well."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apts_mpi.checkpoints.folder import listed, read
from apts_mpi.settings.toml import read_toml
from tests.slurm.cluster import Cluster

ROOT = Path(__file__).parent.parent.parent
JOBS = ROOT / "jobs"
SCRIPTS = sorted(path.name for path in JOBS.glob("*.sbatch"))
TWO_RANKS = ("--nodes=1", "--ntasks-per-node=2")
SMALL = ("--hidden", "16", "--epochs", "1e6", "--evaluate-every", "1e4", "--threads", "1")
INTERRUPTED = ("--seed", "3", "--iterations", "50")
SETTINGS = f"""
# a mistake, and one that the time limit will interrupt
--sed 5

{" ".join(INTERRUPTED)}
"""
SCALING = """
data = "digits"
networks = ["16"]
ranks = [1, 2]
repetitions = 1
warm_up = 1
samples = 2000
[[methods]]
name = "small"
arguments = []
batches = [50]
local_steps = 8
"""
SPLIT = 'split = "steps"\n'
MICRO = """
operations = ["allreduce"]
through = ["mpi4py"]
smallest = 4
largest = 4
factor = 4
parameters = [100]
ranks = 2
settings = ["yield"]
seconds = 0.05
least = 5
most = 5
warmup = 1
"""


def rows(run: Path) -> list[dict[str, Any]]:
    """Metrics of a run so far."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def told(run: Path) -> str:
    """What the job has written so far."""
    path = run / "job.out"
    return path.read_text() if path.exists() else ""


def ranks(run: Path) -> list[int]:
    """Process numbers of a run's ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"python" in words[0] and str(run).encode() in words:
            found.append(int(path.parent.name))
    return found


@dataclass(frozen=True)
class Sweep:
    """Jobs of one array; the ranks of its last one have been stopped."""

    array: str
    folder: Path
    pids: list[int]

    @property
    def last(self) -> tuple[str, Path]:
        """The last job, and its run."""
        return f"{self.array}_2", self.folder / "2"


@pytest.fixture(scope="module")
def sweep(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """An array whose last job waits for Slurm's signal before its time limit while others run.

    Slurm looks every 30 seconds which jobs to signal, and is up to 30 seconds early: this job gets
    it at the next look, the others do not. Its ranks do little until then, as what they do is
    compared with a run that is not interrupted.
    """
    folder = tmp_path_factory.mktemp("an array")
    settings = folder / "settings.txt"
    settings.write_text(SETTINGS)
    options = (*TWO_RANKS, "--array=0-2", "--time=10", f"--output={folder}/%a.out")
    script = (JOBS / "sweep.sbatch", settings, *SMALL)
    array = cluster.submit(*options, *script, RUN=str(folder), LAUNCH="mpirun")
    made = Sweep(array, folder, [])
    job, run = made.last
    cluster.until(job, lambda: len(rows(run)) >= 3, run / "job.out")
    made.pids.extend(ranks(run))
    for pid in made.pids:
        os.kill(pid, signal.SIGSTOP)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=2")
    return made


@pytest.fixture(scope="module")
def beside(
    cluster: Cluster, sweep: Sweep, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, Path]]:
    """A job of every other script, and what it writes to; the benchmarks one after the other.

    That of train.sbatch does in one piece what the array's last one does.
    """
    folder = tmp_path_factory.mktemp("beside")
    made = {}

    def submit(name: str, run: Path, *words: str | Path, **variables: str) -> None:
        options = (*TWO_RANKS, f"--output={folder}/{name}.out")
        job = cluster.submit_quick(*options, *words, RUN=str(run), **variables)
        made[name] = (job, run)

    submit("train", folder / "train", JOBS / "train.sbatch", *SMALL, *INTERRUPTED)
    short = (*SMALL, "--iterations", "1", "--device", "cpu")
    submit("gpu", folder / "gpu", "--ntasks-per-node=1", JOBS / "gpu.sbatch", *short)
    alone = ("--oversubscribe", "--dependency=singleton", "--job-name=benchmarks")
    for name, plan in {"strong": SCALING + SPLIT, "weak": SCALING, "micro": MICRO}.items():
        config = folder / f"{name}.toml"
        config.write_text(plan)
        flags = ("--config", config, "--ranks", "2" if name == "strong" else "1")
        script = JOBS / f"{name}.sbatch"
        submit(name, folder / "all", *alone, script, *flags, LAUNCH="mpirun")
    return made


@pytest.fixture(scope="module")
def released(cluster: Cluster, sweep: Sweep) -> Sweep:
    """The array once Slurm has signalled its last job, which is queued again."""
    job, run = sweep.last
    cluster.until(job, lambda: all(map(has_signal, sweep.pids)), run / "job.out")
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")  # no signal again
    for pid in sweep.pids:
        os.kill(pid, signal.SIGCONT)
    return sweep


def test_scripts_are_clean() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt install shellcheck")
    command = ["shellcheck", "-x", *map(str, sorted(JOBS.iterdir()))]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slurm
@pytest.mark.parametrize("name", SCRIPTS)
def test_slurm_takes_the_script(
    cluster: Cluster, beside: dict[str, tuple[str, Path]], name: str
) -> None:
    told = cluster.run("sbatch", "--test-only", "--nodes=1", JOBS / name)
    assert "to start at" in told, told


@pytest.mark.slurm
def test_jobs_that_come_to_nothing_fail(
    cluster: Cluster, sweep: Sweep, beside: dict[str, tuple[str, Path]], tmp_path: Path
) -> None:
    launcher = tmp_path / "launcher"  # of ranks that do not listen to signals yet
    launcher.write_text("#!/bin/sh\necho launched\nexec sleep 60\n")
    launcher.chmod(0o755)

    def submit(run: Path, launch: str, *flags: str) -> str:
        options = (*TWO_RANKS, f"--output={tmp_path}/slurm.out", JOBS / "train.sbatch")
        return cluster.submit(*options, *flags, RUN=str(run), LAUNCH=launch)

    taken, run = sweep.last
    folders = [tmp_path / name for name in ("early", "alone", "other")]
    early, alone, other = folders
    jobs = [submit(early, str(launcher))]
    cluster.until(jobs[0], lambda: "launched" in told(early), early / "job.out")
    cluster.run("scancel", "--batch", "--signal=USR1", jobs[0])
    jobs.append(submit(alone, "srun --mpi=none"))
    jobs.append(submit(other, "mpirun", "--resume", str(early)))
    jobs.append(submit(run, "mpirun"))
    for job in jobs:
        assert cluster.wait(job) == {"FAILED"}
    assert "this start has no new checkpoint: not queued again" in told(early)
    assert "srun --mpi=none: the ranks it starts do not find each other" in told(alone)
    assert "--resume: a job resumes the run in its folder" in told(other)
    assert f"job {taken} trains in {run}" in told(run)
    for folder in folders:
        assert {path.name for path in folder.iterdir()} <= {"job.out", ".job"}


@pytest.mark.slurm
@pytest.mark.parametrize("launcher", ["mpirun", "srun --mpi=pmix"])
def test_scancel_leaves_a_checkpoint(
    cluster: Cluster, released: Sweep, cache: Path, tmp_path: Path, launcher: str
) -> None:
    if launcher != "mpirun" and not cluster.has_pmix():
        pytest.skip("Slurm cannot load PMIx: apt install libpmix-dev")
    run, disk = tmp_path / "a run", tmp_path / "a disk"
    disk.mkdir()
    job = cluster.submit_quick(
        *(*TWO_RANKS, f"--output={tmp_path}/slurm.out", JOBS / "train.sbatch"),
        *(*SMALL, "--data", cache / "digits-2"),
        **{"RUN": str(run), "LAUNCH": launcher, "STAGE": "1", "SLURM_TMPDIR": str(disk)},
    )
    cluster.until(job, lambda: len(rows(run)) >= 3, run / "job.out")
    assert [path.name for path in disk.iterdir()] == [f"apts_mpi-{job}"]
    cluster.run("scancel", job)
    assert cluster.wait(job) == {"CANCELLED"}
    assert "stopped by SIGTERM" in told(run)
    assert "queued again" not in told(run)
    newest = listed(run / "checkpoint")[0]
    assert read(newest, 0, 1).iteration == len(rows(run)) >= 3
    assert not ranks(run)
    assert not list(disk.iterdir())


@pytest.mark.slurm
def test_all_other_scripts_end(cluster: Cluster, beside: dict[str, tuple[str, Path]]) -> None:
    for job, run in beside.values():
        assert cluster.wait(job) == {"COMPLETED"}, told(run)
    train, scaling = beside["train"][1], beside["strong"][1]
    found = "srun --mpi=pmix" if cluster.has_pmix() else "mpirun"
    assert f"ranks by {found}\n" in told(train)
    for name in ("strong", "weak", "micro"):
        assert (scaling / f"{name}.jsonl").exists()
        assert (scaling / f"{name}.md").exists()
    assert "<html" in (scaling / "report.html").read_text()


@pytest.mark.slurm
def test_the_time_limit_changes_nothing(
    cluster: Cluster, released: Sweep, beside: dict[str, tuple[str, Path]]
) -> None:
    (job, run), (whole, same) = released.last, beside["train"]
    assert cluster.wait(job) == {"COMPLETED"}, told(run)
    stopped = re.search(r"stopped by SIGUSR1 on rank .* after iteration (\d+),", told(run))
    assert stopped, told(run)
    assert "start 2\n" in told(run)
    assert f"resuming after iteration {stopped[1]} of" in told(run)
    assert cluster.wait(whole) == {"COMPLETED"}, told(same)
    assert len(rows(run)) == 50
    assert without_times(rows(run)) == without_times(rows(same))


@pytest.mark.slurm
def test_a_sweep_trains_once_a_line(cluster: Cluster, released: Sweep) -> None:
    array, folder, (job, run) = released.array, released.folder, released.last
    assert cluster.wait(job) == {"COMPLETED"}, told(run)
    made = read_toml(run / "config.toml")
    assert (made["seed"], tuple(made["hidden"])) == (3, (16,))
    assert (run / "summary.json").exists()
    assert cluster.wait(f"{array}_0") == cluster.wait(f"{array}_1") == {"FAILED"}
    assert "settings.txt has no line 0" in (folder / "0.out").read_text()
    assert "apts_mpi: --sed: no such flag; did you mean --seed?" in told(folder / "1")
    # Slurm calls the whole array by the number of its last job, which alone started again.
    assert f"job {array} on" in told(run)
    assert "start 2\n" not in told(folder / "1")


def has_signal(pid: int) -> bool:
    """Whether SIGUSR1 waits for a stopped process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    waiting = int(dict(line.split(":\t", 1) for line in lines)["ShdPnd"], 16)
    return bool(waiting >> (signal.SIGUSR1 - 1) & 1)


def without_times(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in metrics]


@pytest.mark.parametrize(
    ("lost", "left"),
    [("a", "2 2 2 8"), ("b", "3 3 3 12"), ("none of them", "")],
)
def test_the_nodes_that_are_left_have_the_ranks_they_had(lost: str, left: str) -> None:
    """Of five ranks on two nodes, four cores each: the numbers that launchers look at."""
    program = f"""
source <(sed -n '/^fewer_nodes/,/^}}/p' jobs/common.sh)
scontrol() {{ echo a b; }}
timeout() {{ [[ " $* " != *" --nodelist={lost} "* ]]; }}
status=1 run=. SLURM_JOB_NODELIST=a,b SLURM_JOB_NUM_NODES=2 SLURM_NTASKS=5 OMP_NUM_THREADS=4
fewer_nodes >&2 || exit 0
echo "$SLURM_NTASKS $SLURM_NPROCS $SLURM_TASKS_PER_NODE $SLURM_JOB_CPUS_PER_NODE"
"""
    command = ["bash", "-euc", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, left), done.stderr
