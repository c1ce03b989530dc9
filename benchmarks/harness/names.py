"""What methods, links and settings are called where people read; rows have shorter names."""

from __future__ import annotations

import re

PRODUCT = "apts_mpi"
OURS = "APTS"  # the default method
_NAMES = {
    **{"apts": OURS, "apts-auto": f"{OURS}, automatic local steps"},
    **{"apts-sr1": f"{OURS} (L-SR1)", "apts-first-order": f"{OURS} (first order)"},
    **{"adam": "Adam", "adam-64": "Adam, at least 64 per rank", "adamw": "AdamW"},
    **{
        "ddp-adam": "PyTorch DDP, Adam",
        "ddp-muon": "PyTorch DDP, Muon",
        "sgd": "SGD",
        "sgd-cosine": "SGD, cosine",
    },
    **{"muon": "Muon", "schedule-free": "Schedule-Free AdamW", "prodigy": "Prodigy"},
    **{"local-sgd": "Local SGD", "diloco": "DiLoCo", "diloco-cosine": "DiLoCo, cosine"},
    **{"muloco": "MuLoCo", "adam-cosine": "Adam, cosine", "local-sgd-cosine": "Local SGD, cosine"},
    # Ways that a message takes in micro.
    **{"mpi4py": "mpi4py alone", "comm": PRODUCT, "comm-untimed": f"{PRODUCT}, clocks off"},
    "message": f"{PRODUCT}, vector with scalars",
    # Links and data.
    **{"100mbit": "100 Mbit/s", "1gbit": "1 Gbit/s", "10gbit": "10 Gbit/s"},
    **{
        "unlimited": "no limit",
        "mnist": "MNIST",
        "cifar10": "CIFAR-10",
        "text": "Text",
        "digits": "Digits",
    },
}
_MPI = {
    **{"defaults": "Open MPI's defaults", "yield": "waiting ranks yield"},
    **{"eager": "yield, eager to 8 MiB", "doubling": "yield, recursive doubling"},
    **{"ring": "ring, eager to 8 MiB", "tuned": "recursive doubling, eager to 8 MiB"},
    "rabenseifner": "reduce-scatter and allgather, eager to 8 MiB",
}


def shown(name: str) -> str:
    """A name of a row, with what follows it (flags, a batch), as people know it."""
    found = re.match(r"[\w-]+", name)
    if found is None or found[0] not in _NAMES:
        return name
    return _NAMES[found[0]] + name[found.end() :]


def mpi(name: str) -> str:
    """MPI settings in words, and in brackets the name that micro's --settings takes."""
    return f"{_MPI[name]} ({name})" if name in _MPI else name


def network(settings: dict[str, object]) -> str:
    """Hidden layers or a network's flags in words: ``MLP 128-128``, ``resnet depth 8 width 8``."""
    flags = settings.get("network")
    if isinstance(flags, list):
        kind, *more = " ".join(map(str, flags)).replace("--", "").removeprefix("network ").split()
        if kind == "resnet" and more[:1] == ["depth"]:
            kind, more = f"ResNet-{more[1]}", more[2:]
        known = {"transformer": "Transformer", "cnn": "CNN", "mlp": "MLP"}
        return " ".join([known.get(kind, kind), *more])
    return f"MLP {str(settings.get('hidden')).replace(',', '-')}"
