"""Processes of the tests that start in an instant, as forks of one that has loaded torch.

``mpirun -n 3 PYTHON -m apts_mpi`` starts ``start.py``, which has no torch, three times. Each hands
its words, environment, folder and open files to ``server.py`` over a socket. A fork of that is the
rank, and signals and its end are passed on. MPI knows ranks by their environment, whoever their
parent is. To import torch and the rest takes seconds of a core per rank, a fork some 50 ms.

What is not as in a process of its own: the parent's number, the command in /proc and the seed of
hashes, which is the same in all. Tests that need these, or test the start, use ``sys.executable``.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent


@contextmanager
def quick_python() -> Iterator[str]:
    """Path of a command that runs ``-m MODULE``, ``-c CODE`` and scripts as Python does.

    Where processes cannot be followed (``pidfd_open``) it is this Python.
    """
    if not hasattr(os, "pidfd_open"):
        yield sys.executable
        return
    with (
        tempfile.TemporaryDirectory(prefix="ranks-") as folder,
        socket.socket(socket.AF_UNIX) as listening,
    ):
        command, address = Path(folder, "python"), f"{folder}/socket"
        words = shlex.join([sys.executable, "-IS", str(HERE / "start.py"), address, str(command)])
        command.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
        command.chmod(0o755)
        listening.bind(address)
        listening.listen(100)
        path = os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
        server = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), str(listening.fileno())],
            stdin=subprocess.PIPE,  # whose end is the end of the tests
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
        listening.close()  # so that nobody waits for a server that has ended
        try:
            yield str(command)
        finally:
            server.communicate(timeout=30)
