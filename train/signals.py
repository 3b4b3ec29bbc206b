"""Stopping on a signal: SIGTERM, SIGINT or SIGUSR1, sent to any rank, stops all ranks at the same place."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PATIENCE_SECONDS = 20.0
"""So long the first step may still take: torch.compile can, and torchrun kills 30 s after SIGTERM."""


class StopRequestedError(Exception):
    """A signal asked one of the ranks to stop; raised on all of them by the same call of `StopRequest.check`."""


class StopRequest:
    """Whether a signal asked this process to stop, from __enter__ to __exit__."""

    def __init__(self, *, world_size: int) -> None:
        self.world_size = world_size
        self.received = 0
        self.has_work = False
        """Whether a step was done since the start, so that there is something to save."""
        self._timer: threading.Timer | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._timer:
            self._timer.cancel()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if not self.has_work and self._timer is None:
            self._timer = threading.Timer(PATIENCE_SECONDS, self._leave)
            self._timer.daemon = True
            self._timer.start()

    def _leave(self) -> None:
        """End the process where it is: nothing was trained, so nothing is lost."""
        if not self.has_work:
            print(f"stopped by {signal.Signals(self.received).name} before the first step was done", flush=True)
            os._exit(0)

    def check(self) -> None:
        """Raises StopRequestedError on every rank if any has received a signal; all ranks call it alike.

        The ranks agree over gloo, a fraction of a millisecond between their hosts: the GPU is not waited for.
        """
        received = self.received
        if self.world_size > 1:
            largest = torch.tensor(received)
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            received = int(largest)
        if received:
            raise StopRequestedError(signal.Signals(received).name)
