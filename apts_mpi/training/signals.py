"""Signals that end a run well: the first asks all ranks to stop, a second ends at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from apts_mpi.comm import job
from apts_mpi.files.streams import write_error

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_APART = 1.0  # seconds; launchers and batch systems send one signal by several ways at once


class StopSignals:
    """A context in which SIGTERM, SIGINT and SIGUSR1 ask for a stop instead of ending the process.

    A thread listens, as a main thread that waits in MPI runs no Python handler. Outside of the main
    thread, where Python takes no handlers, the context does nothing.

    Args:
        ask: as the attribute.

    Attributes:
        ask: called from that thread at the first signal. As long as it is None, while ranks start,
            that signal ends the process, with a line of the first rank.
        caught: name of that signal, None before.
    """

    def __init__(self, ask: Callable[[], object] | None = None) -> None:
        self.ask = ask
        self.caught: str | None = None
        self._handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._receive, self._send = socket.socketpair()
            self._send.setblocking(False)
            self._handlers = {each: signal.signal(each, _heard) for each in SIGNALS}
            self._wakeup = signal.set_wakeup_fd(self._send.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup)
            for each, handler in self._handlers.items():
                # One more of the kind that has been followed may come while the process ends.
                rest = signal.SIG_IGN if self.caught else handler
                signal.signal(each, rest)  # type: ignore[arg-type]
            self._handlers = {}
            self._send.close()
            self._thread.join()
            self._receive.close()

    def _listen(self) -> None:
        first = 0.0
        while numbers := self._receive.recv(64):
            for number in numbers:
                if number not in SIGNALS:
                    continue
                if self.caught is None:
                    first, self.caught = time.monotonic(), signal.Signals(number).name
                    if self.ask is None:
                        _end(number, self.caught)
                    self.ask()
                elif time.monotonic() - first > _APART:
                    os._exit(128 + number)


def _end(number: int, name: str) -> NoReturn:
    """Before there is a run to stop: other ranks may wait in MPI, and the launcher ends them."""
    if job.speaks(0, 1):
        write_error(f"apts_mpi: stopped by {name} while the ranks were starting\n")
    os._exit(128 + number)


def _heard(number: int, frame: object) -> None:
    """What Python wants as a handler; the thread does the work."""
