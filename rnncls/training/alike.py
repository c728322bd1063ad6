"""What the processes of one run must have in common before they train together."""

import socket

import torch
from torch import Tensor

from rnncls.config import flatten
from rnncls.data import Task
from rnncls.errors import DataError, Elsewhere, MachineError, Problem
from rnncls.rundir.checkpoint import versions
from rnncls.steps.state import TrainState
from rnncls.system.distributed import World

_PLACES = ("data.train", "data.val", "data.test", "model.embeddings")


def be_alike(world: World, state: TrainState, task: Task, engine: str) -> None:
    """Make sure that all processes train the same run, and give them the first one's weights.

    `engine`: the name of the one that takes the steps.

    Raises: MachineError if configs, versions, devices or engines differ. DataError if data files
    do. In all but the first process, Elsewhere instead. PeerError.
    """
    machine = {
        **{name: value for name, value in versions().items() if name != "threads"},
        "device": state.device.type,
        "engine": engine,
    }
    world.require_same("the machine", machine, MachineError)
    if state.device.type == "cuda":
        _require_own_gpu(world, state.device)
    # Data first: what a config leaves open depends on the rows of a file.
    world.require_same("the data", dict(task.fingerprints), DataError)
    world.require_same("the config", _without_places(task), MachineError)

    # They are the same where the machines compute alike; nobody has to believe that they do.
    averages = () if state.average is None else state.average.parameters()
    world.share_weights([*state.model.parameters(), *averages, *_optimizer_tensors(state)])


def _require_own_gpu(world: World, device: torch.device) -> None:
    """Raise MachineError if two processes have the same GPU, which NCCL cannot add up."""
    properties = torch.cuda.get_device_properties(device)
    own = f"{socket.gethostname()}, {getattr(properties, 'uuid', device)}"
    everybody = world.gather(own)
    for rank, gpu in enumerate(everybody):
        other = everybody.index(gpu)
        if other == rank:
            continue
        if not world.is_first:
            raise Elsewhere(MachineError.exit_code)
        raise MachineError(
            Problem(
                f"ranks {other} and {rank} have the same GPU",
                "device",
                found=gpu,
                remedy="device=cuda without a number, and no more processes than GPUs",
                id="R25",
            )
        )


def _without_places(task: Task) -> dict[str, object]:
    """Return the config, but for where files are.

    The content of data files is compared, and embeddings are those of the first process.
    """
    flat = flatten(task.config)
    return {key: value for key, value in flat.items() if key not in _PLACES}


def _optimizer_tensors(state: TrainState) -> list[Tensor]:
    """Return the tensors of the optimizer's state, in an order that all processes share."""
    found = []
    for parameter in state.model.parameters():
        of_parameter = state.optimizer.state.get(parameter, {})
        for name in sorted(of_parameter):
            value = of_parameter[name]
            if isinstance(value, Tensor):
                found.append(value)
    return found
