"""Signals that ask a training run to stop, handled between steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stopped", "stop_signals"]


class Stopped(KeyboardInterrupt):
    """Training was asked to stop (SIGTERM or SIGINT) and has saved its state."""


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in a list, so that they do not end the process.

    Only the main thread can do this; in other threads the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def receive(number: int, _frame: object) -> None:
        received.append(number)

    before = {name: signal.signal(name, receive) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
