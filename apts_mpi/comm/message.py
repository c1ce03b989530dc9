"""One message for a float32 vector and a few float64 scalars.

A sum over ranks of float32 numbers would lose the scalars' digits, and a second message would cost
a second latency. So each scalar rides behind the vector as a fixed-point number cut into digits of
12 bits, one float32 each: the sum of up to 4,096 of them is exact in every digit, hence the same on
all ranks and in any order of summation, and decisions taken from it cannot differ between ranks. A
rank with several subdomains adds the digits of each.
Last come FLAGS numbers by which a rank asks all others for something besides the method: to stop,
say. They ride along so that nothing has to be sent to find out that nobody asks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

DIGIT_BITS = 12
DIGITS = 10
FLAGS = 2
FRACTION_BITS = 52  # quantum 2.2e-16, magnitude below 2^68
MOST_RANKS = 1 << (24 - DIGIT_BITS)  # so that a sum of digits stays below 2^24, exact in float32
_LIMIT = 2.0 ** (DIGITS * DIGIT_BITS - FRACTION_BITS)
SHIFTS = range(0, DIGITS * DIGIT_BITS, DIGIT_BITS)
MASK = (1 << DIGIT_BITS) - 1


def encode(value: float) -> list[float]:
    """The DIGITS digits of a value; one that is not finite or too large becomes NaN."""
    if not abs(value) < _LIMIT:
        return [math.nan] * DIGITS
    fixed = int(math.ldexp(abs(value), FRACTION_BITS))
    if value < 0:
        return [-float(fixed >> shift & MASK) for shift in SHIFTS]
    return [float(fixed >> shift & MASK) for shift in SHIFTS]


def decode(digits: Sequence[float]) -> float:
    """The value of (a sum of) encoded ``digits``; NaN if any summand was."""
    if not math.isfinite(sum(digits)):
        return math.nan
    return math.ldexp(float(fixed_point(digits)), -FRACTION_BITS)


def fixed_point(digits: Sequence[float]) -> int:
    """The whole number with these digits, lowest first, each of any size and sign."""
    fixed = 0
    for digit in reversed(digits):
        fixed = (fixed << DIGIT_BITS) + int(digit)
    return fixed


class FusedMessage:
    """A preallocated message of one float32 vector of length n and up to ``scalars`` scalars.

    Attributes:
        vector: (n,) float32 on ``device``; on the CPU a view of the message itself, so that
            nothing is copied.
        host: (n + DIGITS * scalars + FLAGS,) float32, contiguous, what MPI reads and writes.
        payload: (n,) float32, a tensor of its first n numbers.
        flags: (FLAGS,) float32, its end; zero or one on a rank, their sums over ranks after.
    """

    def __init__(self, n: int, scalars: int, device: torch.device | str = "cpu") -> None:
        self.n = n
        self.scalars = scalars
        device = torch.device(device)
        # Page-locked memory makes the copies to and from a GPU fast.
        pinned = device.type == "cuda"
        buffer = torch.zeros(n + DIGITS * scalars + FLAGS, device="cpu", pin_memory=pinned)
        self.host: np.ndarray = buffer.numpy()
        self.flags = self.host[n + DIGITS * scalars :]
        self.payload = buffer[:n]
        self._staging: Tensor | None = None
        if device.type == "cpu":
            self.vector = self.payload
        else:
            self._staging = self.payload
            self.vector = torch.zeros(n, device=device)

    def load(self, *rows: Sequence[float]) -> None:
        """Make ``host`` ready to be sent: stage the vector, encode the scalars.

        Args:
            rows: one or more, each the scalars of one of this rank's subdomains, all of a length of
                at most ``scalars``. Their digits are added, so that a sum over ranks is the same
                bit for bit however subdomains are spread over them, and exact as long as there are
                no more than MOST_RANKS rows on all ranks together.

        Raises:
            ValueError: rows that do not fit.
        """
        count = len(rows[0]) if rows else -1
        if count > self.scalars:
            raise ValueError(f"{count} scalars do not fit a message made for {self.scalars}")
        if any(len(row) != count for row in rows) or count < 0:
            raise ValueError(f"rows of {[len(row) for row in rows]} scalars: all need as many")
        if self._staging is not None:
            self._staging.copy_(self.vector)
        digits = [digit for value in rows[0] for digit in encode(value)]
        for row in rows[1:]:
            more = (digit for value in row for digit in encode(value))
            digits = [a + b for a, b in zip(digits, more, strict=True)]
        tail = self.host[self.n : -FLAGS]
        tail[: len(digits)] = digits
        tail[len(digits) :] = 0.0

    def ready(self) -> np.ndarray | Tensor:
        """What MPI reads and writes: contiguous, and complete after ``load`` and the flags."""
        return self.host

    def arrived(self) -> None:
        """MPI has written the sum."""

    def unload(self, count: int) -> list[float]:
        """After the sum: bring the vector back to its device; return the first scalars."""
        if self._staging is not None:
            # Before the host writes the next message it waits for the GPU to load it.
            self.vector.copy_(self._staging, non_blocking=True)
        # As plain numbers: single elements of an array are slow to work with.
        digits = self.host[self.n : self.n + count * DIGITS].tolist()
        return [decode(digits[i : i + DIGITS]) for i in range(0, len(digits), DIGITS)]

    def keep(self) -> None:
        """The last sum was applied; of messages that round more than float32 (compression.py)."""

    def drop(self) -> None:
        """The last sum was not applied."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the next message depends on besides its vector: nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave; residuals of a run that compressed are left out."""


class DeviceMessage(FusedMessage):
    """A message that lies in a GPU's memory, for an MPI library that takes it from there.

    Attributes:
        whole: (n + DIGITS * scalars + FLAGS,) float32 on ``device``, contiguous.
        vector: (n,) float32, its first n numbers. host: only what comes behind them.
    """

    def __init__(self, n: int, scalars: int, device: torch.device) -> None:
        super().__init__(0, scalars, "cpu")
        self.whole = torch.zeros(n + DIGITS * scalars + FLAGS, device=device)
        self.vector = self.whole[:n]
        self._tail, self._host_tail = self.whole[n:], torch.from_numpy(self.host)

    def ready(self) -> Tensor:
        """The whole, once the GPU has written it."""
        self._tail.copy_(self._host_tail)
        synchronize(self.whole.device)
        return self.whole

    def arrived(self) -> None:
        """Scalars and flags are wanted on the host."""
        self._host_tail.copy_(self._tail)


def synchronize(device: torch.device) -> None:
    """Wait for what the current stream of a GPU was asked: MPI knows nothing of streams."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
