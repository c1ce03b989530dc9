"""Every kind of file that the program reads."""

from __future__ import annotations

from .data_files import DATA
from .run_files import RUNS

SUBJECTS = {subject.name: subject for subject in (*DATA, *RUNS)}
