"""Rounding to few bits in NumPy, and what it may lose."""

from __future__ import annotations

import math

import numpy as np

LOST = {"bf16": 2.0**-9, "fp16": 2.0**-11, "int8": 1 / 253, "int4": 1 / 7.8}  # of the largest
FORMS, BLOCKS = tuple(LOST), ("int8", "int4")


def rounded(values: np.ndarray, form: str) -> np.ndarray:
    """Float32 values in few bits and back, by integers, or by NumPy's own float16."""
    if form in BLOCKS:
        blocks = [values[i : i + 64] for i in range(0, len(values), 64)]
        return np.concatenate([values[:0], *(rounded_block(block, form) for block in blocks)])
    if form == "bf16":
        bits = values.view(np.uint32)
        even = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
        return (even & np.uint32(0xFFFF0000)).view(np.float32)
    largest = np.abs(values).max(initial=0.0)
    exponent = min(15 - math.frexp(largest)[1], 126) if largest else 0
    scale = np.float32(2.0**exponent)
    return (values * scale).astype(np.float16).astype(np.float32) / scale


def rounded_block(block: np.ndarray, form: str) -> np.ndarray:
    """Whole multiples of a scale in bfloat16."""
    lowest, highest = (-8, 7) if form == "int4" else (-127, 127)
    extreme = block.max() if block.max() > -block.min() else block.min()
    scale = rounded(np.array([extreme / np.float32(lowest)], dtype=np.float32), "bf16")
    if abs(scale) < 2.0**-126:
        return np.zeros_like(block)
    return np.clip(np.rint(block * (1 / scale)), lowest, highest) * scale
