"""Ctrl-C and SIGTERM as requests: the loop finishes its step, saves, and says how to go on."""

import signal
import threading
from typing import Self

from onefold.core.progress import say


class Interrupt:
    """`with Interrupt() as interrupt:` — `interrupt.requested` turns true at the first Ctrl-C; a second one aborts."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested = False
        self._before = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self._before = {s: signal.signal(s, self._on_signal) for s in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        say("stopping after this step to save a checkpoint (once more to abort at once)")
