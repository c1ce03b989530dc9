"""Steps of the optimizers' authors' own packages, on one flat parameter.

The packages are installed with 'apts_mpi[peers]'. Their classes are torch optimizers, the first of
which in a process imports torch's compiler: they start seconds later than the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar

from torch import Tensor, nn

from apts_mpi.errors import InputError

_NEEDED = {  # by optimizer: the module, and what to install
    "schedule-free": ("schedulefree", "schedulefree"),
    "prodigy": ("prodigyopt", "prodigyopt"),
    "muon": ("torch.optim._muon", "torch>=2.9"),
    "muloco": ("torch.optim._muon", "torch>=2.9"),
}


def require_package(optimizer: str) -> None:
    """See that what an optimizer is computed by is installed.

    Raises:
        InputError: it is not; the line says how to install it.
    """
    module, install = _NEEDED.get(optimizer, ("torch", ""))
    if find_spec(module) is None:
        extra = "" if "torch" in install else " (or 'apts_mpi[peers]')"
        raise InputError(
            f"--optimizer {optimizer}: {install} is not installed; install it with "
            f"`pip install '{install}'`{extra}"
        )


class _Packaged:
    """A torch optimizer of one flat parameter."""

    TENSORS: ClassVar[tuple[str, ...]]  # of its state, (n,)
    NUMBERS: ClassVar[tuple[str, ...]]  # of its group

    def __init__(self, parameter: nn.Parameter, optimizer: Any) -> None:
        self._parameter, self._optimizer = parameter, optimizer

    @property
    def _group(self) -> dict[str, Any]:
        group: dict[str, Any] = self._optimizer.param_groups[0]
        return group

    @property
    def lr(self) -> float:
        """Of the next step."""
        return float(self._group["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self._group["lr"] = value

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        """One step; ``theta`` is the vector that it was made for, the gradient is used up."""
        self._parameter.grad = gradient
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """By the package's names; nothing before the first step."""
        state = self._optimizer.state.get(self._parameter)
        if not state:
            return {}
        tensors = {name: state[name].expand(self._parameter.shape) for name in self.TENSORS}
        return {**tensors, **{name: self._group[name] for name in self.NUMBERS}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        if state:
            tensors = {name: state[name] for name in self.TENSORS}
            self._optimizer.state[self._parameter] = {"step": state["k"], **tensors}
            self._group.update((name, state[name]) for name in self.NUMBERS)


class ScheduleFree(_Packaged):
    """Schedule-Free AdamW (Defazio et al. 2024, arXiv 2405.15682) with its package's defaults.

    Args:
        theta: (n,) parameters, at which gradients are evaluated (the paper's y).
    """

    TENSORS = ("z", "exp_avg_sq")
    NUMBERS = ("k", "weight_sum", "lr_max")

    def __init__(self, theta: Tensor, *, lr: float) -> None:
        from schedulefree import AdamWScheduleFree

        parameter = nn.Parameter(theta, requires_grad=False)
        super().__init__(parameter, AdamWScheduleFree([parameter], lr=lr, foreach=False))
        self._optimizer.train()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the parameters are the average of the iterates (x), which is evaluated."""
        kept = self._parameter.clone()
        self._optimizer.eval()
        try:
            yield
        finally:
            self._optimizer.train()
            self._parameter.copy_(kept)  # bit for bit, which the way back is not


class Prodigy(_Packaged):
    """Prodigy (Mishchenko and Defazio 2023, arXiv 2306.06101) with its package's defaults.

    Args:
        theta: (n,) parameters. lr: what the rate that it finds is multiplied by.
        warms_up: whether the rate rises at first, which its estimate is then guarded against.
    """

    TENSORS = ("s", "p0", "exp_avg", "exp_avg_sq")
    NUMBERS = ("k", "d", "d_max", "d_numerator")

    def __init__(self, theta: Tensor, *, lr: float, warms_up: bool) -> None:
        from prodigyopt import Prodigy as Own

        parameter = nn.Parameter(theta, requires_grad=False)
        super().__init__(parameter, Own([parameter], lr=lr, safeguard_warmup=warms_up))
