"""What each parameter of a network is to a method that takes steps on whole matrices.

A parameter of two dimensions and more is a matrix, (out, rest): a convolution's kernel has its
output channels as rows. Its kind says which geometry fits it:

| kind | is |
| --- | --- |
| hidden | a matrix between others, which maps features to features |
| embedding | the weight of an ``nn.Embedding`` or ``nn.EmbeddingBag``, rows that are looked up |
| output | the last layer's matrix: the last one, in order of registration, that is no embedding |
| vector | all else: biases, normalisation layers, single numbers, matrices with a side of 1 |

No matrix is the output where the last one that is no embedding has as many rows as an embedding has
columns: it leads back to the width of the embeddings, one of which is then used as the output layer
too (tied). Where the parameters are known without their module, as a user's own loop gives
them, no embedding can be told from a fully connected layer by its type. There the first of three
or more matrices is one if it has the shape of the last, as tokens in and tokens out have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_SEQUENCES = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_NORMS = (nn.LayerNorm, nn.RMSNorm)  # whose parameters may have several dimensions


@dataclass(frozen=True)
class Layer:
    """A parameter in the flat vector.

    Attributes:
        offset: of its first number. rows, columns: of it as a matrix; of a vector its length and 1.
        kind: "hidden", "embedding", "output" or "vector".
        positions: whether it is applied to several positions of a sample, as far as that can be
            seen: convolutions are, and all of a network that has some, or has embeddings, or, where
            the module is known, recurrent layers or attention.
    """

    offset: int
    rows: int
    columns: int
    kind: str
    positions: bool = False

    @property
    def part(self) -> slice:
        """Where it is in the flat vector."""
        return slice(self.offset, self.offset + self.rows * self.columns)

    def of(self, vector: Tensor) -> Tensor:
        """Its numbers in a vector (n,), as a view (rows, columns)."""
        return vector[self.part].view(self.rows, self.columns)


def layers(parameters: Sequence[Tensor], module: nn.Module | None = None) -> list[Layer]:
    """What each parameter is, in the order they have in the flat vector.

    Args:
        parameters: those that are trained. module: they are of, if it is known; the output layer
            is looked for among its frozen parameters too.
    """
    matrices, kinds = _kinds(parameters, module)
    if matrices and not any(matrices[-1].shape[0] == width for width in _widths(module)):
        kinds[id(matrices[-1])] = "output"
    many = "embedding" in kinds.values() or any(each.dim() > 2 for each in matrices)
    many |= module is not None and any(isinstance(each, _SEQUENCES) for each in module.modules())
    found, offset = list[Layer](), 0
    for each in parameters:
        kind = kinds.get(id(each), "vector")
        rows, columns = (each.numel(), 1) if kind == "vector" else _shape(each)
        found.append(Layer(offset, rows, columns, kind, many))
        offset += each.numel()
    return found


def _kinds(
    parameters: Sequence[Tensor], module: nn.Module | None
) -> tuple[list[Tensor], dict[int, str]]:
    """The matrices that are no embeddings, in order, and the kinds of all by the tensors' ids."""
    parts = [] if module is None else list(module.modules())
    norms = {id(p) for each in parts if isinstance(each, _NORMS) for p in each.parameters()}
    looked_up = {id(each.weight) for each in parts if isinstance(each, _EMBEDDINGS)}
    everything = parameters if module is None else list(module.parameters())
    matrices = [each for each in everything if id(each) not in norms and min(_shape(each)) > 1]
    if module is None and len(matrices) > 2 and _shape(matrices[0]) == _shape(matrices[-1]):
        looked_up = {id(matrices[0])}
    kinds = {id(each): "embedding" if id(each) in looked_up else "hidden" for each in matrices}
    return [each for each in matrices if id(each) not in looked_up], kinds


def _widths(module: nn.Module | None) -> set[int]:
    """Of the embeddings."""
    parts = () if module is None else module.modules()
    return {each.embedding_dim for each in parts if isinstance(each, _EMBEDDINGS)}


def _shape(tensor: Tensor) -> tuple[int, int]:
    """As a matrix; of fewer than two dimensions with a side of 1."""
    rows = tensor.shape[0] if tensor.dim() else 1
    return rows, tensor.numel() // max(rows, 1)
