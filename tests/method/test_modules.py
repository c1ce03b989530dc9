"""Any module of a user's is trained, saved, gone on with, evaluated and exported to the same
figures, or refused before it is trained.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from apts_mpi.cli.main import main
from apts_mpi.comm.communicator import Comm
from apts_mpi.data import Source, read_partition, write_shards
from apts_mpi.errors import AgreedError
from apts_mpi.networks import named
from apts_mpi.networks.task import Task

EXAMPLES = int(os.environ.get("APTS_MPI_EXAMPLES", "6"))  # more of them at length
INPUTS, CLASSES = 6, 3
DTYPES = (
    *(torch.bool, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)
KEPT: tuple[Any, ...] = (3, 0.5, "text", None, [1, [2.5]], {"a": {"b": [torch.arange(3)]}})
# What cannot be saved so that it comes back; and what the module or its function then is.
REFUSED: dict[str, Callable[[Any], object]] = {
    "sparse": lambda m: m.register_buffer("odd", torch.eye(3).to_sparse()),
    "shares its memory|share memory": lambda m: setattr(
        m.last[1],
        "bias",
        nn.Parameter(m.last[0].bias.data),
    ),
    "float64": lambda m: m.register_parameter("odd", nn.Parameter(torch.zeros(2).double())),
    "complex64": lambda m: m.register_parameter("odd", nn.Parameter(torch.zeros(2) + 0j)),
    "is a tuple": lambda m: setattr(m, "extra", (1, 2)),
    "is a bytes": lambda m: setattr(m, "extra", {"inner": b"x"}),
    "before it is used": lambda m: m.register_buffer("grows", torch.zeros(0)),
}


class Drawn(nn.Module):
    """A network of what was drawn."""

    mean: Tensor
    mask: Tensor
    last: Any

    def __init__(self, wish: dict[str, Any]) -> None:
        super().__init__()
        self.wish, width = wish, 4
        first = nn.LazyLinear(width) if wish["lazy"] else nn.Linear(INPUTS, width)
        self.first = nn.Sequential(nn.Flatten(), first)
        norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}
        self.norm = norms[wish["norm"]](width)
        self.dropout = nn.Dropout(wish["dropout"])
        self.last = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
        if wish["tied"]:
            self.last[1].weight = self.last[0].weight
        self.head = nn.Linear(width, CLASSES)
        self.frozen = nn.Linear(INPUTS, CLASSES).to(wish["half"]).requires_grad_(False)
        for k, (dtype, shape, saved) in enumerate(wish["buffers"]):
            drawn = (
                torch.from_numpy(np.asarray(np.random.rand(*shape) * 5)).to(torch.float32).to(dtype)
            )
            self.register_buffer(f"b{k}", drawn, persistent=saved)
        self.register_buffer("mask", torch.ones(1, 1, dtype=torch.bool).expand(2, width))
        self.register_buffer("mean", torch.zeros(()), persistent=wish["saved mean"])
        self.scale, self.extra = random.random(), wish["extra"]
        if wish["refused"]:
            REFUSED[wish["refused"]](self)

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state

    def forward(self, x: Tensor) -> Any:
        h = self.dropout(self.norm(self.first(x)).relu()) * (1 + self.scale) * self.mask[0]
        if self.training:
            if self.wish["in place"]:
                self.mean.mul_(0.9).add_(h.detach().mean())
            else:
                self.mean = 0.9 * self.mean + h.detach().mean()
        if self.wish["refused"] == "before it is used":
            self.grows = torch.zeros(len(x))
        h = h - self.mean / 10 + sum(b.to(torch.float32).sum() / 100 for b in self.drawn())
        logits = self.head(self.last(h)) + self.frozen(x.flatten(1).to(self.wish["half"])).float()
        parts = {"logits": logits, "hidden": h}
        return {"plain": logits, "pair": (logits, h), "named": parts}[self.wish["outputs"]]

    def drawn(self) -> Iterator[Tensor]:
        for k in range(len(self.wish["buffers"])):
            b = getattr(self, f"b{k}")
            yield b.to(torch.complex64).real if b.is_complex() else b


def loss(outputs: Any, targets: Tensor) -> Tensor:
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def made_by(wish: dict[str, Any]) -> None:
    """Let ``--network drawn:network`` be that."""

    def network(task: Task) -> Any:
        module = Drawn(wish)
        return module if wish["outputs"] == "plain" else (module, loss)

    drawn = types.ModuleType("drawn")
    drawn.network = network  # type: ignore[attr-defined]
    sys.modules["drawn"] = drawn


SHAPES = st.sampled_from([(), (0,), (3,), (2, 0), (2, 3)])
WISHES = st.fixed_dictionaries(
    {
        "lazy": st.booleans(),
        "norm": st.sampled_from(["batch", "layer", "none"]),
        "dropout": st.sampled_from([0.0, 0.2]),
        "tied": st.booleans(),
        "half": st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
        "buffers": st.lists(
            st.tuples(st.sampled_from(DTYPES), SHAPES, st.booleans()), min_size=1, max_size=4
        ),
        "saved mean": st.booleans(),
        "in place": st.booleans(),
        "extra": st.sampled_from(KEPT),
        "outputs": st.sampled_from(["plain", "pair", "named"]),
        "refused": st.sampled_from(["", "", "", *REFUSED]),
    }
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 67 samples, of which a chunk or a minibatch would leave one."""
    rng = np.random.default_rng(0)
    y = np.arange(67) % CLASSES
    x = (rng.normal(size=(67, INPUTS)) + y[:, None]).astype("f4")
    folder = tmp_path_factory.mktemp("modules") / "shards"
    write_shards(Source("drawn", x, y, x[:21], y[:21], ("a", "b", "c")), folder, shards=2)
    return folder


def told(*arguments: str | Path) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        assert main(list(map(str, arguments)), Comm()) == 0
    return out.getvalue()


def trained(*arguments: str | Path) -> dict[str, Any]:
    flags = ("--network", "drawn:network", "--batch", "11", "--local-steps", "3", "--threads", "1")
    told("train", *flags, *arguments)
    out = Path(arguments[arguments.index("--out") + 1])
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


@pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:Lazy", "ignore:Sparse")
@given(WISHES)
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_drawn_module_is_used_throughout_or_refused(shards: Path, wish: dict[str, Any]) -> None:
    made_by(wish)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = ("--data", shards, "--checkpoint-every", "2", "--evaluate-every", "1")
        if wish["refused"]:
            with pytest.raises(AgreedError, match=wish["refused"]) as caught:
                trained(*data, "--iterations", "4", "--out", folder / "run")
            assert caught.value.status == 2
            assert str(caught.value).startswith("--network drawn:network: ")
            assert not (folder / "run/metrics.jsonl").exists()
            return
        whole = trained(*data, "--iterations", "4", "--out", folder / "run")
        seldom = (*data[:-1], "1e9")  # how often a run is evaluated changes nothing of it
        trained(*seldom, "--iterations", "2", "--out", folder / "part")
        again = trained("--resume", folder / "part", "--iterations", "4", "--out", folder / "part")
        figures = ("train_loss", "test_loss", "test_accuracy", "gradient_evaluations")
        assert [whole[f] for f in figures] == [again[f] for f in figures]

        run, net = folder / "run", ("--network", "drawn:network")
        assert "verified" in told("inspect", run, *net)
        rows = dict(re.findall(r"^(\w+) +([\d.]+)$", told("evaluate", run, *net), re.MULTILINE))
        assert rows["loss"] == f"{whole['test_loss']:.5f}"
        told("export", run, *net, "--out", folder / "x.safetensors")
        exported, wanted = exported_loss(folder / "x.safetensors", wish, shards), whole["test_loss"]
        assert exported == pytest.approx(wanted, rel=1e-4) or not wish["saved mean"]


def exported_loss(path: Path, wish: dict[str, Any], shards: Path) -> float:
    """The test loss of a module that the file's state is loaded into, strictly."""
    with safe_open(path, "pt") as file:
        about = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, dtype in json.loads(about.get("as_bytes", "{}")).items():
        state[name] = state[name].clone().view(getattr(torch, dtype))[..., 0]
    text = about["_extra_state"]
    state["_extra_state"] = text if wish["extra"] == "text" else json.loads(text)
    module: Any = named.build("drawn:network", Task("classification", (INPUTS,), 3), {}, seed=0)[0]
    for name, fresh in module.state_dict().items():
        if isinstance(fresh, Tensor):
            assert (fresh.dtype, fresh.shape) == (state[name].dtype, state[name].shape)
    module.load_state_dict(state, strict=True)
    assert not wish["tied"] or module.last[0].weight is module.last[1].weight
    part = read_partition(shards, "test", 0, 1)
    with torch.no_grad():
        outputs = module.eval()(torch.from_numpy(part.x))
    pair = {"logits": outputs} if isinstance(outputs, Tensor) else outputs
    return float(loss(pair, torch.from_numpy(part.y)).mean())
