"""Stopping on a signal: SIGTERM, SIGINT or SIGUSR1, sent to any rank, stops all ranks at the same place."""

import os
import signal
import threading
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PATIENCE_SECONDS = 20.0  # So long the first step may still take, compiling: torchrun kills 30 s after SIGTERM.


class StopRequestedError(Exception):
    """A signal asked one of the ranks to stop; raised on all of them by the same call of `StopRequest.check`."""


class StopRequest:
    """Whether a signal asked this process to stop, from __enter__ to __exit__."""

    received = 0  # The signal's number.
    has_work = False  # Whether a step was done since the start, so that there is something to save.
    _timer: threading.Timer | None = None

    def __enter__(self) -> "StopRequest":
        self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._timer:
            self._timer.cancel()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if not self.has_work and self._timer is None:
            self._timer = threading.Timer(PATIENCE_SECONDS, self._leave)
            self._timer.start()

    def _leave(self) -> None:
        """End the process where it is: nothing was trained, so nothing is lost."""
        if not self.has_work:
            print(f"stopped by {signal.Signals(self.received).name} before the first step was done", flush=True)
            os._exit(0)

    def check(self) -> None:
        """Raises StopRequestedError on every rank if any has received a signal; all ranks call it alike. The ranks
        agree over gloo, a fraction of a millisecond between their hosts: the GPU is not waited for."""
        received = torch.tensor(self.received)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        if received:
            raise StopRequestedError(signal.Signals(int(received)).name)
