"""The closures of a user's own loop, as the method evaluates them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from apts_mpi.method import interface
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.randomness import Repeated
from apts_mpi.networks.seeding import Generators
from apts_mpi.trust_region.objective import Pending

log = logging.getLogger("apts_mpi")

Closure = Callable[[], Tensor]


class ClosureObjective:
    """The loss over a minibatch that closures return, one for each chunk of it.

    A closure may call ``backward`` by itself, as torch's LBFGS wants it: its gradients are there
    then, and are used. Its loss alone, without a gradient, has to be computed with one all the
    same, which is thrown away.

    Args:
        flat: the parameters. closures: of each chunk, returns its mean loss.
        weights: of the chunks, which sum to 1; by default there is one.
        generators: that the closures draw random numbers from.
        failed: is handed an error of a closure, whose loss is NaN then; by default it is raised.

    Attributes:
        first: the loss () that was evaluated first, on the parameters' device; None before.
    """

    def __init__(
        self,
        flat: FlatParameters,
        closures: Sequence[Closure],
        weights: Sequence[float] = (1.0,),
        *,
        generators: Generators | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        self._flat, self._chunks = flat, list(zip(closures, weights, strict=True))
        self._generators, self._failed = generators, failed
        self.first: Tensor | None = None

    def __call__(self, with_gradient: bool) -> float | Pending:
        """The mean loss; its gradient is left in the flat one where it is wanted."""
        try:
            losses = [
                self._loss(closure, weight, with_gradient, adds=k > 0)
                for k, (closure, weight) in enumerate(self._chunks)
            ]
        except Exception as error:
            if self._failed is None:
                raise
            self._failed(error)
            self._flat.gradient.zero_()
            return math.nan
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        if self.first is None:
            self.first = loss
        return Pending(loss) if loss.is_cuda and with_gradient else float(loss)

    def _loss(self, closure: Closure, weight: float, with_gradient: bool, *, adds: bool) -> Tensor:
        flat = self._flat
        flat.detach_gradients()
        try:
            if with_gradient:
                loss = self._with_gradient(closure)
                if not (loss.requires_grad or flat.has_new_gradients):
                    raise RuntimeError(interface.INDEPENDENT)
                if not flat.has_new_gradients:
                    self._go_back(loss)
                if not flat.gather(weight, adds=adds):
                    raise RuntimeError(interface.INDEPENDENT)
            else:
                loss = self._without_gradient(closure)
        finally:
            flat.attach_gradients()
        value = loss.detach().reshape(())
        return value if weight == 1.0 else value.double() * weight

    def _with_gradient(self, closure: Closure) -> Tensor:
        with torch.enable_grad():
            loss: Any = closure()
        if isinstance(loss, Real) and self._flat.has_new_gradients:  # loss.item() after backward()
            return torch.tensor(float(loss), device=self._flat.vector.device)
        return interface.checked_loss(loss)

    @staticmethod
    def _go_back(loss: Tensor) -> None:
        try:
            loss.backward()
        except RuntimeError as error:
            if "backward through the graph a second time" in str(error):
                raise RuntimeError(interface.COMPUTED_BEFORE) from error
            raise

    def _without_gradient(self, closure: Closure) -> Tensor:
        before = None if self._generators is None else self._generators.state()
        try:
            with torch.no_grad():
                return interface.checked_loss(closure())
        except RuntimeError as error:
            # Without a gradient there is nothing to go back through: the closure calls backward.
            if "does not require grad" not in str(error):
                raise
        if self._generators is not None and before is not None:
            self._generators.restore(before)
        return self._with_gradient(closure)


class Closures:
    """A user's closures, evaluated alike wherever the loop calls ``step``.

    All evaluations of one closure see the same random numbers, whatever it draws from torch's
    default generators and from those of numpy and ``random``; and parameters as they are, where the
    loop runs under autocast, which keeps the weights that it has cast.

    Args:
        flat: the parameters. warns: whether to say so where some of them get no gradient.
        failed: as a ``ClosureObjective``'s.
    """

    def __init__(
        self,
        flat: FlatParameters,
        *,
        warns: bool,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        self._flat, self._warns, self._failed = flat, warns, failed
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

    def objective(
        self, *closures: Closure, weights: Sequence[float] = (1.0,), repeats: bool = False
    ) -> tuple[Repeated, ClosureObjective]:
        """The loss over a minibatch, as the method calls it; and the same without the repetition.

        Args:
            closures: the user's, for each chunk. weights: of the chunks, which sum to 1.
            repeats: whether the next batch is this one again.
        """

        def within(closure: Closure) -> Closure:
            def around() -> Tensor:
                torch.clear_autocast_cache()
                with self._around():
                    return closure()

            return around

        bare = ClosureObjective(
            self._flat,
            [within(closure) for closure in closures],
            weights,
            generators=self._generators,
            failed=self._failed,
        )
        return Repeated(bare, self._generators, repeats=repeats), bare
