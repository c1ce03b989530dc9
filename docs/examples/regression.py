"""A regression whose ranks have different amounts of data.

mpirun -n 3 python -m mpi4py regression.py [EPOCHS]; targets are standardised for training.
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from apts_mpi import Comm, StochasticAPTS

comm, epochs = Comm(), int(sys.argv[1]) if len(sys.argv) > 1 else 40


def measured(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and temperatures, in place of a table of your own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, generator=generator)
    noise = 0.2 * torch.randn(count, generator=generator)
    return x, 280.0 + 15.0 * torch.sin(4.0 * x[:, 0]) * x[:, 1] + 5.0 * x[:, 2] ** 2 + noise


x, y = measured(400 * (comm.rank + 1), seed=comm.rank)  # uneven by purpose
mean, std = 285.0, 6.0  # of all ranks
loader = DataLoader(TensorDataset(x, (y - mean) / std), 50, shuffle=True)
model = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = StochasticAPTS(model.parameters(), comm=comm, steps=epochs * len(loader), local_steps=5)

for _ in range(epochs):
    with optimizer.join():  # ranks run out of minibatches at different times
        for a, b in loader:
            optimizer.step(lambda: nn.functional.mse_loss(model(a)[:, 0], b), samples=len(a))

test_x, test_y = measured(1000, seed=100)
with optimizer.averaged(), torch.no_grad():
    error = (model(test_x)[:, 0] * std + mean - test_y).square().mean().sqrt()
if comm.rank == 0:
    print(f"root mean square error {error:.3f} K, {optimizer.iterations} outer iterations")
