"""Several processes of one run, which tests start as a launcher does.

To import torch takes each process seconds. So one process imports it, and forks those of a test:
they are real processes, with streams, variables and limits of their own.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.helpers import PYTHON, ROOT, ignoring_no_signals, started, wait_for

# Reads what to do as lines of JSON: fork a process, or say how one has ended (null: not yet).
NURSERY = """
import json, os, resource, sys
import rnncls.cli.app, rnncls.training.fit, rnncls.training.resume, rnncls.evaluation.evaluate
import rnncls.rundir.log, rnncls.dashboard.board, rnncls.steps.engines
from rnncls.cli import main

def begin(order):
    os.chdir(order["cwd"])
    os.environ.update(order["variables"])
    for descriptor, path in enumerate(order["streams"]):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["rnncls", *order["words"]]
    exec(order["before"], {})
    main()

for line in sys.stdin:
    order = json.loads(line)
    if "pid" in order:
        pid, status = os.waitpid(order["pid"], os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    else:
        answer = os.fork()
        if not answer:
            begin(order)
    print(json.dumps(answer), flush=True)
"""

# Far more than --dist-timeout, also on a busy machine.
PATIENCE_S = 60

SMOKE: list[str] = ["train", "--config", "configs/smoke.yaml", "device=cpu", "train.engine=eager"]
SMOKE += ["train.plots=false", "--dist-timeout=5"]
ENDLESS = [*SMOKE, "train.max_steps=1000000", "train.checkpoint_every=50"]


class Rank:
    """One process of a launch."""

    def __init__(
        self, nursery: subprocess.Popen[str], rank: int, pid: int, stdout: Path, stderr: Path
    ) -> None:
        self.rank = rank
        self.pid = pid
        self._nursery = nursery
        self._stdout = stdout
        self._stderr = stderr
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        """Return how it ended; None while it runs."""
        if self._exit_code is None:
            self._exit_code = _ask(self._nursery, {"pid": self.pid})
        return self._exit_code

    def wait(self) -> int:
        """Return how it ended, when it has."""
        give_up_at = time.monotonic() + PATIENCE_S
        while self.poll() is None:
            assert time.monotonic() < give_up_at, f"rank {self.rank} hangs: {self.stderr}"
            time.sleep(0.02)
        assert self._exit_code is not None
        return self._exit_code

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()


def _ask(nursery: subprocess.Popen[str], order: dict[str, Any]) -> Any:
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    print(json.dumps(order), file=nursery.stdin, flush=True)
    return json.loads(nursery.stdout.readline())


@contextmanager
def nursery() -> Iterator[subprocess.Popen[str]]:
    """Start the process that forks others. All of them end with the block, and hear signals."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    variables = os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    with ExitStack() as stack:
        with ignoring_no_signals():
            process = stack.enter_context(
                started([PYTHON, "-c", NURSERY], **streams, env=variables)
            )
        yield process


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def by_hand(
    nursery: subprocess.Popen[str],
    folder: Path,
    *commands: Sequence[object],
    size: int = 0,
    port: int = 0,
    before: Sequence[str] = (),
    first: int = 0,
) -> list[Rank]:
    """Start `rnncls` with the words of one command for each rank, with variables set by hand.

    `folder` gets their streams. `size`: the number of processes that they are told of, if there
    are others. `before`: Python that each runs first. `first`: the rank of the first command.
    """
    port = port or free_port()
    ranks = []
    for rank, words in enumerate(commands, first):
        variables = {
            "RANK": str(rank),
            "WORLD_SIZE": str(size or len(commands)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        streams = [folder / f"{name}-{port}-{rank}" for name in ("in", "out", "err")]
        order = {
            "cwd": str(ROOT),
            "variables": variables,
            "streams": ["/dev/null", *map(str, streams[1:])],
            "words": [*map(str, words)],
            "before": before[rank - first] if before else "",
        }
        pid = _ask(nursery, order)
        ranks.append(Rank(nursery, rank, pid, streams[1], streams[2]))
    return ranks


def wait_for_step(
    run_dir: Path, step: int, ranks: Sequence[Rank | subprocess.Popen[str]] = ()
) -> None:
    """Wait until a run has logged a step; fail if one of its processes has ended before."""

    def is_there() -> bool:
        for rank in ranks:
            assert rank.poll() is None, rank.stderr
        lines: list[str] = []
        if (run_dir / "metrics.jsonl").exists():
            lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        return bool(lines) and json.loads(lines[-1])["step"] >= step

    wait_for(is_there)
