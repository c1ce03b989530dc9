"""Fine-tuning: a new head on a frozen backbone, which is unfrozen later, with shorter steps.

mpirun -n 2 python -m mpi4py finetuning.py [EPOCHS]
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from apts_mpi import Comm, StochasticAPTS

comm, epochs = Comm(), int(sys.argv[1]) if len(sys.argv) > 1 else 8
criterion = nn.CrossEntropyLoss()


def samples(seed: int, classes: int) -> TensorDataset:
    """Two tasks on the same inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(600, 12, generator=generator)
    features = torch.sin(x[:, :4] * x[:, 4:8])
    return TensorDataset(x, features[:, :classes].argmax(1))


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """In percent."""
    x, y = data.tensors
    with torch.no_grad():
        return 100.0 * float((model(x).argmax(1) == y).float().mean())


def train(model: nn.Module, optimizer: StochasticAPTS, data: TensorDataset, epochs: int) -> None:
    """All ranks draw from the same samples, each in an order of its own."""
    order = torch.Generator().manual_seed(comm.rank)
    loader = DataLoader(data, 30, shuffle=True, generator=order)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.step(lambda: criterion(model(x), y), samples=len(x))


# In place of a network of torchvision with weights="DEFAULT".
backbone = nn.Sequential(nn.Linear(12, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU())
pretraining = nn.Sequential(backbone, nn.Linear(32, 4))
optimizer = StochasticAPTS(pretraining.parameters(), comm=comm, classification=True)
train(pretraining, optimizer, samples(1, 4), epochs)

model, data = nn.Sequential(backbone, nn.Linear(32, 2)), samples(2, 2)
backbone.requires_grad_(False)
optimizer = StochasticAPTS(
    [
        {"params": backbone.parameters(), "radius_scale": 0.3},
        {"params": model[1].parameters(), "weight_decay": 0.0},
    ],
    comm=comm,
    weight_decay=0.01,
    local_steps=10,
    classification=True,
)
train(model, optimizer, data, epochs)
with optimizer.averaged():
    frozen = accuracy(model, data)
backbone.requires_grad_(True)
train(model, optimizer, data, epochs)
with optimizer.averaged():
    both = accuracy(model, data)
if comm.rank == 0:
    print(f"accuracy {frozen:.1f} with a frozen backbone, {both:.1f} with all layers")
