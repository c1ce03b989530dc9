"""What ranks send each other, by the explicit collectives; nothing is pickled.

The two calls that a trace needs besides (``read_clock``, ``relay``) are no part of training, and
neither counted nor timed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apts_mpi.comm.collectives import Collectives
from apts_mpi.comm.compression import CompressedMessage
from apts_mpi.comm.elastic import Guarded
from apts_mpi.comm.job import MPI
from apts_mpi.comm.message import FLAGS, MOST_RANKS, FusedMessage
from apts_mpi.errors import AgreedError, InputError, Origin, in_one_line, is_exhausted, origin_of

STOP, CHECKPOINT = range(FLAGS)  # what a rank can ask all ranks for

_TEXT_LIMIT = 4096  # bytes of an error line that all ranks get to know
_ROUNDS = 16  # of messages to and fro to compare two clocks; the quickest counts


@dataclass(frozen=True)
class ClockReading:
    """A rank's clock and rank 0's at the same moment, in seconds, and what that may be off."""

    own: float
    root: float
    error: float


class Comm(Collectives):
    """An MPI communicator with the few joint calls the project needs.

    Args:
        communicator, timed, hierarchical, host_number: as ``Collectives``'s.
    """

    def __init__(
        self,
        communicator: MPI.Comm | Guarded | None = None,
        *,
        timed: bool = True,
        hierarchical: bool = False,
        host_number: int | None = None,
    ) -> None:
        super().__init__(
            communicator, timed=timed, hierarchical=hierarchical, host_number=host_number
        )
        self._scalars = FusedMessage(0, 8)
        self._wishes = np.zeros(FLAGS, dtype=np.float32)  # this rank's
        self._heard = np.zeros(FLAGS, dtype=bool)  # any rank's

    def sum_message(
        self, message: FusedMessage, *rows: Sequence[float], exact: bool = False
    ) -> list[float]:
        """Sum a vector and scalars over all ranks: one Allreduce, or what a message has instead.

        Args:
            message: its ``vector`` is summed in place.
            exact: in float32, also where the message is one that compresses.
            rows: one or more, the scalars of each of this rank's subdomains; rows of all ranks are
                of one length, at most ``message.scalars``. A scalar that is not finite makes its
                sum NaN on every rank.

        Returns:
            The scalars' exact sums, the same on every rank and however rows are spread over ranks.

        Raises:
            ValueError: rows that do not fit, or more than MOST_RANKS over all ranks if all have as
                many as this one.
        """
        self.traffic.vector_allreduces += 1
        return self._sum(message, rows, exact=exact)

    def sum_scalars(self, *rows: Sequence[float]) -> list[float]:
        """Sum scalars over all ranks, exactly as ``sum_message`` does, one small Allreduce."""
        self.traffic.scalar_allreduces += 1
        return self._sum(self._scalars, rows, exact=True)

    def _sum(
        self, message: FusedMessage, rows: Sequence[Sequence[float]], *, exact: bool
    ) -> list[float]:
        if len(rows) * self.size > MOST_RANKS:
            raise ValueError(
                f"{len(rows)} rows of scalars on each of {self.size} ranks: no more than "
                f"{MOST_RANKS} together are summed exactly"
            )
        message.load(*rows)
        message.flags[:] = self._wishes
        if exact or not isinstance(message, CompressedMessage):
            self.allreduce(message.ready())
            message.arrived()
        else:
            self.sum_compressed(message)
        np.logical_or(self._heard, message.flags, out=self._heard)
        return message.unload(len(rows[0]))

    def wish(self, what: int) -> None:
        """Ask all ranks for STOP or CHECKPOINT, with the next message that is sent anyway.

        Any thread may call it.
        """
        self._wishes[what] = 1.0

    def wished(self, what: int) -> bool:
        """Whether a message has brought such a wish since the last call; on all ranks the same."""
        heard, self._heard[what] = bool(self._heard[what]), False
        if heard:
            self._wishes[what] = 0.0
        return heard

    def maximum(self, scalars: np.ndarray) -> None:
        """Replace float64 scalars in place by their maximum over all ranks."""
        self.allreduce(scalars, "MAX")
        self.traffic.scalar_allreduces += 1

    def read_clock(self, now: Callable[[], float] | None = None) -> ClockReading:
        """Read this rank's clock against rank 0's, by messages to and fro; called by all ranks.

        Rank 0 is read somewhere between a message's leaving and its answer's coming, so that half
        of the shortest of such times bounds the error.

        Args:
            now: this rank's clock, in seconds; default ``time.perf_counter``.
        """
        now, stamp, readings = now or time.perf_counter, np.zeros(1), list[ClockReading]()
        self._enter("read_clock")
        if self.rank == 0:
            moment = now()  # before any other rank's
            readings.append(ClockReading(moment, moment, 0.0))
            for rank in range(1, self.size):
                for _ in range(_ROUNDS):
                    self._mpi.Recv(stamp, source=rank)
                    stamp[0] = now()
                    self._mpi.Send(stamp, dest=rank)
        for _ in range(_ROUNDS if self.rank > 0 else 0):
            sent = now()
            self._mpi.Send(stamp, dest=0)
            self._mpi.Recv(stamp, source=0)
            half = (now() - sent) / 2
            readings.append(ClockReading(sent + half, float(stamp[0]), half))
        self._leave()
        return min(readings, key=lambda reading: reading.error)

    def relay(
        self, pieces: Iterable[bytes], take: Callable[[bytes], bool] = lambda piece: True
    ) -> None:
        """Hand all ranks' bytes to rank 0, rank after rank; it holds one piece at a time.

        Args:
            pieces: this rank's, none of them empty, made as they are asked for.
            take: what rank 0 does with each; False where it wants no more, of any rank.
        """
        turn = np.ones(1, dtype=np.int64)  # the rank whose next piece is wanted
        own = itertools.chain(pieces, (b"",))  # an empty one is the end
        piece = b""
        if self.rank > 0:
            piece = next(own)  # made ahead
        elif not all(take(each) for each in pieces):
            turn[0] = self.size  # nobody's
        while True:
            self._enter("relay")  # of all ranks for every piece, so that all see it advance
            self._mpi.Bcast(turn)
            giver = int(turn[0])
            if self.rank == giver:
                self._mpi.Send([piece, MPI.BYTE], dest=0)
            elif self.rank == 0 and giver < self.size:
                piece = self._receive(giver)
            self._leave()
            if giver >= self.size:
                return
            if self.rank == giver:
                piece = next(own, b"")
            elif self.rank == 0:
                if not piece:
                    turn[0] += 1
                elif not take(piece):
                    turn[0] = self.size

    def _receive(self, source: int) -> bytes:
        status = MPI.Status()
        self._mpi.Probe(source=source, status=status)
        buffer = bytearray(status.Get_count(MPI.BYTE))
        self._mpi.Recv([buffer, MPI.BYTE], source=source)
        return bytes(buffer)

    def gather_texts(self, text: str, limit: int = 128) -> list[str]:
        """Every rank's text, at most ``limit`` bytes of it, on every rank; not counted."""
        own = np.zeros(limit, dtype=np.uint8)
        data = np.frombuffer(text.encode(errors="backslashreplace")[:limit], dtype=np.uint8)
        own[: len(data)] = data
        everyone = np.zeros((self.size, limit), dtype=np.uint8)
        self._enter("gather_texts")
        self._mpi.Allgather(own, everyone)
        self._leave()
        return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in everyone]

    @contextmanager
    def together(self, status: int = 2) -> Iterator[None]:
        """A step that may fail on some ranks: after it all continue, or all raise an error.

        Within, no rank may wait for another one: a rank that fails leaves at once.

        Args:
            status: the program's exit status after an InputError.

        Raises:
            AgreedError: on every rank, with the line of the lowest rank that failed; of status 1
                where that is no InputError. A fault of the program that rank raises itself.
        """
        error = None
        try:
            yield
        except AgreedError:
            raise  # already raised on every rank
        except Exception as caught:
            error = caught
        self.agree(error, status)

    def agree(self, error: Exception | None, status: int = 2) -> None:
        """The end of such a step, where the error of this rank is at hand.

        Where ranks may die alone, one whose memory has run out raises its own error.
        """
        if self.elastic and error is not None and is_exhausted(error):
            raise error
        line, origin = str(error), int(origin_of(error))
        if error is not None and origin != Origin.INPUT:
            line = f"{in_one_line(error)} (rank {self.rank} on {self.host})"
        failed, origin, line = self._first(error, line, origin)
        if failed == self.size:
            return
        if error is not None and origin == Origin.PROGRAM and failed == self.rank:
            raise error
        failing = status if origin == Origin.INPUT else 1
        raise AgreedError(line, failing, reported=origin == Origin.PROGRAM) from error

    def first_error(self, error: Exception | None) -> str | None:
        """The line of the lowest rank that failed in a step, on every rank; None if none did."""
        failed, _, line = self._first(error, str(error))
        return None if failed == self.size else line

    def _first(self, error: Exception | None, line: str, origin: int = 0) -> tuple[int, int, str]:
        """The lowest rank that failed (the number of ranks: none), its ``origin`` and its line."""
        lowest = np.array([len(Origin) * (self.size if error is None else self.rank) + origin])
        self.allreduce(lowest, "MIN")
        self.traffic.agreements += 1
        failed, origin = divmod(int(lowest[0]), len(Origin))
        if failed < self.size:
            cut = line.encode(errors="backslashreplace")[:_TEXT_LIMIT]
            line = self.broadcast_text(cut.decode(errors="ignore"), root=failed)
        return failed, origin, line

    def require_same(self, what: str, lines: Sequence[str]) -> None:
        """Make sure that all ranks describe something by the same lines.

        Raises:
            AgreedError: on every rank; it names the first rank that differs, and its lines.
        """
        first = self.broadcast_text("\n".join(lines)).split("\n")
        error = None
        if list(lines) != first:
            own = ", ".join(line for line in lines if line not in first) or "nothing"
            theirs = ", ".join(line for line in first if line not in lines) or "nothing"
            error = InputError(
                f"rank {self.rank} on {self.host} has {what} unlike rank 0's: {own} against "
                f"{theirs}; start all ranks alike"
            )
        self.agree(error)

    def check_replicas(self, vector: Tensor) -> None:
        """Make sure, by a checksum of its bits, that a vector is the same on all ranks.

        Raises:
            AgreedError: on every rank, if it is not: ranks that compute with different threads
                or processors, or an MPI library whose Allreduce rounds differently by rank.
        """
        bits = vector.detach().cpu().view(torch.int32).to(torch.int64)
        own = np.array([int(bits.sum()), int((bits[::2]).sum())], dtype=np.int64)
        both = np.concatenate((own, -own))
        self.allreduce(both, "MAX")
        self.traffic.agreements += 1
        if (both[:2] != -both[2:]).any():
            raise AgreedError(
                "the ranks' copies of the parameters differ: give all ranks the same threads and "
                "kind of processor; if they have them, this MPI library's Allreduce gives ranks "
                "different sums: choose another algorithm (Open MPI: --mca "
                "coll_tuned_use_dynamic_rules 1 --mca coll_tuned_allreduce_algorithm 3)",
                status=1,
            )
