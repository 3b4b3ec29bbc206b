"""How ranks end: with the right exit code, everything said, and without shutting the interpreter down."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Each case runs in a child of one process, since importing torch takes seconds.
ENDINGS = """
import atexit, os, sys
sys.path[0] = {root!r}
from train.distributed import end_process

def speak(code):
    print("the last words of", code)
    return code

def fail():
    raise RuntimeError("a partner is gone")

def misuse():
    sys.exit(2)

for main in (lambda: speak(0), lambda: speak(3), fail, misuse):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        atexit.register(print, "the interpreter shuts down")
        end_process(main)
    print("code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_rank_ends_with_its_code_and_all_output_but_without_a_shutdown_of_the_interpreter():
    # In the shutdown a gloo thread that drops its last tensor would be unwound, which aborts the process.
    command = [sys.executable, "-c", ENDINGS.format(root=str(ROOT))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stdout.splitlines() == [
        "the last words of 0", "code 0",
        "the last words of 3", "code 3",
        "code 1",
        "the interpreter shuts down", "code 2",  # flags that cannot be read: there is no group yet
    ]  # fmt: skip
    assert result.stderr.count("RuntimeError: a partner is gone") == 1
