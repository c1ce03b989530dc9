"""The settings of a run as one frozen dataclass, checked from what each is declared as."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from apts_mpi.errors import either
from apts_mpi.method.options import DETERMINISTIC, MOMENTUM, SGD_MOMENTUM
from apts_mpi.networks.sizes import SIZES
from apts_mpi.settings.declaration import SCALED, Setting
from apts_mpi.settings.general import ZOO_NETWORK, Data, Files, Length, Network, Ranks
from apts_mpi.settings.method import Method, Published
from apts_mpi.settings.texts import AUTO, arguments, changes, class_weights, interval

# In the order of --help and of the TOML: headings, and what stands under them.
GROUPS: dict[str, type] = {
    "data": Data,
    "network and loss": Network,
    "method": Method,
    "method as published, with --local-solver sr1 or first-order": Published,
    "length of a run": Length,
    "ranks and messages": Ranks,
    "files": Files,
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Files, Ranks, Length, Published, Method, Network, Data):
    """Everything that determines a run, besides the number of ranks.

    Raises:
        InputError: a value is out of its range, or has no effect beside the others; the line names
            its flag, the value and what to do.
    """

    def __post_init__(self) -> None:
        for name, each in SETTINGS.items():
            each.check(getattr(self, name))
        if not self.shrink_below < self.grow_above:
            self._refuse("grow_above", f"must be above --shrink-below {self.shrink_below}")
        if self.resume == "auto" and self.out is None:
            self._refuse("resume", "needs --out, the run directory to start in or to resume from")
        if self.resume is None:  # else they say little without those of the run that is resumed
            self.check_effect()

    def check_effect(self) -> None:
        """See that every setting has effect beside the others; those at their defaults need not.

        Raises:
            InputError: one has none; the line names it, and where it has.
        """
        if self.norm == "inf" and self.local_solver != "first-order":
            self._refuse("norm", "needs --local-solver first-order, which alone has that norm")
        for name, each in SETTINGS.items():
            if getattr(self, name) != each.default:
                self._require_effect(name)
        if self.network_args is not None and self.network in SIZES:
            sizes = ", ".join(f"--{each}" for each in self.sizes)
            self._refuse("network_args", f"is not for {self.network}, whose sizes are {sizes}")
        if self.pretrained and not ZOO_NETWORK.fullmatch(self.network):
            what = f"needs --network timm:NAME or torchvision:NAME, not {self.network}"
            self._refuse("pretrained", what)
        if self.local_steps == AUTO and self._missed(SCALED.missed):
            self._refuse("local_steps", f"auto is for {SCALED}")
        auto, both = self.local_steps == AUTO, None not in (self.batch, self.local_steps)
        if self.outer_samples is not None and (auto or both):
            given = "auto" if auto else "and --batch"
            self._refuse("outer_samples", f"has no effect with --local-steps {given}; leave it out")
        joins_gradients = self.consistency or self.global_step
        if self.deterministic and not joins_gradients and self.momentum not in (None, 0, MOMENTUM):
            self._refuse(
                "momentum",
                "has no effect with --consistency off and --global-step off: it needs the joined "
                "gradient that either has; leave it out",
            )
        if self.stream and self.batch is None and self.deterministic:
            self._refuse("stream", "needs --batch: a whole shard at once is what does not fit")
        if self.overlap and self.batch is None and self.deterministic:
            self._refuse("overlap", "needs --batch: a whole shard overlaps with nothing")

    def check_given(self, names: Iterable[str]) -> None:
        """See that settings that somebody names have effect, at their defaults too.

        Raises:
            InputError: one has none; the line names it, and where it has.
        """
        for name in names:
            if not (SETTINGS[name].idle and getattr(self, name) == SETTINGS[name].default):
                self._require_effect(name)

    def check_task(self, task: str) -> None:
        """See that every setting has effect on data for a task.

        Raises:
            InputError: one has none; the line names it, and what it is for.
        """
        for name, each in SETTINGS.items():
            tasks = each.where.tasks
            if tasks and task not in tasks and getattr(self, name) != each.default:
                self._refuse(name, f"is for {either(tasks)}, the data are for {task}; leave it out")

    def has_effect(self, name: str) -> bool:
        """Whether a setting has effect beside the optimizer, its local solver and the network."""
        return not self._missed(SETTINGS[name].where.missed)

    @property
    def sizes(self) -> dict[str, Any]:
        """The settings that the network takes besides the task, with every default."""
        known = SIZES.get(self.network, {}).items()
        return {k: v if getattr(self, k) is None else getattr(self, k) for k, v in known}

    @property
    def arguments(self) -> dict[str, Any]:
        """All that the network takes besides the task, by name."""
        return self.sizes | arguments(self.network_args or "")

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The changes made to images, in order, each once."""
        return changes(self.augment or "")

    @property
    def loggers(self) -> tuple[str, ...]:
        """The tools that get the metrics, each once."""
        return tuple(dict.fromkeys(self.log.split(","))) if self.log is not None else ()

    @property
    def deterministic(self) -> bool:
        """Whether all of an outer iteration is on one batch: the family as published."""
        return self.optimizer == "apts" and self.local_solver in DETERMINISTIC

    def weights_given(self) -> tuple[float, ...] | None:
        """The classes' weights; None where none are given or they are 'balanced'."""
        return class_weights(self.class_weights or "") or None

    def checkpoint_interval(self) -> tuple[int | None, float | None]:
        """Outer iterations and seconds between checkpoints; None is never."""
        return interval(self.checkpoint_every)

    def _missed(self, of: Callable[[str, str, str], str]) -> str:
        return of(self.optimizer, self.local_solver, self.network)

    def _require_effect(self, name: str) -> None:
        where = SETTINGS[name].where
        if missed := self._missed(where.missed):
            own = name == "momentum" and "sgd" in missed
            missed += f", whose momentum is {SGD_MOMENTUM}" if own else ""
            sizes = ", ".join(f"--{each}" for each in self.sizes) or "set by its own function"
            rest = f"; the sizes of {self.network} are {sizes}" if where.networks else ""
            self._refuse(
                name, f"has no effect with {missed}, only with {where}; leave it out{rest}"
            )

    def _refuse(self, name: str, why: str) -> NoReturn:
        raise SETTINGS[name].refusal(getattr(self, name), why)


def _declared() -> dict[str, Setting]:
    return {
        item.name: dataclasses.replace(item.metadata["setting"], name=item.name, group=heading)
        for heading, group in GROUPS.items()
        for item in dataclasses.fields(group)
    }


SETTINGS = _declared()  # by name
