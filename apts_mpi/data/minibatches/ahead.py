"""A thread that has the coming minibatches ready."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.minibatches.grouped import Indices

Rows = tuple[NDArray[Any], ...]
Pair = tuple[NDArray[Any], NDArray[Any]]
PATIENCE = 10.0  # seconds for a read to end before the thread is left to itself


def gather(index: Indices, window: int, empty: Rows, window_of: Callable[[int], Rows]) -> Rows:
    """The samples of an index (b,), taken from the windows that they lie in, by number.

    Args:
        window: samples of one. empty: of as many arrays, none of their rows.
    """
    rows = tuple(np.empty((len(index), *each.shape[1:]), each.dtype) for each in empty)
    whose = index // window
    for number in np.unique(whose).tolist():
        mine = np.flatnonzero(whose == number)
        for out, each in zip(rows, window_of(number), strict=True):
            out[mine] = each[index[mine] - number * window]
    return rows


class Ahead:
    """Reads windows of a part and makes minibatches of them, in an order known beforehand.

    The thread looks as far ahead as the windows that it may hold reach. It makes minibatches until
    enough are ready, then reads windows that later ones need, then waits.

    Args:
        read: the samples of a window as stored, by its number. pair: what minibatches are made of
            those. empty: the same of no samples.
        plan: the indices of the minibatches to come; drawn in the thread.
        window: samples of a window. windows: that are held at most.
        looked: samples of minibatches to come that are looked at.
        depth: minibatches that are kept ready.
    """

    def __init__(
        self,
        read: Callable[[int], Rows],
        pair: Callable[[Rows], Pair],
        plan: Iterator[Indices],
        *,
        empty: Rows,
        window: int,
        windows: int,
        looked: int,
        depth: int,
    ) -> None:
        self._read, self._pair, self._plan = read, pair, plan
        self._empty, self._window, self._depth = empty, window, depth
        self._most, self._looked = windows, looked
        # Of the thread alone: minibatches to come with their windows, how many need each of those,
        # and those that have been read.
        self._coming: deque[tuple[Indices, NDArray[np.int64]]] = deque()
        self._next: tuple[Indices, NDArray[np.int64]] | None = None
        self._needed: Counter[int] = Counter()
        self._held: dict[int, Rows] = {}
        # Of both.
        self._change = threading.Condition()
        self._ready: deque[tuple[Indices, Pair]] = deque()
        self._error: BaseException | None = None
        self._ended = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="reading ahead", daemon=True)
        self._thread.start()

    def take(self, index: Indices | None) -> Pair | None:
        """The next minibatch, once it is ready; None at the end, or if it is not that of `index`.

        Raises what went wrong in the thread, once what was ready before has been taken.
        """
        with self._change:
            self._change.wait_for(lambda: self._ready or self._ended)
            if self._ready:
                if index is not None and not np.array_equal(self._ready[0][0], index):
                    return None
                found = self._ready.popleft()[1]
                self._change.notify_all()
                return found
        if self._error is not None:
            raise self._error
        return None

    def stop(self) -> None:
        """End the thread and wait for its end; again does nothing."""
        with self._change:
            self._stopped = True
            self._ready.clear()
            self._change.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(PATIENCE)

    # ---- in the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._go_on():
                pass
        except BaseException as error:  # raised where the minibatch is taken
            self._error = error
        finally:
            self._held.clear()
            self._coming.clear()
            with self._change:
                self._ended = True
                self._change.notify_all()

    def _go_on(self) -> bool:
        """Make a minibatch, or read a window, or wait; False at the end."""
        with self._change:
            if self._stopped:
                return False
            full = len(self._ready) >= self._depth
        self._look()
        if not full:
            return self._make()
        for number in self._needed:  # in the order of need
            if len(self._held) == self._most:
                break
            if number not in self._held:
                self._held[number] = self._read(number)
                return True
        with self._change:
            self._change.wait_for(lambda: self._stopped or len(self._ready) < self._depth)
        return True

    def _look(self) -> None:
        """Take note of minibatches to come, as far as the windows that may be held reach."""
        seen = sum(len(index) for index, _ in self._coming)
        while seen < self._looked or not self._coming:
            if self._next is None:
                index = next(self._plan, None)
                if index is None:
                    return
                self._next = (index, np.unique(index // self._window))
            index, windows = self._next
            new = sum(number not in self._needed for number in windows.tolist())
            if self._coming and len(self._needed) + new > self._most:
                return
            self._needed.update(windows.tolist())
            self._coming.append(self._next)
            self._next = None
            seen += len(index)

    def _make(self) -> bool:
        if not self._coming:
            return False
        index, _ = self._coming[0]
        made = self._pair(gather(index, self._window, self._empty, self._window_for))
        self._coming.popleft()
        with self._change:
            if not self._stopped:
                self._ready.append((index, made))
                self._change.notify_all()
        return True

    def _window_for(self, number: int) -> Rows:
        """A window to a minibatch; it is kept where later ones need it and there is room."""
        found = self._held.pop(number, None) or self._read(number)
        self._needed[number] -= 1
        if not self._needed[number]:
            del self._needed[number]
        elif len(self._held) < self._most:
            self._held[number] = found
        return found
