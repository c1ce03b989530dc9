"""A file of your own, read as it is needed: mpirun -n 2 python -m mpi4py own_hdf5.py FILE.

FILE has the datasets x (n, features) and y (n,); without one an example is written.
"""

import sys
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from apts_mpi import Comm, StochasticAPTS

comm = Comm()
path = Path(sys.argv[1] if len(sys.argv) > 1 else "own.h5")
if comm.rank == 0 and not path.exists():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1200, 20)).astype("f4")
    with h5py.File(path, "w") as file:
        file["x"], file["y"] = features, (features[:, :5].sum(1) > 0).astype("i8")
comm.gather_texts("written")  # nobody reads before


class Rows(Dataset):
    """The rows of both datasets; every worker opens the file for itself."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, None
        with h5py.File(path) as file:
            self.count = len(file["y"])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        if self.file is None:
            self.file = h5py.File(self.path)
        return self.file["x"][i], int(self.file["y"][i])


rows, epochs = Rows(path), 6
sampler = DistributedSampler(rows, comm.size, comm.rank)
loader = DataLoader(rows, 25, sampler=sampler, num_workers=1, persistent_workers=True)
model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = StochasticAPTS(
    model.parameters(), comm=comm, steps=epochs * len(loader), local_steps=10, classification=True
)
for epoch in range(epochs):
    sampler.set_epoch(epoch)
    for x, y in loader:
        loss = optimizer.step(lambda: nn.functional.cross_entropy(model(x), y), samples=len(x))
    if comm.rank == 0:
        print(f"epoch {epoch}  loss {loss:.4f}  radius {optimizer.radius:.2e}")
with optimizer.averaged():
    if comm.rank == 0:
        torch.save(model.state_dict(), "own.pt")
