"""Image classification: DataLoader with workers, validation, checkpoints, TensorBoard.

mpirun -n 4 python -m mpi4py classification.py [EPOCHS]; with more epochs it resumes.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, random_split

from apts_mpi import Comm, StochasticAPTS

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:  # pip install tensorboard
    SummaryWriter = None


def images(count: int) -> TensorDataset:
    """In place of torchvision.datasets.CIFAR10 and the like: noise with a bright quarter."""
    torch.manual_seed(0)
    y = torch.randint(4, (count,))
    x = torch.randn(count, 3, 16, 16)
    for k in range(4):
        rows, columns = 8 * (k // 2), 8 * (k % 2)
        x[y == k, :, rows : rows + 8, columns : columns + 8] += 0.5
    return TensorDataset(x, y)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, normalisation, half the size."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))


comm, epochs = Comm(), int(sys.argv[1]) if len(sys.argv) > 1 else 10
training, validation = random_split(images(2000), [1600, 400])
sampler = DistributedSampler(training, comm.size, comm.rank)
loader = DataLoader(training, 32, sampler=sampler, num_workers=2, drop_last=True)
model = nn.Sequential(
    *(block(3, 16), block(16, 32)), nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 4)
)
criterion = nn.CrossEntropyLoss()
optimizer = StochasticAPTS(
    model.parameters(), comm=comm, weight_decay=0.01, steps=epochs * len(loader), local_steps=10
)
writer = SummaryWriter("tensorboard") if SummaryWriter and comm.rank == 0 else None
state, first = Path(f"state-{comm.rank}.pt"), 0
if state.exists():
    saved = torch.load(state, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["epoch"] + 1


def accuracy() -> float:
    """Of the validation images, in percent."""
    model.eval()
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).sum() for x, y in DataLoader(validation, 200)]
    model.train()
    return 100.0 * float(sum(right)) / len(validation)


for epoch in range(first, epochs):
    sampler.set_epoch(epoch)
    for x, y in loader:
        loss = optimizer.step(lambda: criterion(model(x), y))
    with optimizer.averaged(model, loader):
        figures = {"loss": float(loss), "accuracy": accuracy(), "radius": optimizer.radius}
        both = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(both, state)
    if comm.rank == 0:
        print(epoch, " ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        for name, value in figures.items() if writer else ():
            writer.add_scalar(name, value, epoch)
