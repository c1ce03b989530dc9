"""The samples of the tests of layouts: 40 of four classes, each class among the first four."""

from __future__ import annotations

import numpy as np

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6))
K = RNG.integers(0, 4, 40)
K[:4] = range(4)
