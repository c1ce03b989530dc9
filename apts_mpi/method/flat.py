"""A network whose parameters and gradients are views of two contiguous vectors.

The method is vector algebra: with everything in one vector, an iteration copies nothing and an
Allreduce takes the gradient as it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from apts_mpi.method import interface
from apts_mpi.method.layers import Layer, layers
from apts_mpi.method.randomness import Repeated
from apts_mpi.networks.seeding import Generators
from apts_mpi.trust_region.metric import Span
from apts_mpi.trust_region.objective import Batch, Objective, Pending

log = logging.getLogger("apts_mpi")


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
        for p in self._parameters:
            p.grad = None
        try:
            loss.backward()
            self.idle = [k for k, p in enumerate(self._parameters) if p.grad is None]
            made = [
                (view, p.grad.to_dense() if p.grad.is_sparse else p.grad)
                for p, view in zip(self._parameters, self._gradients, strict=True)
                if p.grad is not None
            ]
        finally:
            self.attach_gradients()
        if len(made) < len(self._parameters):  # the loss does not depend on some
            self.gradient.zero_()
        if made:
            torch._foreach_copy_([view for view, _ in made], [grad for _, grad in made])
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


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class Closures:
    """The closures of a user's own loop, as the method evaluates them.

    All evaluations of one closure see the same random numbers, whatever it draws from torch's
    default generators and from those of numpy and ``random``; and parameters as they are, where the
    loop runs under autocast, which keeps the weights that it has cast.

    Args:
        flat: the parameters. warns: whether to say so where some of them get no gradient.
    """

    def __init__(self, flat: FlatParameters, *, warns: bool) -> None:
        self._flat, self._warns = flat, warns
        self._device = flat.vector.device.type
        self._generators = Generators(flat.vector.device)
        self._around: Callable[[], AbstractContextManager[object]] = nullcontext

    @contextmanager
    def called(self) -> Iterator[None]:
        """Within, closures run under the autocast of the caller, and all else under none."""
        self._around = nullcontext
        if torch.is_autocast_enabled(self._device):
            dtype = torch.get_autocast_dtype(self._device)
            self._around = lambda: torch.autocast(self._device, dtype=dtype)
        try:
            with torch.autocast(self._device, enabled=False):
                yield
        finally:
            torch.clear_autocast_cache()
        if self._warns and self._flat.idle:
            self._warns, idle = False, self._flat.idle
            log.warning(
                "%s got no gradient%s: the loss does not depend on it, or the module has had "
                "another one in its place since the optimizer was made",
                self._flat.describe()[idle[0]],
                f", nor did {len(idle) - 1} more" if len(idle) > 1 else "",
            )

    def objective(self, closure: Callable[[], Tensor], *, repeats: bool = False) -> Repeated:
        """A closure that returns a scalar loss, as the method calls it.

        Args:
            closure: the user's. repeats: whether the next batch is this one again.
        """

        def around() -> Tensor:
            torch.clear_autocast_cache()
            with self._around():
                return closure()

        return Repeated(closure_objective(self._flat, around), self._generators, repeats=repeats)

    def minibatch(self, give: Callable[[], tuple[Callable[[], Tensor], int]]) -> Batch:
        """The next minibatch of a user's function that gives a closure and its samples."""
        closure, samples = interface.minibatch(give)
        return self.objective(closure), samples


def closure_objective(flat: FlatParameters, closure: Callable[[], Tensor]) -> Objective:
    """A closure that returns a scalar loss, as a function of whether the gradient is wanted."""

    def objective(with_gradient: bool) -> float | Pending:
        if not with_gradient:
            with torch.no_grad():
                return float(interface.loss_of(closure))
        with torch.enable_grad():
            loss = interface.loss_of(closure)
        try:
            # In place of what the closure may have left there by habit.
            depends = loss.requires_grad and flat.backward(loss)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise RuntimeError(
                "the closure must return the loss and leave backward() to the optimizer"
            ) from error
        if not depends:
            raise RuntimeError(
                "the closure's loss does not depend on the parameters: compute it by the module "
                "whose parameters were given, without detach(), no_grad() or inference_mode(), "
                "and replace none of them afterwards"
            )
        value = loss.detach()
        return Pending(value) if value.is_cuda else float(value)

    return objective
