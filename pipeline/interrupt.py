"""Ctrl-C, or SIGTERM, ends a command within two seconds, whatever it is doing. Knows nothing of what that is.

Python raises KeyboardInterrupt between two steps of its own: a sort of four million documents is one step. So a thread
waits beside it, and ends the process where it has not ended in order. Whatever `kill -9` leaves can be gone on with.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

STOPS = (signal.SIGINT, signal.SIGTERM)
SECONDS_TO_END_IN_ORDER = 1
STOPPED = "stopped. What was finished is kept: run the same command again to continue"
SHOW_CURSOR = "\x1b[?25h"  # a live display hides it


def end_at_once_on_ctrl_c() -> None:
    """From now on Ctrl-C ends the process with a line, where it would raise KeyboardInterrupt. For what has nothing to
    bring in order, such as imports."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as behind nohup
        signal.signal(signal.SIGINT, end_at_once)


def end_at_once(*_: object) -> None:
    """End the process, and say so. Python's own end takes a quarter of a second where much was imported, and more than
    one on a busy machine."""
    with contextlib.suppress(OSError):  # whoever read it may have been stopped, too
        sys.stdout.flush()
    print(STOPPED, file=sys.stderr, flush=True)
    os._exit(1)


@contextlib.contextmanager
def ending_soon_on_ctrl_c() -> Iterator[None]:
    """In the block, Ctrl-C raises KeyboardInterrupt as ever, and SIGTERM does; where the block has not ended soon, the
    process does.

    For the main thread alone: no other may say what becomes of signals.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    on_int, on_term = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    if on_int is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if on_term is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    watcher = threading.Thread(target=watch, args=(reader,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGINT, on_int)
        signal.signal(signal.SIGTERM, on_term)
        os.close(writer)
        watcher.join()
        os.close(reader)


def watch(reader: int) -> None:
    """Read the signals that arrive. Returns when the pipe's other end is closed; ends the process after a stop."""
    while (received := os.read(reader, 1)) not in [bytes([stop]) for stop in STOPS]:
        if not received:
            return
    is_said_again, _, _ = select.select([reader], [], [], SECONDS_TO_END_IN_ORDER)
    if is_said_again and not os.read(reader, 1):
        return
    kill_children()
    print(f"{SHOW_CURSOR if sys.stderr.isatty() else ''}{STOPPED}", file=sys.stderr, flush=True)
    os._exit(1)


def kill_children() -> None:
    """End this process's children at once, where the system lists them. A worker that is still starting would find the
    end of what its parent tells it, and print a traceback."""
    for path in Path("/proc/self/task").glob("*/children"):
        for child in path.read_text().split():
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.kill(int(child), signal.SIGKILL)
