"""Ranks die and the run goes on: the survivors restore the iterate and share out the data anew.

A loss of ranks comes up as ``RanksLost``, out of whatever call waited for them, on every survivor,
and is dealt with here alone. What follows is a resume on fewer ranks, out of memory in place of a
checkpoint: every survivor has kept what all have alike as it was after the last outer iteration,
and one that is furthest hands it to the others, so that all of them have the same bits.
docs/elastic.md has the protocol.
"""

from __future__ import annotations

import json
import socket
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from apts_mpi.checkpoints.folder import FOLDER, Checkpoint
from apts_mpi.checkpoints.state_file import State, from_bytes, to_bytes
from apts_mpi.comm import job
from apts_mpi.comm.communicator import STOP, Comm
from apts_mpi.comm.elastic import Guarded, die
from apts_mpi.comm.elastic_watch import ElasticWatch, Left, Process
from apts_mpi.comm.survivors import furthest, without_dead
from apts_mpi.errors import AgreedError, InputError, RanksLost, is_exhausted
from apts_mpi.files.streams import write_error
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training import resuming, run_state
from apts_mpi.training.console import Console
from apts_mpi.training.loop import Training
from apts_mpi.training.resuming import Resumed
from apts_mpi.training.run_state import Before
from apts_mpi.training.signals import StopSignals

_DELAY = 5.0  # seconds


@dataclass
class Kept:
    """What a survivor takes with it.

    Attributes:
        shared: what all ranks have alike, as a checkpoint has it, with its head. own: this rank's.
        extra: what a checkpoint has not: the last row of the metrics, and where the run was.
    """

    shared: State
    own: State
    extra: dict[str, Any]

    @classmethod
    def of(cls, training: Training) -> Kept:
        """What a run that has broken off leaves in this rank's memory."""
        run, moment = training.built, training.moment
        run.network.vector.copy_(moment.theta)
        shared = run_state.shared(run, training.progress, moment.optimizer, moment.place)
        state = run.optimizer.state_dict()
        own = {
            "optimizer": {name: state[name] for name in run.optimizer.PER_RANK},
            "buffers": {},
            "seconds": dict(run.comm.clock.seconds),
            "seconds_total": training.seconds(),
        }
        extra = {
            "ranks": run.comm.size,
            "run": training.checkpoints.run,
            "path": str(training.directory.path),
            **training.unfinished(),
        }
        return cls(shared, own, extra)

    @property
    def place(self) -> int:
        """Grows with what has been done."""
        return 2 * int(self.shared["progress"]["iterations"]) + (not self.extra["pending"])

    def reconciled(self, comm: Comm) -> Kept:
        """That of the survivor that is furthest, of the lowest rank of them; all call it."""
        root = furthest(comm, self.place)
        extra = json.loads(comm.broadcast_text(json.dumps(self.extra), root))
        data = comm.broadcast_bytes(to_bytes(self.shared) if comm.rank == root else b"", root)
        return replace(self, shared=from_bytes(data), extra=extra)

    def resumed(self, head: str) -> Resumed:
        """As a checkpoint that a run resumes; ``head``: what is said of it."""
        iteration, extra = int(self.shared["progress"]["iterations"]), self.extra
        path = Path(extra["path"]) / FOLDER / "memory"
        found = Checkpoint(path, extra["run"], iteration, extra["ranks"], self.shared, self.own)
        return replace(Resumed.of(found), head=head)


class ElasticRun:
    """A run that goes on without the ranks that die; every rank makes one.

    Args:
        values: settings from flags and a configuration file. error: of this rank about them.
        signals: that ask for a stop. console: makes a rank's lines.

    Attributes:
        comm: the ranks that are left.
    """

    def __init__(
        self,
        values: dict[str, Any],
        error: InputError | None,
        signals: StopSignals,
        console: Callable[[Comm], Console],
    ) -> None:
        self._values, self._given, self._error = values, TrainConfig(**values), error
        self._signals, self._console = signals, console
        self._guarded = Guarded.world()
        if self._given.trace is not None:
            what = f"--trace {self._given.trace}: is of ranks that all reach the end"
            self._error = InputError(f"{what}; leave out --elastic")
        self._training: Training | None = None
        self._kept: Kept | None = None
        self._watch: ElasticWatch | None = None
        self._facts: Sequence[str] | None = None  # of every rank, for a watch
        self._losses: list[dict[str, Any]] = []
        self._head = ""  # of the line about the last one
        self._split, self._smaller_part = "", False  # a name for the last one; see _claim

    @property
    def training(self) -> Training:
        """The run, once it has come to its end."""
        assert self._training is not None
        return self._training

    def run(self) -> dict[str, Any]:
        """Train; the summary.

        Raises:
            AgreedError: on every rank that is left, as training raises it.
        """
        try:
            return self._run()
        except Exception as error:
            if is_exhausted(error) and self._guarded.communicator.Get_size() > 1:
                self._die()
            raise

    def _run(self) -> dict[str, Any]:
        while True:
            outcome: dict[str, Any] | AgreedError | None = None
            try:
                outcome = self._attempt()
            except RanksLost:
                pass
            except AgreedError as error:
                if self._facts is None:  # about flags, by ranks that may not know of --elastic
                    # None agrees; one that has seen a death may wait for this one to end.
                    job.shrunk(self.comm.rank, self.comm.size)
                    raise
                outcome = error
            if self._watch is not None:
                self._watch.recover()
            # Who is done must not leave while another needs it, nor who has failed wait for it.
            done, known = self._guarded.agreed(outcome is not None, self._facts is not None)
            if done:
                break
            self._shrink(known)
        if self._watch is not None:
            self._watch.stop()
        if isinstance(outcome, AgreedError):
            raise outcome
        assert outcome is not None
        return outcome

    def _attempt(self) -> dict[str, Any]:
        """From the start, or from what the survivors have kept, to the end."""
        if self._facts is None:
            self.comm = Comm(self._guarded)
            self.comm.agree(self._error)
            self.comm.require_same("settings", ["elastic = true"])
            self._begin_watch(self.comm)
        else:
            self._begin_watch(Left(self._guarded.Get_rank(), self._guarded.Get_size()))
            self.comm = Comm(self._guarded)
        self.comm.watch = self._watch
        self._signals.ask = lambda: self.comm.wish(STOP)
        stopping = self._kept is not None and self._kept.extra["stopping"]
        if stopping or self._signals.caught is not None:  # ranks that had heard it have died
            self.comm.wish(STOP)
        console = self._console(self.comm)
        self._agree_on_kept()
        fewest = self._given.min_ranks
        if self._kept is None:
            if self.comm.size < fewest:
                begun = f"{self._head}, before training began" if self._losses else "started"
                left = f"{self.comm.size} rank{'s' * (self.comm.size > 1)} {begun}"
                raise AgreedError(f"--min-ranks {fewest}: {left}", status=1 + (not self._losses))
            if self._losses:
                console.say(f"{self._head} start anew")
            config, resumed = resuming.settings(self._values, self.comm, console.say)
            before = Before(losses=self._losses)
        else:
            self._claim(Path(self._kept.extra["path"]))
            resumed = self._kept.resumed(self._head)
            config = resumed.continued(self._values, self.comm.size)
            extra = self._kept.extra
            before = Before(extra["row"], extra["pending"], extra["seconds"], self._losses)
        self._training = Training(
            config, self.comm, resumed=resumed, signals=self._signals, before=before
        )
        if self.comm.size < fewest:
            self._training.stop_below(fewest)
        return self._training.run()

    def _begin_watch(self, ranks: Comm | Left) -> None:
        """Watch the ranks, those that are left before they send each other anything."""
        given = self._given
        limits = (given.stall_warning, given.stall_abort)
        self._watch = ElasticWatch(ranks, *limits, lose=given.rank_timeout, facts=self._facts)
        self._facts = self._watch.facts
        self._watch.directory = None if self._kept is None else Path(self._kept.extra["path"])
        self._watch.start()
        self._watch.enter("start")

    def _agree_on_kept(self) -> None:
        """That of one survivor is everybody's, or nobody's where one has none of an iteration."""
        if not self._losses:
            return
        none = np.array([float(self._kept is None)])
        self.comm.maximum(none)
        self._kept = None if none[0] or self._kept is None else self._kept.reconciled(self.comm)

    def _claim(self, path: Path) -> None:
        """Be the only ones that go on: where the network parts ranks, each side sees the other die.

        The first that makes a file in the run directory does. The smaller part lets the larger one
        do so, unless none of the others can be alive.

        Raises:
            AgreedError: on every rank of this part, if others have been first.
        """
        with self.comm.together(status=1):
            if self.comm.rank == 0:
                if self._smaller_part:
                    time.sleep(_DELAY)
                try:
                    (path / f".parted-{self._split}").touch(exist_ok=False)
                except FileExistsError:
                    raise InputError(f"{self._head} end, as the others go on") from None

    def _shrink(self, known: bool) -> None:
        """Leave out the ranks that have died; ``known``: all that are left have all facts."""
        if not known:  # a rank has died as they were sent: they are sent again
            self._facts = None
        phase = "the start"
        if self._training is not None:
            phase = self._training.phase
            # Before the first iteration is done there is nothing to keep.
            self._kept = Kept.of(self._training) if self._training.progress.iterations else None
            self._training.close()
            self._training = None
        numbers = self._guarded.numbers()
        alike = str((numbers, self._facts and self._facts[0]))  # to them all, and to no other run
        self._split = f"{zlib.crc32(alike.encode()):08x}"
        self._guarded, loss = without_dead(self._guarded)
        if self._watch is not None:
            self._watch.stop()
        gone = list[Process]()
        if self._facts is not None:
            facts = dict(zip(loss.before, self._facts, strict=True))
            self._facts = [facts[number] for number in loss.after]
            gone = [Process.of(facts[number]) for number in loss.ranks]
        hosts = [process.host for process in gone]
        # Processes of this host are seen to be gone; of others the network may only say so.
        near = {Process.of(fact).host for fact in self._facts or ()}
        self._smaller_part = 2 * len(loss.after) <= len(loss.before) and not set(hosts) <= near
        who = {"ranks": loss.ranks, "hosts": hosts}
        self._losses.append({**who, "phase": phase, "left": len(loss.after)})
        self._head = loss.head(phase, gone)

    def _die(self) -> NoReturn:
        """End this rank alone, whose memory has run out: the others go on without it."""
        rank, host = self._guarded.communicator.Get_rank(), socket.gethostname()
        lines = traceback.format_exc().splitlines()
        write_error("".join(f"[rank {rank} on {host}] {line}\n" for line in lines))
        die()
