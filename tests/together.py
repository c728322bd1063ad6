"""Processes that train the same runs together, for tests/test_distributed.py.

    python -m tests.together FOLDER

FOLDER/cases.json lists runs, each with its number of processes. All runs of one number are trained
by the same processes, forks of this one, which has imported torch for all of them. A run with the
name `x` that 3 processes train is FOLDER/3/x; beside it, FOLDER/3/x.0.json says what the first of
them holds at its end, and so on.
"""

import hashlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from rnncls.config.load import parse_config
from rnncls.errors import RnnclsError
from rnncls.steps import eager
from rnncls.steps.state import TrainState
from rnncls.system.distributed import World
from rnncls.system.launch import launch_of
from rnncls.system.meeting import joined
from rnncls.training.fit import fit
from rnncls.training.resume import resume

TIMEOUT_S = 60

Case = dict[str, Any]


def start_together(size: int, variables: dict[str, str]) -> TCPStore:
    """Set the variables of a launcher for so many processes, but for RANK.

    Returns where they meet, a store of this process that lives as long as the object.
    """
    store = TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
    variables["MASTER_ADDR"] = "127.0.0.1"
    variables["MASTER_PORT"] = str(store.port)
    variables["WORLD_SIZE"] = str(size)
    # Says that the store is there already, as torchrun's is.
    variables["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    variables["TORCHELASTIC_RESTART_COUNT"] = "0"
    return store


def train_all(folder: Path, cases: list[Case], size: int) -> bool:
    """Train cases by so many forks of this process; return whether all of them ended well."""
    # Forked before there is a store, whose threads may hold a lock that a fork would wait for.
    pids = []
    pipes = []
    for rank in range(size):
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            _train_as(rank, reading, folder, cases)
        os.close(reading)
        pids.append(pid)
        pipes.append(writing)

    store = start_together(size, environment := dict[str, str]())
    for writing in pipes:
        with os.fdopen(writing, "w") as pipe:
            pipe.write(json.dumps(environment) + "\n")
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    del store
    return not any(codes)


def _train_as(rank: int, reading: int, folder: Path, cases: list[Case]) -> None:
    """Train cases as one of the processes, and end this one.

    `reading`: the end of a pipe from which a line with the variables of the launcher comes.
    """
    code = 1
    try:
        with os.fdopen(reading) as pipe:
            environment = json.loads(pipe.readline())
        os.environ.update(environment, RANK=str(rank))
        # After a fork PyTorch makes its autograd engine anew when it is next used.
        torch.zeros(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]
        with joined(launch_of(), TIMEOUT_S) as world:
            for case in cases:
                _train(case, folder / f"{case['name']}.{rank}.json", folder / case["name"], world)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _train(case: Case, result: Path, run_dir: Path, world: World | None) -> None:
    """Train or resume one run, and write what this process holds at its end."""
    ended: dict[str, Any] = {"code": 0}
    with pytest.MonkeyPatch.context() as patch:
        if "spoiled" in case:
            _spoil(patch, case["spoiled"], world)
        try:
            if "resume" in case:
                state = resume(case["resume"], case["overrides"], world=world)
            else:
                state = fit(parse_config(case["config"], "test"), run_dir, world=world)
            ended["bits"] = bits_of(state)
        except RnnclsError as error:
            ended["code"] = error.exit_code
            ended["found"] = error.problems[0].found if error.problems else ""
    result.write_text(json.dumps(ended))


def bits_of(state: TrainState) -> str:
    """Return a hash of all weights and of all that the optimizer has to each of them."""
    digest = hashlib.sha256()
    for average in state.evaluated.parameters():
        digest.update(average.detach().numpy().tobytes())
    for parameter in state.model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
        for _, value in sorted(state.optimizer.state[parameter].items()):
            if isinstance(value, torch.Tensor):
                digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _spoil(patch: pytest.MonkeyPatch, steps: list[int], world: World | None) -> None:
    """Let a weight of the last process alone be NaN during some steps, and then what it was."""
    original = eager.train_step
    is_last = world is None or world.rank == world.size - 1

    def stepping(state: TrainState, *arguments: Any) -> None:
        is_spoiled = is_last and state.step in steps
        bias = state.model.head.bias
        kept = bias.detach().clone()
        if is_spoiled:
            bias.data[0] = float("nan")
        original(state, *arguments)
        if is_spoiled:
            bias.data.copy_(kept)

    patch.setattr(eager, "train_step", stepping)


def main() -> None:
    folder = Path(sys.argv[1])
    cases: list[Case] = json.loads((folder / "cases.json").read_text())
    torch.set_num_threads(1)
    # A run of many processes may be resumed by a few, and then by many again: in the given order.
    while cases:
        size = cases[0]["size"]
        others = next((i for i, case in enumerate(cases) if case["size"] != size), len(cases))
        (folder / str(size)).mkdir(exist_ok=True)
        if not train_all(folder / str(size), cases[:others], size):
            sys.exit(f"{size} processes did not end well")
        cases = cases[others:]


if __name__ == "__main__":
    main()
