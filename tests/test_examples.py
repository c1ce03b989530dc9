"""The examples run as they stand, and the program that docs/python.md ends its diff with trains."""

from __future__ import annotations

import re
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from apts_mpi import StochasticAPTS
from tests.conftest import Launch

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))


def figure(pattern: str, text: str) -> float:
    found = re.findall(pattern, text)
    assert found, text
    return float(found[-1])


def test_an_example_is_seen_at_a_glance() -> None:
    assert len(EXAMPLES) == 5
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) <= 80, path


def test_a_classification_learns_and_resumes(launch: Launch, tmp_path: Path) -> None:
    example = DOCS / "examples/classification.py"
    first = launch(2, example, "1")
    assert first.status == 0, first.err
    assert (tmp_path / "state-1.pt").exists()
    second = launch(2, example, "2")
    assert second.status == 0, second.err
    assert [line.split()[0] for line in (first.out + second.out).splitlines()] == ["0", "1"]
    assert figure(r"accuracy (\S+)", second.out) > 60.0


def test_a_regression_of_uneven_ranks_learns(launch: Launch) -> None:
    done = launch(3, DOCS / "examples/regression.py", "20")
    assert done.status == 0, done.err
    assert figure(r"error (\S+) K", done.out) < 4.5  # 6 without training


def test_finetuning_gains_by_unfreezing(launch: Launch) -> None:
    done = launch(0, DOCS / "examples/finetuning.py", "4")
    assert done.status == 0, done.err
    assert figure(r"([\d.]+) with all", done.out) > figure(r"([\d.]+) with a frozen", done.out)


def test_a_file_of_ones_own_is_read_by_workers(launch: Launch, tmp_path: Path) -> None:
    done = launch(2, DOCS / "examples/own_hdf5.py")
    assert done.status == 0, done.err
    assert figure(r"loss (\S+)", done.out) < 0.6
    state = torch.load(tmp_path / "own.pt", weights_only=True)
    assert state["0.weight"].shape == (32, 20)


@pytest.mark.skipif(find_spec("transformers") is None, reason="pip install transformers")
def test_gpt2_learns_a_text(launch: Launch) -> None:
    path = DOCS / "examples/gpt2.py"
    done = launch(1, path, path, "60")
    assert done.status == 0, done.err
    assert figure(r"loss (\S+)", done.out) < 4.0


def test_the_diff_of_the_page_ends_in_a_program_that_trains() -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", (DOCS / "python.md").read_text(), flags=re.DOTALL)
    lines = [line[1:] for line in diff.splitlines() if not line.startswith("-")]
    losses, x = list[float](), torch.randn(256, 6)
    torch.manual_seed(0)
    network = nn.Linear(6, 2)

    def evaluate(model: nn.Module) -> None:
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())))

    names = {
        **{"torch": torch, "DataLoader": DataLoader, "DistributedSampler": DistributedSampler},
        **{"data": TensorDataset(x, (x[:, 0] > 0).long()), "network": network, "epochs": 12},
        **{"criterion": nn.functional.cross_entropy, "evaluate": evaluate},
    }
    exec("\n".join(lines).replace("num_workers=2", "num_workers=0"), names)
    assert len(losses) == 12
    assert losses[-1] < 0.5


# ---- with what steps by itself -------------------------------------------------------------------

X = torch.randn(128, 6, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, (X[:, 0] > 0).long())


def recipe(of: str, package: Any) -> dict[str, Any]:
    """What the page's block that uses a package defines."""
    page = (DOCS / "python.md").read_text()
    blocks = re.findall(r"  ```python\n(.*?)  ```", page, flags=re.DOTALL)
    (block,) = (each for each in blocks if f"{of}." in each)
    names = {of: package, "torch": torch, "StochasticAPTS": StochasticAPTS}
    names["criterion"] = nn.functional.cross_entropy
    exec(textwrap.dedent(block), names)
    return names


def right(model: nn.Module) -> float:
    with torch.no_grad():
        return float((model(X).argmax(1) == DATA.tensors[1]).float().mean())


def test_accelerate_prepares_the_rest() -> None:
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    loader = DataLoader(DATA, 16, shuffle=True)
    model, loader = accelerator.prepare(nn.Linear(6, 2), loader)
    optimizer = StochasticAPTS(model.parameters(), local_steps=5)
    for _ in range(4):
        for x, y in loader:
            optimizer.step(lambda: nn.functional.cross_entropy(model(x), y))  # noqa: B023
    assert right(model) > 0.9


def test_lightning_optimizes_manually(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    module = recipe("lightning", lightning)["Module"]()
    module.network = nn.Linear(6, 2)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    where = {"accelerator": "cpu", "devices": 1, "default_root_dir": tmp_path}
    lightning.Trainer(max_epochs=8, **quiet, **where).fit(module, DataLoader(DATA, 16))
    assert right(module.network) > 0.9


class Labelled(nn.Module):
    """As Hugging Face's trainer calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.linear(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_hugging_faces_trainer_takes_the_step(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    chosen = {"max_grad_norm": 0, "num_train_epochs": 8, "per_device_train_batch_size": 16}
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    arguments = transformers.TrainingArguments(str(tmp_path), **chosen, **quiet)
    rows = [{"x": x, "labels": int(y)} for x, y in zip(*DATA.tensors, strict=True)]
    model = Labelled()
    trainer = recipe("transformers", transformers)["APTSTrainer"](
        model, arguments, train_dataset=rows
    )
    trainer.train()
    assert trainer.apts.iterations == 3
    assert right(model.linear) > 0.9
