"""Images changed at random by torchvision's transforms, where it is installed."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from apts_mpi.errors import InputError, did_you_mean, user_code
from apts_mpi.networks.seeding import Generators
from apts_mpi.settings.declaration import AUGMENTATIONS
from apts_mpi.training.augmentation import augment

BYTES = 255.0  # what images of bytes are divided by for torchvision, which wants 0 to 1


class Changes:
    """What is changed at random in images as they are drawn: ours first, then torchvision's.

    A batch repeats from its key alone, on any device: torchvision's transforms run on the CPU, one
    image after another, as each draws its own changes.

    Args:
        names: "crop", "flip", and of ``torchvision.transforms.v2`` a name, or a name with arguments
            in parentheses, in this order.
        shape: of a sample, (channels, height, width). dtype: of the stored samples.
        mean, std: that samples are normalised by; they broadcast over one.

    Raises:
        InputError: torchvision is missing, has no such transform, or one does not keep the shape.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        shape: tuple[int, ...],
        dtype: str,
        mean: ArrayLike,
        std: ArrayLike,
    ) -> None:
        self._ours = [name for name in names if name in AUGMENTATIONS]
        theirs = [name for name in names if name not in AUGMENTATIONS]
        self._theirs = [_made(name) for name in theirs]
        scale = BYTES if dtype == "uint8" else 1.0
        self._mean = torch.as_tensor(mean, dtype=torch.float32) / scale
        self._std = torch.as_tensor(std, dtype=torch.float32) / scale
        self._generators = Generators(torch.device("cpu"))
        for name, transform in zip(theirs, self._theirs, strict=True):
            with user_code(f"--augment {name}: fails on an image {shape}"), self._seeded((0,)):
                found = transform(torch.zeros(shape))
            if not isinstance(found, Tensor) or found.shape != shape:
                made = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise InputError(f"--augment {name}: makes {made} of images {shape}")

    def __call__(self, x: Tensor, key: Sequence[int]) -> Tensor:
        """The images of a batch, each changed at random by itself.

        Args:
            x: (b, c, h, w) float32, normalised, on any device. key: as ``augment``'s.

        Returns:
            Of the shape, dtype and device of x, which is left as it is.
        """
        x = augment(x, self._ours, key)
        if not self._theirs or not len(x):
            return x
        raw = x.cpu() * self._std + self._mean
        with self._seeded(key):
            for transform in self._theirs:
                raw = torch.stack([transform(image) for image in raw])
        return ((raw - self._mean) / self._std).to(x)

    @contextmanager
    def _seeded(self, key: Sequence[int]) -> Iterator[None]:
        """Within, what is drawn depends on the key alone; the generators stay where they were."""
        before = self._generators.state()
        self._generators.seed(key)
        try:
            yield
        finally:
            self._generators.restore(before)


def _made(text: str) -> Callable[[Tensor], Tensor]:
    """The transform of a text like RandomRotation(15, expand=False)."""
    if find_spec("torchvision") is None:
        raise InputError(
            f"--augment {text}: torchvision is not installed; install it with `pip install "
            f"torchvision` (or 'apts_mpi[zoo]'); {' and '.join(AUGMENTATIONS)} need nothing else"
        )
    why = "; install the version of torchvision that goes with this torch"
    with user_code(f"--augment {text}: torchvision cannot be imported", why):
        from torchvision.transforms import v2
    call = ast.parse(text, mode="eval").body
    inner = call.func if isinstance(call, ast.Call) else call
    name = inner.id if isinstance(inner, ast.Name) else ""
    found = getattr(v2, name, None)
    if not (isinstance(found, type) and issubclass(found, v2.Transform)):
        known = [each for each in dir(v2) if each[0].isupper()]
        why = did_you_mean(name, known) or "; see torchvision.transforms.v2"
        raise InputError(f"--augment {text}: torchvision has no transform {name}{why}")
    given = call if isinstance(call, ast.Call) else ast.Call(inner, [], [])
    with user_code(f"--augment {text}: cannot be made"):
        made: Callable[[Tensor], Tensor] = found(
            *map(ast.literal_eval, given.args),
            **{each.arg: ast.literal_eval(each.value) for each in given.keywords if each.arg},
        )
    return made
