"""Ranks without the seconds that each takes to import torch: one process imports it and forks them.

As a script it is that process; `RankServer` starts it and asks for runs. What torchrun would set is set here.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST_SECONDS = 120
TRAIN = ROOT / "train" / "main.py"


@dataclass
class Ended:
    """How the ranks of one run ended, by rank."""

    codes: list
    outputs: list
    errors: list


class RankServer:
    """Start it once, then `run` as often as needed; use it in a with block."""

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def run(self, arguments, *, world_size=2, prelude="", script=TRAIN):
        """Run a script as so many ranks; `prelude` is code that each runs first, with `rank` in it."""
        request = {
            "arguments": [*map(str, arguments)], "world_size": world_size, "prelude": prelude, "script": str(script),
        }  # fmt: skip
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))


def serve():
    sys.path[0] = str(ROOT)
    import torch._dynamo  # noqa: F401
    import torch.distributed.tensor  # noqa: F401

    import train.main  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            pids = [fork_rank(rank, request, port=port, folder=Path(folder)) for rank in range(request["world_size"])]
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
            texts = [
                [(Path(folder) / f"{rank}.{name}").read_text() for rank in range(len(pids))] for name in ("out", "err")
            ]
        print(json.dumps({"codes": codes, "outputs": texts[0], "errors": texts[1]}), flush=True)


def fork_rank(rank, request, *, port, folder):
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(LONGEST_SECONDS)  # kills what hangs
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_CREAT | os.O_WRONLY), descriptor)
    size = str(request["world_size"])
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    sys.argv = [request["script"], *request["arguments"]]
    code = 1
    try:
        exec(request["prelude"], {"rank": rank})
        runpy.run_path(request["script"], run_name="__main__")  # ends the process itself
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
