"""Work done ahead of need by threads, handed out in order; and memory for its results that is used again and again."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch

from onefold.core.errors import UserError

T = TypeVar("T")

AHEAD = 4  # results kept ready or in the making
NAME = "onefold-loader"  # of the threads


class Ahead(Generic[T]):
    """Iterates over the results of `jobs`, in their order, while threads work on the next `AHEAD` of them.

    A job is a function without arguments; the iterator of jobs is advanced by one thread at a time. What a job or the
    iterator raises comes out in its place, and ends the work. Threads end when all is done, with `close`, or when
    nobody holds this object any more: they know the `_Desk`, not the object.
    """

    def __init__(self, jobs: Iterator[Callable[[], T]], threads: int = 1):
        if threads < 1:
            raise UserError(f"a loader needs at least one thread, not {threads}")
        self._desk = _Desk(jobs, max(AHEAD, threads))
        self._threads = [
            threading.Thread(target=_work, args=(self._desk,), name=NAME, daemon=True) for _ in range(threads)
        ]
        weakref.finalize(self, self._desk.stop).atexit = False
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return self._desk.next()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the threads; what they had ready is let go."""
        self._desk.stop()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _Desk:
    """Where threads fetch jobs and lay results; bounded, so that nobody works further ahead than `ahead`.

    The lock is reentrant because `stop` may be called by the garbage collector in a thread that holds it.
    """

    def __init__(self, jobs: Iterator[Callable[[], Any]], ahead: int):
        self._jobs, self._ahead = jobs, ahead
        self._fetching = threading.Lock()  # the iterator of jobs: held while it computes, unlike the other
        self._changed = threading.Condition(threading.RLock())
        self._given = self._taken = 0
        self._ready: dict[int, tuple[Any, BaseException | None]] = {}
        self._stopped = False

    def fetch(self) -> tuple[int, Callable[[], Any]] | None:
        """The next job and its number; None when there is nothing more to do."""
        with self._fetching:
            with self._changed:
                # It looks again each second: `stop` may have been called between its look and its sleep, see above.
                while not self._changed.wait_for(self._may_fetch, timeout=1):
                    pass
                if self._stopped:
                    return None
                number = self._given
                self._given += 1
            try:
                return number, next(self._jobs)
            except BaseException as error:  # StopIteration, too: it is the last thing that comes out
                self.lay(number, None, error)
                with self._changed:
                    self._ahead = 0  # nothing more is fetched
                return None

    def _may_fetch(self) -> bool:
        return self._stopped or self._given - self._taken < self._ahead

    def lay(self, number: int, found: Any, error: BaseException | None = None) -> None:
        with self._changed:
            if not self._stopped:
                self._ready[number] = found, error
                self._changed.notify_all()

    def next(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._taken in self._ready)
            if self._stopped:
                raise StopIteration
            found, error = self._ready.pop(self._taken)
            self._taken += 1
            self._changed.notify_all()
        if error is not None:
            raise error
        return found

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()


def _work(desk: _Desk) -> None:
    while (fetched := desk.fetch()) is not None:
        number, job = fetched
        try:
            desk.lay(number, job())
        except BaseException as error:
            desk.lay(number, None, error)
        del fetched, job  # a waiting thread holds nothing of what it did


class Slots:
    """Memory for batches. A slot is used again as soon as nobody holds an array or tensor that lies in it.

    Fresh memory costs a page fault every 4 KiB, as much as filling it does. There is nothing to give back and no time
    after which a batch turns into another one: a batch is valid for as long as it is held.
    """

    def __init__(self) -> None:
        self._free: dict[int, deque[np.ndarray]] = {}

    def empty(self, shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
        """An array of undefined content. Any thread may call this."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        free = self._free.setdefault(size, deque())
        try:
            slot = free.pop()
        except IndexError:
            slot = np.empty(size, np.uint8)
        # Views of views of an array hold that array alone, and views that begin at a memoryview hold the first of
        # them: `lent`, whose end is the end of all that lies in the slot.
        lent = np.frombuffer(memoryview(slot), dtype)
        weakref.finalize(lent, free.append, slot).atexit = False
        return lent.reshape(shape)


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """The tensor of an array: the same memory, or with a GPU pinned memory, of which copies are not waited for."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if torch.cuda.is_initialized() else tensor
