"""Forms in which a vector's numbers cross the network: 16 bits each, or 8 or 4 and scales; no MPI.

All round to the nearest, ties to even, by the same operations in every call: what is equal comes
out equal bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

_EXPONENT = 15  # float16 holds 2^15 and rounds nothing up to infinity below
_LARGEST_SCALE = 126  # so that the scale and its inverse are normal in float32
_NEAR_INFINITY = 2.0**127  # from here on, bfloat16 may round to it
_LEAST_NORMAL = 2.0**-126

_BLOCK = 64  # numbers per scale
_CHUNK = 1 << 17  # numbers that are rounded at a time: they stay in a core's cache


class Quantiser(Protocol):
    """How n numbers, a multiple of ``unit``, become 16-bit words Q(u) and numbers again."""

    unit: int

    def words(self, n: int) -> int:
        """Words of n numbers, scales included."""

    def encode(self, values: Tensor, coded: Tensor) -> None:
        """Round values u, (rows, n) float32, into (rows, words(n)) int16; values become u - Q(u).

        That difference is exact but where Q(u) is subnormal, and 0 where it is not finite. What is
        not finite arrives so.
        """

    def decode(self, coded: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Write the numbers of (words(n),) int16 into ``out``, (n,) float32, or add them to it."""


class Halves:
    """Numbers in 16 bits: bfloat16, or float16 times a power of two.

    That power brings the largest element of all rows to 2^14 to 2^15; its exponent is the first
    word of every row.
    """

    unit = 1

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._head = 1 if dtype == torch.float16 else 0

    def words(self, n: int) -> int:
        """As the Quantiser's."""
        return self._head + n

    def encode(self, values: Tensor, coded: Tensor) -> None:
        """As the Quantiser's."""
        largest = _magnitude(values)
        exponent = self._exponent(largest, values) if self._head else 0
        coded[:, : self._head] = exponent
        rounded = coded[:, self._head :].view(self._dtype)
        if exponent:
            values.mul_(2.0**exponent)
        rounded.copy_(values)
        values.sub_(rounded)
        if exponent:
            values.mul_(2.0**-exponent)
        _settle(values, largest)

    def decode(self, coded: Tensor, out: Tensor, *, add: bool = False) -> None:
        """As the Quantiser's."""
        rounded = coded[self._head :].view(self._dtype)
        scale = 2.0 ** -int(coded[0]) if self._head else 1.0
        if add:
            out.add_(rounded, alpha=scale)
            return
        out.copy_(rounded)
        if scale != 1.0:
            out.mul_(scale)

    @staticmethod
    def _exponent(largest: float, values: Tensor) -> int:
        if not math.isfinite(largest):  # what is not finite stays so at any scale
            largest = _magnitude(torch.where(values.isfinite(), values, 0.0))
        if largest == 0.0:
            return 0
        exponent = _EXPONENT - math.frexp(largest)[1]
        return max(min(exponent, _LARGEST_SCALE), -_LARGEST_SCALE)


class Blocks:
    """Numbers in 8 or 4 bits, each block of 64 with a bfloat16 scale s: Q(u) = s round(u / s).

    Levels are -127 to 127 in 8 bits and -8 to 7 in 4: s has the sign that gives the block's largest
    magnitude m the lowest level, so that all 16 serve, and what would be level 8 is cut to 7.
    Levels and scales have 8 significant bits at most, so that their products are exact.
    Block-wise scales: Dettmers et al. 2022, arXiv 2110.02861.

    |u - Q(u)| <= c m in every block: c = 1/253, half a step, in 8 bits, c = 1/7.8, the cut, in 4.
    With error feedback, u = v + e, no residual of a block exceeds c / (1 - c) times the largest |v|
    that it has had, 1/252 or 1/6.8 of it: a layer's residuals are as small as its numbers.

    One rounding in 4 bits of the corrections of an MLP, a CNN (MNIST) and a Transformer loses 8 to
    10 percent of them in the Euclidean norm, of numbers with Student's t distribution of 2 degrees
    15. For as many bytes, blocks of 32 with a power of two in 8 bits lose 10 to 13 percent, levels
    -7 to 7 lose 9 to 12. Blocks of 128 save 3 percent of the bytes and lose 8 to 12, one scale for
    all 19 to 56. In 8 bits, 0.5 to 0.7.

    A block with a number that is not finite arrives as NaN, one whose scale is below 2^-126 as
    zeros.
    """

    def __init__(self, bits: int) -> None:
        self._share = 8 // bits  # numbers per byte
        self._lowest, self._highest = (-8.0, 7.0) if bits == 4 else (-127.0, 127.0)
        self.unit = _BLOCK * self._share

    def words(self, n: int) -> int:
        """As the Quantiser's; a unit that is not full counts as one."""
        return -(-n // self.unit) * (self._share + _BLOCK // 2)

    def encode(self, values: Tensor, coded: Tensor) -> None:
        """As the Quantiser's."""
        blocks, scales, levels = self._views(values, coded)
        most, least = blocks.amax(dim=-1), blocks.amin(dim=-1)
        extreme = torch.where(most > -least, most, least)  # NaN if there is one
        scales.copy_(extreme / self._lowest)
        scales.masked_fill_(scales.abs() < _LEAST_NORMAL, 0.0)
        for part, scale, packed in _chunks(blocks, scales, levels):
            numbers = part * scale.reciprocal().masked_fill_(scale == 0.0, 0.0)
            numbers.round_().clamp_(max=self._highest)
            part.addcmul_(numbers, scale, value=-1.0)
            if self._share == 1:
                packed.copy_(numbers[:, 0])
            else:
                low, high = numbers.to(torch.int8).unbind(1)
                torch.add(low.bitwise_and_(15), high, alpha=16, out=packed)
        _settle(values, _magnitude(extreme))

    def decode(self, coded: Tensor, out: Tensor, *, add: bool = False) -> None:
        """As the Quantiser's."""
        for part, scale, packed in _chunks(*self._views(out[None], coded[None])):
            if self._share == 1:
                numbers = packed.float()[:, None]
            else:  # as the upper half of a byte: sixteen times the level, with its sign
                numbers = torch.stack((packed << 4, packed & -16), dim=1).float()
                scale /= 16.0
            if add:
                part.addcmul_(numbers, scale)
            else:
                torch.mul(numbers, scale, out=part)

    def _views(self, values: Tensor, coded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Blocks (rows, share, k, 64) of the values, scales (rows, share, k), bytes (rows, k, 64).

        In 4 bits, a byte has the level of a number in the row's first half and, above that, of the
        one in the same place of the second half.
        """
        rows, k = len(values), values.shape[1] // self.unit
        scales, levels = coded.split([self._share * k, k * _BLOCK // 2], dim=1)
        return (
            values.view(rows, self._share, k, _BLOCK),
            scales.view(torch.bfloat16).view(rows, self._share, k),
            levels.view(torch.int8).view(rows, k, _BLOCK),
        )


def _chunks(
    blocks: Tensor, scales: Tensor, levels: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """So many blocks at a time that they stay in a core's cache, scales in float32."""
    step = max(_CHUNK * blocks.shape[2] // max(blocks.numel(), 1), 1)
    yield from zip(
        blocks.split(step, dim=2),
        scales.float()[..., None].split(step, dim=2),
        levels.split(step, dim=1),
        strict=True,
    )


QUANTISERS: dict[str, Quantiser] = {
    "bf16": Halves(torch.bfloat16),
    "fp16": Halves(torch.float16),
    "int8": Blocks(8),
    "int4": Blocks(4),
}


def _magnitude(values: Tensor) -> float:
    """The largest absolute value, NaN if there is one."""
    if not values.numel():
        return 0.0
    least, most = values.aminmax()
    return max(-float(least), float(most)) if bool(least == least) else math.nan


def _settle(lost: Tensor, largest: float) -> None:
    """Make what rounding lost finite, given the largest magnitude that was rounded."""
    if not largest < _NEAR_INFINITY:  # or it would poison all messages that follow
        lost.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
