"""Make `digits.h5` from scikit-learn's copy of the UCI digits; run once, by hand.

Needs scikit-learn, which the package itself does not: `python make_digits.py`.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from sklearn.datasets import load_digits


def main() -> None:
    """Write x, uint8 (1797, 1, 8, 8) of values 0..16, and y, uint8 (1797,), beside this script."""
    digits = load_digits()
    x = digits.images.astype(np.uint8)[:, None]
    y = digits.target.astype(np.uint8)
    assert x.shape == (1797, 1, 8, 8)
    assert x.max() == 16
    assert np.array_equal(x[:, 0], digits.images)
    with h5py.File(Path(__file__).with_name("digits.h5"), "w", libver=("v110", "v110")) as file:
        file.attrs["source"] = np.bytes_(b"doi:10.24432/C50P49")
        file.attrs["licence"] = np.bytes_(b"CC BY 4.0")
        for name, data in (("x", x), ("y", y)):
            file.create_dataset(
                name, data=data, chunks=data.shape, compression=9, shuffle=False, fletcher32=True
            )


if __name__ == "__main__":
    main()
