"""Decoder-only language model: pre-norm blocks, learned positions.

Initialised as GPT-2 (Radford et al. 2019): normal with deviation 0.02, and the two projections that
feed a block's residual branch divided by the root of twice the number of blocks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apts_mpi.networks.task import Task

DEVIATION = 0.02


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, width) to the same."""
        b, t, width = x.shape
        parts = self.attention(self.norm1(x)).view(b, t, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(y.transpose(1, 2).reshape(b, t, width))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class Transformer(nn.Module):
    """Maps (b, t) tokens, t up to the context, to (b, t, outputs) logits of the token after each.

    Args:
        task: of language. depth: blocks. width: of the residual stream. heads: of the attention.
        tied: whether the output layer is the token embedding.

    Raises:
        ValueError: the data are no text, or the heads do not divide the width.
    """

    def __init__(self, task: Task, *, depth: int, width: int, heads: int, tied: bool) -> None:
        super().__init__()
        if task.kind != "language":
            raise ValueError(f"needs text (`shard text`), not samples {task.sample_shape}")
        if width % heads:
            raise ValueError(f"needs a width that its {heads} heads divide, not {width}")
        (context,) = task.sample_shape
        self.tokens = nn.Embedding(task.outputs, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        # Tied by use, not by a shared parameter: what is saved and loaded stays one tensor.
        self.output = None if tied else nn.Linear(width, task.outputs, bias=False)
        for name, parameter in self.named_parameters():
            if "norm" in name:
                continue
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
                continue
            branch = "project" in name or "contract" in name
            nn.init.normal_(parameter, std=DEVIATION / math.sqrt(2 * depth if branch else 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, t) of any integers to (b, t, outputs)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens.long()) + self.positions(places)
        x = self.norm(self.blocks(x))
        weight = self.tokens.weight if self.output is None else self.output.weight
        return F.linear(x, weight)
