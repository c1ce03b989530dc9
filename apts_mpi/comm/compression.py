"""Messages whose vector crosses the network in 16, 8 or 4 bits, with error feedback; no MPI.

What rounding loses is kept and added to what is sent next (error feedback). As in DoubleSqueeze
(Tang et al. 2019, arXiv 1905.05957) that is done twice. Of N that exchange, r has the vector v_r
and the residual e_r, and owns piece r of N equal ones, with a residual d_r of its length; Q rounds
(quantisers.py):

    pack:     u_r = v_r + e_r;                      sends Q(u_r);       e_r' = u_r - Q(u_r)
    combine:  t_r = d_r + sum_i Q(u_i) in piece r;  sends Q(t_r);       d_r' = t_r - Q(t_r)
    unpack:   the sum is Q(t_1), ..., Q(t_N), one after the other

So what all get is the exact sum plus sum e + d before, less sum e' + d' after: over any number of
messages the sums differ by the last residuals alone (and by float32's rounding of u and t).

Residuals stay bounded, as Q is a contraction: it loses of a number at most a part c of the largest
one that it scales with it, so that one residual adds at most c times its size to the next, and none
exceeds c / (1 - c) times the largest vector (cf. Karimireddy et al. 2019, arXiv 1901.09847). c is
less than 1/250 in 16 and 8 bits, 1/7.8 in 4.

Residuals belong to what was applied. ``keep`` after a joined vector was: e', d' are those of the
next message. Otherwise, or by ``drop``, they stay as they were before it.

Scalars and flags are summed exactly: they go to all as they are, 12 bits per number.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from apts_mpi.comm.message import (
    DIGIT_BITS,
    DIGITS,
    FLAGS,
    MASK,
    SHIFTS,
    DeviceMessage,
    FusedMessage,
    fixed_point,
)
from apts_mpi.comm.quantisers import QUANTISERS

COMPRESSIONS = ("none", *QUANTISERS)
_WIDTH = DIGITS + 1  # numbers per scalar; the last takes what the sum of a rank's rows has above
_NAN = -(2**15)  # in place of a number: the scalar is none


class Exchange(Protocol):
    """What a message depends on of a ``Collectives``."""

    parts: int
    takes_part: bool
    gpu_aware: bool


class CompressedMessage(FusedMessage):
    """A message that ``Comm.sum_message`` sums compressed among some ranks or hosts.

    It costs a rank that exchanges two float32 vectors of length n more than a FusedMessage, the
    residuals before and after, twice its bytes, sent and received, and some of a piece's length.

    Args:
        n, scalars, device: as FusedMessage's.
        form: one of QUANTISERS. parts: how many exchange, two at least.
        takes_part: False on a rank that only gets the sum from its host's first.

    Attributes:
        outgoing, incoming: (parts, words) int16, contiguous, of Alltoall; row i is for or from the
            i-th: a piece of the vector as the quantiser encodes it.
        own: (words + tail,) int16, everyone: (parts, the same) int16, of Allgather; the tail is
            scalars and flags.
        nbytes: payload, without what fills the last piece.
    """

    def __init__(
        self,
        n: int,
        scalars: int,
        device: torch.device | str = "cpu",
        *,
        form: str,
        parts: int,
        takes_part: bool = True,
    ) -> None:
        super().__init__(n, scalars, device)
        if parts < 2:
            raise ValueError(f"{parts} cannot exchange")
        self._quantiser = QUANTISERS[form]
        tail = _WIDTH * scalars + FLAGS
        self.nbytes = 2 * (self._quantiser.words(n) + tail)
        self._takes_part = takes_part
        self._pending = False
        if not takes_part:
            return
        unit = self._quantiser.unit
        piece = -(-n // (parts * unit)) * unit
        self._words = self._quantiser.words(piece)
        with torch.device("cpu"):  # whatever the caller's default is
            # What is sent is no longer needed when everyone's sums come.
            buffer = torch.zeros(parts * (self._words + tail), dtype=torch.int16)
            self._out = buffer[: parts * self._words].view(parts, self._words)
            self._in = torch.zeros((parts, self._words), dtype=torch.int16)
            self._all = buffer.view(parts, self._words + tail)
            self._mine = torch.zeros(self._words + tail, dtype=torch.int16)
            # Whole pieces: zeros behind the vector.
            self._residual, self._next = torch.zeros(parts * piece), torch.zeros(parts * piece)
            self._piece_residual, self._piece_next = torch.zeros(piece), torch.zeros(piece)
            self._decoded = torch.zeros(piece)
        self.outgoing, self.incoming = self._out.numpy(), self._in.numpy()
        self.everyone, self.own = self._all.numpy(), self._mine.numpy()

    def pack(self) -> None:
        """The vector in ``host``, and the residual with it, rounded into ``outgoing``."""
        torch.add(self.payload, self._residual[: self.n], out=self._next[: self.n])
        self._quantiser.encode(self._next.view(len(self._out), -1), self._out)
        self._pending = True

    def combine(self) -> None:
        """The sum of ``incoming``, in rank order, rounded into ``own``; the scalars behind it."""
        total = self._piece_next.copy_(self._piece_residual)
        for row in self._in:
            self._quantiser.decode(row, total, add=True)
        self._quantiser.encode(total[None], self._mine[None, : self._words])
        self.own[self._words :] = self._tail()

    def unpack(self) -> None:
        """The sums in ``everyone``, vector, scalars and flags, into ``host``."""
        for row, part in zip(self._all, self.payload.split(len(self._decoded) or 1), strict=False):
            whole = len(part) == len(self._decoded)
            into = part if whole else self._decoded
            self._quantiser.decode(row[: self._words], into)
            if not whole:
                part.copy_(into[: len(part)])
        tails = self.everyone[:, self._words :]
        sums, poisoned = tails.sum(axis=0, dtype=np.int64), (tails == _NAN).any(axis=0)
        self.flags[:] = sums[-FLAGS:]
        digits: list[float] = []
        for i in range(0, self.scalars * _WIDTH, _WIDTH):
            digits += _as_digits(sums[i : i + _WIDTH].tolist(), bool(poisoned[i]))
        self.host[self.n : -FLAGS] = digits

    def _tail(self) -> list[int]:
        """Scalars and flags of ``host`` as whole numbers."""
        digits = self.host[self.n : -FLAGS].tolist()
        tail: list[int] = []
        for i in range(0, len(digits), DIGITS):
            tail += _as_numbers(digits[i : i + DIGITS])
        return tail + [int(flag) for flag in self.flags]

    def keep(self) -> None:
        """The last sum was applied: what its rounding lost goes into the next message."""
        if self._pending:
            self._residual, self._next = self._next, self._residual
            self._piece_residual, self._piece_next = self._piece_next, self._piece_residual
        self._pending = False

    def drop(self) -> None:
        """The last sum was not applied: the residuals stay those of before it."""
        self._pending = False

    def state_dict(self) -> dict[str, Tensor]:
        """The residuals that the next message starts from, of this rank alone."""
        if not self._takes_part:
            return {}
        return {"vector": self._residual[: self.n].clone(), "piece": self._piece_residual.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave on the same rank; nothing is a start without residuals.

        A piece's residual belongs to as many that exchange; on others it is dropped.

        Raises:
            ValueError: residuals of another length than the vector's.
        """
        self._pending = False
        if not self._takes_part:
            return
        for name, kept in (
            ("vector", self._residual[: self.n]),
            ("piece", self._piece_residual),
        ):
            if not state or (name == "piece" and state[name].shape != kept.shape):
                kept.zero_()
            elif state[name].shape != kept.shape:
                raise ValueError(f"the residual {name} has shape {tuple(state[name].shape)}")
            else:
                kept.copy_(state[name])


def _as_numbers(digits: list[float]) -> list[int]:
    """The digits of a sum of up to MOST_RANKS encoded scalars as _WIDTH numbers of 13 bits."""
    if not math.isfinite(sum(digits)):
        return [_NAN] * _WIDTH
    fixed = fixed_point(digits)
    return [*(fixed >> shift & MASK for shift in SHIFTS), fixed >> (DIGIT_BITS * DIGITS)]


def _as_digits(numbers: list[int], poisoned: bool) -> list[float]:
    """Sums of such numbers as DIGITS digits, exact in float32: the highest may have 24 bits."""
    if poisoned:
        return [math.nan] * DIGITS
    fixed = fixed_point(numbers)
    sign, size = (-1.0 if fixed < 0 else 1.0), abs(fixed)
    return [*(sign * (size >> shift & MASK) for shift in SHIFTS[:-1]), sign * (size >> SHIFTS[-1])]


def message_for(
    compress: str, n: int, scalars: int, device: torch.device, comm: Exchange
) -> FusedMessage:
    """The message of a vector that these ranks join, ``compress`` one of COMPRESSIONS.

    It lies in the device's memory if MPI takes it from there, but for one that compresses, which
    the processor does. Where nobody exchanges, one rank or one host of hierarchical joining,
    nothing is rounded.

    Raises:
        ValueError: ``compress`` is none of them.
    """
    if compress not in COMPRESSIONS:
        raise ValueError(f"compress {compress!r} is none of {', '.join(COMPRESSIONS)}")
    if compress == "none" or comm.parts < 2:
        if comm.gpu_aware:
            return DeviceMessage(n, scalars, device)
        return FusedMessage(n, scalars, device)
    return CompressedMessage(
        n, scalars, device, form=compress, parts=comm.parts, takes_part=comm.takes_part
    )
