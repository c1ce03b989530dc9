"""A real Slurm of one node or two, in a temporary folder, for as long as a context is open."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

_SYSTEM = "/usr/sbin:/sbin"  # where daemons are, which not every user's PATH has
_TOOLS = ("bash", "mount", "unshare", "munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
_POLL = 0.4  # seconds between calls of squeue, as each takes part of a core
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

# A node may have more processors and GPUs than the machine: nothing binds to them. A job that is
# queued again has to wait until the credentials of its first start are out of date. Jobs that have
# ended are known for an hour.
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
TmpFS={folder}/tmp
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=64 Gres=gpu:4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""
# Of a second node: it is missed after so many seconds, and a site may end jobs with their ranks.
SECOND = "zz-second"  # after this machine: the batch script runs on the first
_WITH_SECOND = f"""\
NodeName={SECOND} NodeAddr=127.0.0.1 Port={{ports[2]}} CPUs=64 Gres=gpu:4 State=UNKNOWN
SlurmdTimeout=15
KillOnBadExit=1
"""

# In namespaces of their own, where nothing outlives the first process. That one ends when its
# input does, so at the latest with the process that has started it, however that ends. Shared
# memory of ranks that are killed goes with the file system it is on.
_ALONE = "unshare --pid --mount --fork --kill-child=KILL --mount-proc bash -c".split()
_PRIVATE = "mount -t tmpfs none /dev/shm"
_DAEMONS = f"""
{_PRIVATE}
(cat /etc/hosts; echo 127.0.0.1 "$SECOND") >hosts
mount --bind hosts /etc/hosts
exec 3<&0 </dev/null
munged --foreground --force --socket=$PWD/munge.socket --key-file=$PWD/munge.key \\
    --log-file=$PWD/munge.log --pid-file=$PWD/munge.pid --seed-file=$PWD/munge.seed 3<&- &
for ((i = 0; i < 1000; i++)); do [[ -S munge.socket ]] && break; sleep 0.02; done
slurmctld -D 3<&- &
slurmd -D 3<&- &
[[ -n $SECOND ]] || PYTHONPATH=$CHECKOUT python -m tests.ranks "$PWD/quick" 3<&- &
[[ -z $SECOND ]] || ( # none of those whose end is the end of all
    unshare --uts {" ".join(_ALONE)} \\
    '{_PRIVATE}; mount -t tmpfs none tmp; hostname "$SECOND"; exec slurmd -D' 3<&- &)
cat <&3 &
wait -n
"""
_KEEPER = f'{" ".join(_ALONE)} "$0"; cd / && rm -rf -- "$OLDPWD"'


def missing() -> str | None:
    """Why no Slurm can be started here, one line; None where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Slurm of the tests' own needs Linux and root"
    path = f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM}"
    lacking = [tool for tool in _TOOLS if shutil.which(tool, path=path) is None]
    if lacking:
        return f"a Slurm of the tests' own needs {', '.join(lacking)}: apt install slurm-wlm munge"
    command = [*_ALONE, _PRIVATE]
    if subprocess.run(command, capture_output=True, timeout=120, check=False).returncode:
        return "a Slurm of the tests' own needs namespaces, which are not allowed here"
    return None


class Cluster:
    """Slurm with one node, this machine, or with another one beside it.

    Daemons, jobs and files are gone when the context ends, however it ends, and when this process
    is killed.

    Args:
        root: folder that jobs are submitted from.
        environment: of all jobs, besides this process's without Slurm's own variables.
        second: whether there is a second node, with a host name and processes of its own.
    """

    def __init__(self, root: Path, environment: Mapping[str, str], *, second: bool = False) -> None:
        self._root, self._second = root, second
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self._folder = Path()
        self._environment = {**kept, **environment}
        self._environment["PATH"] = ":".join(
            (str(Path(sys.executable).parent), kept.get("PATH", os.defpath), _SYSTEM)
        )
        self._log: IO[bytes] | None = None
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Cluster:
        for last in (False, True):  # its daemons now and then end at once, without a word
            # Not in pytest's own folder, which munge finds too private for a socket.
            self._folder = Path(tempfile.mkdtemp(prefix="apts_mpi-slurm-"))
            try:
                self._start()
                break
            except BaseException as error:
                self._end()
                if last or not isinstance(error, AssertionError):
                    raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._end()

    def run(
        self,
        *command: str | Path,
        variables: Mapping[str, str] | None = None,
        root: Path | None = None,
    ) -> str:
        """What a command of Slurm's prints, on both its streams.

        Args:
            variables: of its environment, which jobs inherit.
            root: folder to call it in, where that is another.

        Raises:
            AssertionError: it fails; with what it says.
        """
        done = subprocess.run(
            [str(word) for word in command],
            cwd=root or self._root,
            env={**self._environment, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}"
        return done.stdout.strip()

    def submit(self, *words: str | Path, **variables: str) -> str:
        """Call sbatch with these words and environment variables; returns the job's number."""
        return self.run("sbatch", "--parsable", *words, variables=variables)

    def submit_quick(self, *words: str | Path, **variables: str) -> str:
        """The same for a job whose Python starts in an instant: see ``tests.ranks``.

        It is submitted from a folder where there is nothing but that and the batch scripts.
        """
        quick, path = self._folder / "quick", self._environment["PATH"]
        more = {"PATH": f"{quick}:{path}", "PYTHONPATH": self._environment["CHECKOUT"]}
        return self.run("sbatch", "--parsable", *words, variables={**more, **variables}, root=quick)

    def has_pmix(self) -> bool:
        """Whether srun can start MPI's ranks."""
        with suppress(AssertionError):
            self.run("srun", "--mpi=pmix", "true")
            return True
        return False

    def states(self, job: str) -> set[str]:
        """States of a job, of a task of a job array, or of all its tasks."""
        found = self.run("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "-o%T")
        return set(found.split())

    def wait(self, job: str, *, timeout: float = 300) -> set[str]:
        """The states in which a job or the tasks of a job array have ended.

        Raises:
            AssertionError: they have not, within so many seconds.
        """
        deadline = time.monotonic() + timeout
        while not (states := self.states(job)) <= _ENDED:
            assert time.monotonic() < deadline, f"job {job} is {states} after {timeout:g} s"
            time.sleep(_POLL)
        return states

    def until(
        self, job: str, ready: Callable[[], bool], log: Path, *, timeout: float = 300
    ) -> None:
        """Wait for something that a job brings about.

        Raises:
            AssertionError: it has not, within so many seconds or before it ended; with its log.
        """
        asked, deadline = time.monotonic(), time.monotonic() + timeout
        while not ready():
            time.sleep(0.02)
            if time.monotonic() - asked < _POLL:
                continue
            states, asked = self.states(job), time.monotonic()
            if (states <= _ENDED or asked > deadline) and not ready():
                told = log.read_text() if log.exists() else "nothing"
                raise AssertionError(f"job {job} is {states} and not ready; {log} has: {told}")

    def on_second(self) -> list[int]:
        """The processes on the second node: whose host name is that of its slurmd."""
        own, hosts, second = os.readlink("/proc/self/ns/uts"), dict[int, str](), set[str]()
        setting = f"SLURM_CONF={self._environment['SLURM_CONF']}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                hosts[int(path.name)] = host = os.readlink(path / "ns/uts")
                daemon = (path / "comm").read_text() == "slurmd\n"
                if host != own and daemon and setting in (path / "environ").read_bytes():
                    second.add(host)
        return [pid for pid, host in hosts.items() if host in second]

    def lose_second(self) -> None:
        """All processes of the second node are gone at once, its slurmd among them."""
        for pid in self.on_second():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _start(self) -> None:
        folder, environment = self._folder, self._environment
        folder.chmod(0o755)
        for name in ("state", "tmp", "quick"):
            (folder / name).mkdir()
        checkout = Path(__file__).parents[2]
        (folder / "quick" / "jobs").symlink_to(checkout / "jobs")
        (folder / "munge.key").write_bytes(os.urandom(64))
        (folder / "munge.key").chmod(0o600)
        for number in range(4):
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-3]\n")
        host = socket.gethostname().split(".")[0]
        config = folder / "slurm.conf"
        lines = _CONFIG + _WITH_SECOND * self._second
        config.write_text(lines.format(host=host, folder=folder, ports=_free_ports(3)))
        environment["SECOND"] = SECOND * self._second
        environment["SLURM_CONF"] = str(config)
        environment["CHECKOUT"] = str(checkout)
        environment["TMPDIR"] = str(folder / "tmp")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the daemons write
        self._keeper = subprocess.Popen(
            ["bash", "-c", _KEEPER, _DAEMONS],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while not self._is_idle():
            if self._keeper.poll() is not None or time.monotonic() > deadline:
                self._log.seek(0)
                told = self._log.read().decode(errors="replace")
                raise AssertionError(f"Slurm does not start: {told}")
            time.sleep(0.05)

    def _is_idle(self) -> bool:
        with suppress(AssertionError):  # as long as the controller does not answer
            return self.run("sinfo", "--noheader", "-o%T") == "idle"
        return False

    def _end(self) -> None:
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._keeper.wait(timeout=120)
            with suppress(ProcessLookupError):
                os.killpg(self._keeper.pid, signal.SIGKILL)
        if self._log is not None:
            self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _free_ports(number: int) -> list[int]:
    """Below those that the kernel gives to whoever asks for any, so that nobody takes them."""
    found: list[int] = []
    while len(found) < number:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(port)
    return found
