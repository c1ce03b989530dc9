"""What a network is for: what it takes, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TASKS = ("classification", "language", "regression")


@dataclass(frozen=True)
class Task:
    """The problem that a data set poses.

    Attributes:
        kind: "classification": (b, *sample_shape) float32 to (b, outputs) logits; "regression": to
            (b, outputs) numbers; "language": (b, context) int64 tokens to (b, context, outputs)
            logits of the token that follows each.
        sample_shape: of a sample.
        outputs: classes, numbers per sample, or tokens of the vocabulary.
    """

    kind: str
    sample_shape: tuple[int, ...]
    outputs: int

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of a sample's outputs."""
        return (*self.sample_shape, self.outputs) if self.kind == "language" else (self.outputs,)


def looks_channels_last(shape: Sequence[int]) -> bool:
    """Whether samples of that shape look like images (h, w, channels), not (channels, h, w)."""
    return len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) > 4
