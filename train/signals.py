"""Stopping on a signal: SIGTERM, SIGINT or SIGUSR1, sent to any rank, stops all ranks at the same place."""

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequestedError(Exception):
    """A signal asked one of the ranks to stop; raised on all of them by the same call of `StopRequest.check`."""


class StopRequest:
    """Whether a signal asked this process to stop, from __enter__ to __exit__."""

    def __init__(self, *, world_size: int) -> None:
        self.world_size = world_size
        self.received = 0
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number

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
