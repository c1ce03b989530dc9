"""Where the tests of tensors compute: on a GPU where there is one, else on the CPU.

Those of the command line go there by themselves, as ``--device auto`` does.
"""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
