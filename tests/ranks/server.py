"""The process that ranks are forks of: ``python server.py FD``, FD a listening socket.

It has imported what ranks import, and started neither threads nor MPI. It ends when its standard
input does, and all forks with it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import marshal
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import struct
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

LIBRARIES = ("numpy", "torch", "h5py", "mpi4py", "safetensors.torch", "tqdm", "pytest")
COMPILER = "torch._dynamo"  # which torch's optimizers import when they are first made


class Fork(NamedTuple):
    """A process, and the connection to the one that it stands for."""

    pid: int
    handle: int
    connection: socket.socket


def load() -> None:
    """Import the libraries, then every module of the package of this checkout."""
    for name in (*LIBRARIES, COMPILER):
        importlib.import_module(name)
    import apts_mpi

    for each in pkgutil.walk_packages(apts_mpi.__path__, "apts_mpi."):
        if not each.name.endswith((".__main__", ".make_digits")):  # programs
            importlib.import_module(each.name)
    _link_mpi()
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads, which forks would be without"
    for each in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        each.atexit = False  # torch's, which take longer than the rest of a short process
    gc.collect()
    gc.freeze()  # so that forks do not copy all of it


def _link_mpi() -> None:
    """Load MPI's libraries, but start nothing: a fork imports ``mpi4py.MPI`` by itself."""
    try:
        found = importlib.util.find_spec("mpi4py.MPI")
    except RuntimeError:  # there is none
        return
    if found and found.origin:
        ctypes.CDLL(found.origin)
    finder = importlib.import_module("mpi4py._mpiabi")
    vars(finder._get_mpiabi).clear()  # a fork may be to find another library
    assert "mpi4py.MPI" not in sys.modules


def serve(listening: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Make forks; returns only in those, with what each is to become and its open files."""
    waiting = selectors.DefaultSelector()
    waiting.register(listening, selectors.EVENT_READ)
    waiting.register(0, selectors.EVENT_READ)
    forks: dict[int, Fork] = {}  # by their pidfd and by their connection's number
    while True:
        for key, _ in waiting.select():
            if key.fd == 0:
                for fork in forks.values():
                    os.kill(fork.pid, signal.SIGKILL)
                os._exit(0)
            elif key.fileobj is listening:
                connection, _ = listening.accept()
                found = _request(connection)
                if found is None:
                    connection.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    for each in (listening, connection, *(f.connection for f in forks.values())):
                        each.close()
                    for handle in {f.handle for f in forks.values()}:
                        os.close(handle)
                    waiting.close()
                    return found
                for number in found[1]:
                    os.close(number)
                fork = Fork(pid, os.pidfd_open(pid), connection)
                for number in (fork.handle, connection.fileno()):
                    forks[number] = fork
                    waiting.register(number, selectors.EVENT_READ)
            elif key.fd in forks:
                _pass_on(forks, key.fd, waiting)


def _request(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """What a process asks for, None where it ends before that."""
    head, files, _, _ = socket.recv_fds(connection, 4, 3)
    text = b""
    while len(head) == 4 and len(text) < (length := struct.unpack("I", head)[0]):
        more = connection.recv(length - len(text))
        if not more:
            break
        text += more
    else:
        if text:
            return marshal.loads(text), files
    for number in files:
        os.close(number)
    return None


def _pass_on(forks: dict[int, Fork], number: int, waiting: selectors.BaseSelector) -> None:
    """Signals to a fork, or its end to the process that it stands for."""
    fork = forks[number]
    if number != fork.handle:
        try:
            signals = fork.connection.recv(64)
        except ConnectionError:
            signals = b""
        for each in signals or [signal.SIGKILL]:
            os.kill(fork.pid, each)
        if not signals:
            waiting.unregister(number)
            del forks[number]
        return
    _, status = os.waitpid(fork.pid, 0)
    with contextlib.suppress(OSError):  # it was killed
        fork.connection.sendall(struct.pack("i", os.waitstatus_to_exitcode(status)))
    for each in (fork.handle, fork.connection.fileno()):
        if forks.pop(each, None):
            waiting.unregister(each)
    fork.connection.close()
    os.close(fork.handle)


def become(request: dict[str, Any], files: list[int]) -> None:
    """Run the words as Python would, with all that the process had that they were given to."""
    os.setpgid(0, 0)  # in one session: a rank that waits gives way within its own alone
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environb.update(request["environment"])
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.sched_setaffinity(0, request["cores"])
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", 1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.modules["numpy"].random.seed()
    tempfile.tempdir = None  # the environment may name another
    sys.executable = request["command"]
    status = 1
    try:
        _run(request["words"])
        status = 0
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            status = error.code or 0
        else:
            print(error.code, file=sys.stderr)
    except BaseException as error:
        at = error.__traceback__
        while at is not None and at.tb_frame.f_code.co_filename == __file__:
            at = at.tb_next
        sys.excepthook(type(error), error.with_traceback(at), at)
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    _end(status)


def _run(words: list[str]) -> None:
    kind = words.pop(0) if words[0] in ("-m", "-c") else ""
    what, sys.argv[:] = words[0], [kind or words[0], *words[1:]]
    first = os.getcwd() if kind == "-m" else "" if kind else str(Path(what).resolve().parent)
    roots = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[: 1 + len(ROOTS)] = [first, *roots]  # in place of this server's folder and variable
    importlib.invalidate_caches()
    main = sys.modules["__main__"] = ModuleType("__main__")
    if kind == "-m":
        runpy._run_module_as_main(what)  # type: ignore[attr-defined]
    elif kind == "-c":
        exec(compile(what, "<string>", "exec"), main.__dict__)
    else:
        main.__file__ = what
        exec(compile(Path(what).read_bytes(), what, "exec"), main.__dict__)


def _end(status: int) -> None:
    """End as Python does, but for freeing all memory, which takes a third of a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    MPI = getattr(sys.modules.get("mpi4py"), "MPI", None)
    if MPI and MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.Finalize()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = 120
    os._exit(status & 255)


if __name__ == "__main__":
    ROOTS = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    load()
    become(*serve(socket.socket(fileno=int(sys.argv[1]))))
