"""Messages whose vector crosses the network in 16 bits, with error feedback; no MPI.

What rounding loses is kept and added to what is sent next (error feedback). As in DoubleSqueeze
(Tang et al. 2019, arXiv 1905.05957) that is done twice. Of N that exchange, r has the vector v_r
and the residual e_r, and owns piece r of N equal ones, with a residual d_r of its length; Q rounds
to 16 bits:

    pack:     u_r = v_r + e_r;                      sends Q(u_r);       e_r' = u_r - Q(u_r)
    combine:  t_r = d_r + sum_i Q(u_i) in piece r;  sends Q(t_r);       d_r' = t_r - Q(t_r)
    unpack:   the sum is Q(t_1), ..., Q(t_N), one after the other

So what all get is the exact sum plus sum e + d before, less sum e' + d' after: over any number of
messages the sums differ by the last residuals alone (and by float32's rounding of u and t).

Residuals belong to what was applied. ``keep`` after a joined vector was: e', d' are those of the
next message. Otherwise, or by ``drop``, they stay as they were before it.

Q: to the nearest, ties to even, as bfloat16, or as float16 after a multiplication by a power of two
that brings the largest element to 2^14 to 2^15. That power is one for u_r, and one for t_r, and
goes along. Scalars and flags are summed exactly: they go to all as they are, 12 bits per number.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from apts_mpi.comm.message import DIGIT_BITS, DIGITS, FLAGS, DeviceMessage, FusedMessage

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
COMPRESSIONS = ("none", *FORMATS)
_EXPONENT = 15  # float16 holds 2^15 and rounds nothing up to infinity below
_LARGEST_SCALE = 126  # so that the scale and its inverse are normal in float32
_NEAR_INFINITY = 2.0**127  # from here on, bfloat16 may round to it
_MASK = (1 << DIGIT_BITS) - 1
_WIDTH = (
    DIGITS + 1
)  # numbers per scalar; the last one takes what the sum of a rank's rows has above
_NAN = -(2**15)  # in place of a number: the scalar is none
_TOP = DIGIT_BITS * (DIGITS - 1)  # bits below the highest digit of a message


class Exchange(Protocol):
    """What a message depends on of a ``Collectives``."""

    parts: int
    takes_part: bool
    gpu_aware: bool


class CompressedMessage(FusedMessage):
    """A message that ``Comm.sum_message`` sums in 16 bits among some ranks or hosts.

    It costs a rank that exchanges three float32 vectors of length n more than a FusedMessage, and
    some more of a piece's length: the residuals before and after, and what is sent and received.

    Args:
        n, scalars, device: as FusedMessage's.
        form: "bf16" or "fp16". parts: how many exchange, two at least.
        takes_part: False on a rank that only gets the sum from its host's first.

    Attributes:
        outgoing, incoming: (parts, piece + head) int16, contiguous, of Alltoall; row i is for or
            from the i-th; head is 1 for fp16, whose scale's exponent comes first.
        own: (piece + head + tail,) int16, everyone: (parts, the same) int16, of Allgather; the tail
            is scalars and flags.
        nbytes: payload in 16 bits.
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
        self._format = FORMATS[form]
        self._head = 1 if form == "fp16" else 0
        tail = _WIDTH * scalars + FLAGS
        self.nbytes = 2 * (n + self._head + tail)
        self._takes_part = takes_part
        self._pending = False
        if not takes_part:
            return
        piece = -(-n // parts)
        self._ends = [min(i * piece, n) for i in range(parts + 1)]
        sent, row = self._head + piece, self._head + piece + tail
        with torch.device("cpu"):  # whatever the caller's default is
            # What is sent is no longer needed when everyone's sums come.
            buffer = torch.zeros(parts * row, dtype=torch.int16)
            outgoing = buffer[: parts * sent].view(parts, sent)
            incoming = torch.zeros((parts, sent), dtype=torch.int16)
            everyone, own = buffer.view(parts, row), torch.zeros(row, dtype=torch.int16)
            self.outgoing, self.incoming = outgoing.numpy(), incoming.numpy()
            self.everyone, self.own = everyone.numpy(), own.numpy()
            whole = slice(self._head, self._head + piece)
            self._out = outgoing.view(self._format)[:, whole]
            self._in = incoming.view(self._format)[:, whole]
            self._all = everyone.view(self._format)[:, whole]
            self._mine = own.view(self._format)[whole]
            self._sum = torch.zeros(piece)
            self._residual, self._next = torch.zeros(n), torch.zeros(n)
            self._piece_residual, self._piece_next = torch.zeros(piece), torch.zeros(piece)

    def pack(self) -> None:
        """The vector in ``host``, and the residual with it, rounded into ``outgoing``."""
        vector = self.payload
        vector.add_(self._residual)
        exponent, finite = self._scale(vector)
        vector.mul_(2.0**exponent)
        self.outgoing[:, : self._head] = exponent
        for i, (start, end) in enumerate(zip(self._ends, self._ends[1:], strict=False)):
            rounded = self._out[i, : end - start].copy_(vector[start:end])
            torch.sub(vector[start:end], rounded, out=self._next[start:end])
            self._out[i, end - start :].zero_()  # sums of others were here
        _settle(self._next, exponent, finite)
        self._pending = True

    def combine(self) -> None:
        """The sum of ``incoming``, in rank order, rounded into ``own``; the scalars behind it."""
        total = self._sum.copy_(self._piece_residual)
        for row, exponent in zip(self._in, self._exponents(self.incoming), strict=True):
            total.add_(row, alpha=2.0**-exponent)
        exponent, finite = self._scale(total)
        total.mul_(2.0**exponent)
        self.own[: self._head] = exponent
        self._mine.copy_(total)
        torch.sub(total, self._mine, out=self._piece_next)
        _settle(self._piece_next, exponent, finite)
        self.own[self._head + len(total) :] = self._tail()

    def unpack(self) -> None:
        """The sums in ``everyone``, vector, scalars and flags, into ``host``."""
        pieces = zip(self._ends, self._ends[1:], strict=False)
        exponents = self._exponents(self.everyone)
        for row, exponent, (start, end) in zip(self._all, exponents, pieces, strict=True):
            self.payload[start:end].copy_(row[: end - start]).mul_(2.0**-exponent)
        tails = self.everyone[:, self._head + len(self._sum) :]
        sums, poisoned = tails.sum(axis=0, dtype=np.int64), (tails == _NAN).any(axis=0)
        self.flags[:] = sums[-FLAGS:]
        digits: list[float] = []
        for i in range(0, self.scalars * _WIDTH, _WIDTH):
            digits += _as_digits(sums[i : i + _WIDTH].tolist(), bool(poisoned[i]))
        self.host[self.n : -FLAGS] = digits

    def _scale(self, values: Tensor) -> tuple[int, bool]:
        """The exponent of a vector's scale, and whether all its rounding errors are finite."""
        largest = _magnitude(values)
        finite = largest < _NEAR_INFINITY
        if not self._head:
            return 0, finite
        if not math.isfinite(largest):  # what is not finite stays so at any scale
            largest = _magnitude(torch.where(values.isfinite(), values, 0.0))
        if largest == 0.0:
            return 0, finite
        exponent = _EXPONENT - math.frexp(largest)[1]
        return max(min(exponent, _LARGEST_SCALE), -_LARGEST_SCALE), finite

    def _exponents(self, rows: np.ndarray) -> list[int]:
        return rows[:, 0].tolist() if self._head else [0] * len(rows)

    def _tail(self) -> list[int]:
        """Scalars and flags of ``host`` in 16 bits."""
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
        return {"vector": self._residual.clone(), "piece": self._piece_residual.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave on the same rank; nothing is a start without residuals.

        A piece's residual belongs to as many that exchange; on others it is dropped.

        Raises:
            ValueError: residuals of another length than the vector's.
        """
        self._pending = False
        if not self._takes_part:
            return
        for name, kept in (("vector", self._residual), ("piece", self._piece_residual)):
            if not state or (name == "piece" and state[name].shape != kept.shape):
                kept.zero_()
            elif state[name].shape != kept.shape:
                raise ValueError(f"the residual {name} has shape {tuple(state[name].shape)}")
            else:
                kept.copy_(state[name])


def _magnitude(values: Tensor) -> float:
    """The largest absolute value, NaN if there is one."""
    if not len(values):
        return 0.0
    least, most = values.aminmax()
    return max(-float(least), float(most)) if bool(least == least) else math.nan


def _settle(residual: Tensor, exponent: int, finite: bool) -> None:
    """Make a rounding error of scaled values one of the values, in place."""
    residual.mul_(2.0**-exponent)
    if not finite:  # or it would poison all messages that follow
        residual.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def _as_numbers(digits: list[float]) -> list[int]:
    """The digits of a sum of up to MOST_RANKS encoded scalars as _WIDTH numbers of 13 bits."""
    if not math.isfinite(sum(digits)):
        return [_NAN] * _WIDTH
    fixed = 0
    for digit in reversed(digits):
        fixed = (fixed << DIGIT_BITS) + int(digit)
    low = [fixed >> shift & _MASK for shift in range(0, DIGIT_BITS * DIGITS, DIGIT_BITS)]
    return [*low, fixed >> (DIGIT_BITS * DIGITS)]


def _as_digits(numbers: list[int], poisoned: bool) -> list[float]:
    """Sums of such numbers as DIGITS digits, exact in float32: the highest may have 24 bits."""
    if poisoned:
        return [math.nan] * DIGITS
    fixed = 0
    for number in reversed(numbers):
        fixed = (fixed << DIGIT_BITS) + number
    sign, size = (-1.0 if fixed < 0 else 1.0), abs(fixed)
    low = [sign * (size >> shift & _MASK) for shift in range(0, _TOP, DIGIT_BITS)]
    return [*low, sign * (size >> _TOP)]


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
