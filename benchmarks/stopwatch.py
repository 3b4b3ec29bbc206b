"""How fast something was: by the clock, and by its CPU time, which other work on the machine moves less."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """MB (10**6 bytes) of text per second of the clock, and per second of CPU time, children's included."""

    mb_s: float
    mb_cpu_s: float

    def times(self, other: Speed) -> float:
        """How many times as much this does per core as the other."""
        return self.mb_cpu_s / other.mb_cpu_s


class Stopwatch:
    """Started when it is made."""

    def __init__(self) -> None:
        self.started = self.now()

    def now(self) -> tuple[float, float]:
        """Clock and CPU time. Children count once they have ended."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime

    def read(self) -> tuple[float, float]:
        """Seconds of both since the start."""
        return tuple(now - then for now, then in zip(self.now(), self.started, strict=True))

    def speed(self, num_bytes: int) -> Speed:
        """The speed at which so many bytes were done since the start."""
        return speed_of(num_bytes, self.read())


def speed_of(num_bytes: int, seconds: tuple[float, float]) -> Speed:
    """Bytes done in some clock and CPU time."""
    return Speed(*(num_bytes / each / 1e6 for each in seconds))


def one_after_the_other(*steps: Speed) -> Speed:
    """The speed of steps that each go over the same text."""
    return Speed(1 / sum(1 / step.mb_s for step in steps), 1 / sum(1 / step.mb_cpu_s for step in steps))
