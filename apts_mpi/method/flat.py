"""A network whose parameters and gradients are views of two contiguous vectors.

The method is vector algebra: with everything in one vector, an iteration copies nothing and an
Allreduce takes the gradient as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from apts_mpi.method.layers import Layer, layers
from apts_mpi.trust_region.metric import Span


class FlatParameters:
    """Parameters of any module as one vector.

    Args:
        parameters: float32, on one device, as ``module.parameters()`` gives them. Their storage is
            replaced by views; values are kept. Move the module to its device before.
        spans: with settings of their own, where not all parameters have the same ones.

    Attributes:
        vector: (n,) float32, the parameters. gradient: (n,) float32, their gradient.
        n: number of parameters. frozen: those that require no gradient, by what they are.
        idle: numbers of those that got no gradient from the last loss.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], spans: Sequence[Span] = ()) -> None:
        given, self.spans = list(parameters), list(spans)
        self._parameters = [p for p in given if p.requires_grad]
        self.frozen = {
            f"frozen parameter {k} of shape {tuple(p.shape)}": p.detach()
            for k, p in enumerate(given)
            if not p.requires_grad
        }
        if not self._parameters:
            raise ValueError("there are no parameters that require a gradient")
        devices = {p.device for p in self._parameters}
        dtypes = {p.dtype for p in self._parameters}
        if len(devices) > 1 or dtypes != {torch.float32}:
            raise ValueError(
                f"parameters must be float32 on one device, not {sorted(map(str, dtypes))} "
                f"on {sorted(map(str, devices))}"
            )
        self.n = sum(p.numel() for p in self._parameters)
        self.vector = torch.empty(self.n, device=devices.pop())
        self.gradient = torch.zeros_like(self.vector)
        self._gradients: list[Tensor] = []
        self.idle: list[int] = []
        offset = 0
        for p in self._parameters:
            part = slice(offset, offset + p.numel())
            view = self.vector[part].view(p.shape)
            view.copy_(p.data)
            p.data = view
            self._gradients.append(self.gradient[part].view(p.shape))
            offset += p.numel()
        self.attach_gradients()

    def attach_gradients(self) -> None:
        """Point every ``p.grad`` at its view again; a module's ``zero_grad`` detaches it."""
        for p, view in zip(self._parameters, self._gradients, strict=True):
            if p.grad is not view:
                p.grad = view

    def backward(self, loss: Tensor) -> bool:
        """The gradient of a scalar loss, left in ``gradient`` in place of what was there.

        False where the loss depends on none of the parameters.

        Torch adds to a gradient that is there, one operation per parameter: on a GPU, where each
        costs the time of its launch, a twentieth of a ResNet's evaluation. So it makes new ones,
        which are brought into the vector in one operation.
        """
        self.detach_gradients()
        try:
            loss.backward()
            return self.gather()
        finally:
            self.attach_gradients()

    def detach_gradients(self) -> None:
        """So that torch makes new gradients; ``gradient`` stays as it is."""
        for p in self._parameters:
            p.grad = None

    @property
    def has_new_gradients(self) -> bool:
        """Whether torch has made any since they were detached."""
        return any(p.grad is not None for p in self._parameters)

    def gather(self, weight: float = 1.0, *, adds: bool = False) -> bool:
        """Bring the gradients that torch has made into ``gradient``, times a weight.

        Args:
            adds: to what is there, rather than in its place.

        Returns:
            False where there are none.
        """
        self.idle = [k for k, p in enumerate(self._parameters) if p.grad is None]
        made = [
            (view, p.grad.to_dense() if p.grad.is_sparse else p.grad)
            for p, view in zip(self._parameters, self._gradients, strict=True)
            if p.grad is not None
        ]
        views, new = [view for view, _ in made], [grad for _, grad in made]
        if adds:
            if made:
                torch._foreach_add_(views, new, alpha=weight)
            return bool(made)
        if len(made) < len(self._parameters):  # the loss does not depend on some
            self.gradient.zero_()
        if made:
            torch._foreach_copy_(views, new)
            if weight != 1.0:
                self.gradient.mul_(weight)
        return bool(made)

    def weight_scale(self) -> float:
        """Root mean square of the weights, tensors of two dimensions and more; 0 without any."""
        weights = [p.detach() for p in self._parameters if p.dim() > 1]
        count = sum(w.numel() for w in weights)
        squares = (float(torch.linalg.vector_norm(w, dtype=torch.float64)) ** 2 for w in weights)
        return math.sqrt(sum(squares) / count) if count else 0.0

    def describe(self) -> list[str]:
        """A line for each parameter's position and shape."""
        shapes = [tuple(p.shape) for p in self._parameters]
        return [f"parameter {i} of shape {shape}" for i, shape in enumerate(shapes)]

    def layers(self) -> list[Layer]:
        """What each parameter is, in the order of the vector."""
        return layers(self._parameters)

    def check_views(self) -> None:
        """Make sure that the parameters still are views of ``vector``.

        Raises:
            RuntimeError: the module was moved or its parameters were replaced.
        """
        offset = 0
        for p in self._parameters:
            if (
                p.numel()
                and p.data_ptr() != self.vector.data_ptr() + offset * self.vector.element_size()
            ):
                raise RuntimeError(
                    "the module's parameters were replaced (by .to(), a new assignment or another "
                    "optimizer); move the module first, then build one optimizer"
                )
            offset += p.numel()
