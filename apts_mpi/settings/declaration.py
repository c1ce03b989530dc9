"""How a setting is declared: its value, its line in ``--help``, and which runs it has effect in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from apts_mpi.method.options import BASELINES, DETERMINISTIC, LOCAL_SOLVERS, OPTIMIZERS


def either(words: Sequence[str]) -> str:
    """Words as "a, b or c"."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


@dataclass(frozen=True)
class Where:
    """The runs that a setting has effect in: those of some optimizers, of APTS of some solvers."""

    optimizers: tuple[str, ...] = ("apts",)
    solvers: tuple[str, ...] = LOCAL_SOLVERS

    def holds(self, optimizer: str, solver: str) -> bool:
        """Whether a run of these is one."""
        return optimizer in self.optimizers and (optimizer != "apts" or solver in self.solvers)

    def missed(self, optimizer: str, solver: str) -> str:
        """The flag for which a run of these is none."""
        if optimizer in self.optimizers:
            return f"--local-solver {solver}"
        return f"--optimizer {optimizer}"

    def __str__(self) -> str:
        """The flags that make one."""
        apts, others = "apts" in self.optimizers, [o for o in self.optimizers if o != "apts"]
        if apts and self.solvers == LOCAL_SOLVERS:
            return f"--optimizer {either(self.optimizers)}"
        of_apts = [f"--local-solver {either(self.solvers)}"] if apts else []
        of_others = [f"--optimizer {either(others)}"] if others else []
        return ", or ".join(of_apts + of_others)


EVERYWHERE = Where(OPTIMIZERS)
APTS = Where()
SCALED = Where(solvers=("scaled",))
PUBLISHED = Where(solvers=DETERMINISTIC)
SR1 = Where(solvers=("sr1",))
STEPPING = Where(("apts", "local-sgd", "diloco"))  # those with steps of their own between messages
RATED = Where(BASELINES)
OVERLAPPING = Where(OPTIMIZERS, DETERMINISTIC)


def option(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    kind: type = str,
    free: bool = False,
    where: Where = EVERYWHERE,
    idle: bool = False,
) -> Any:
    """A field with what the command line needs to know of it.

    Args:
        kind: type of its value. free: whether a run that is resumed may be given another value.
        where: the runs that it has effect in; it is refused in others. idle: whether its default
            asks for nothing, so that it may be named anywhere.
    """
    metadata = {
        "help": text,
        "choices": choices,
        "kind": kind,
        "free": free,
        "where": where,
        "idle": idle,
    }
    return field(default=default, metadata=metadata)
