"""Every kind of file that the program reads."""

from __future__ import annotations

from .data_files import DATA
from .run_files import RUNS

# Runs first, as they are made while the process that reads starts.
SUBJECTS = {subject.name: subject for subject in (*RUNS, *DATA)}
