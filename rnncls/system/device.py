"""The device that computes: which one, with how many threads, and how reproducibly."""

import os
import re

import torch

from rnncls.config import DEVICE_PATTERN, Config
from rnncls.errors import ConfigError, MachineError, Problem
from rnncls.system.launch import Launch, launch_of
from rnncls.system.streams import say


def resolve_device(name: str) -> torch.device:
    """Return the torch device for `auto`, `cpu`, `cuda` or `cuda:INDEX`.

    Where a launcher has started several processes on this machine, each gets a GPU of its own
    unless an index is given.

    Raises: ConfigError for any other name. MachineError if the machine has no such device.
    """
    if not re.fullmatch(DEVICE_PATTERN, name):
        raise ConfigError(
            Problem(
                "no such device",
                "device",
                expected="auto, cpu, cuda or cuda:INDEX",
                found=name,
                id="C9",
            )
        )

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device(name)

    launch = launch_of()
    if name == "cuda" and launch.local_size > 1:
        name = f"cuda:{_own_gpu(launch)}"
    _require_cuda_device(name)
    return torch.device(name)


def _own_gpu(launch: Launch) -> int:
    """Return the number of the GPU of this process, one of several on this machine.

    Raises: MachineError if there are more processes than GPUs.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # Some launchers let each process see its own GPU alone.
    if count == 1 and os.environ.get("CUDA_VISIBLE_DEVICES", ",").isdecimal():
        return 0
    if 0 < count < launch.local_size:
        raise MachineError(
            Problem(
                "more processes than GPUs",
                "LOCAL_WORLD_SIZE",
                expected=f"at most {count}",
                found=f"{launch.local_size}",
                remedy=f"--nproc-per-node {count}, or device=cpu",
                id="R25",
            )
        )
    return launch.local_rank


def _require_cuda_device(name: str) -> None:
    """Raise MachineError unless there is a device of that index.

    torch.device itself takes the index modulo 256.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # Without an index it is the first device.
    index = int(name.partition(":")[2] or 0)
    if index < count:
        return

    build = "a build without CUDA"
    if torch.version.cuda:
        build = f"built for CUDA {torch.version.cuda}"

    remedy = "device=auto or device=cpu"
    if count > 0:
        remedy = f"cuda:0 to cuda:{count - 1}"

    raise MachineError(
        Problem(
            f"no device {name}",
            "device",
            expected="a CUDA device",
            found=f"{count} CUDA devices (torch {torch.__version__}, {build})",
            remedy=remedy,
            id="R17",
        )
    )


def describe(device: torch.device) -> str:
    """Return `cpu, 1 thread` or the name of the GPU, for the first lines of a run."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"

    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'s' if threads > 1 else ''}"


def prepare_device(config: Config) -> torch.device:
    """Set threads, determinism and precision of this process, and return the config's device.

    Before CUDA is first used: it reads some of these settings only then. Raises: MachineError
    without the device.
    """
    set_threads(config.train.num_threads)
    if config.train.deterministic:
        make_deterministic()
    set_precision(config.train.precision)
    device = resolve_device(config.device)
    if device.index is not None:
        # Also for what names no device, such as the exchange between processes.
        torch.cuda.set_device(device)
    return device


def set_threads(count: int | None) -> None:
    """Let each operation on the CPU use so many threads, for the whole process.

    None leaves torch's own choice: a thread for each core. One time step of a small model is so
    little work that several threads mostly wait for each other, and the longer the busier the cores
    are.
    """
    if count is not None:
        torch.set_num_threads(count)


def make_deterministic() -> None:
    """Make CUDA compute the same bits every time, for the whole process, at some cost in speed.

    The CPU does so anyway. cuDNN's RNN kernels need the cuBLAS workspace setting (PyTorch's
    documentation of nn.RNN), before CUDA is first used; if it is too late, a warning says so.
    """
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if in_use and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        say(
            "rnncls: warning: CUDA is already in use, so runs may not be reproducible; "
            "set CUBLAS_WORKSPACE_CONFIG=:16:8 before the start"
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")

    # Operations without a deterministic version raise an error from here on.
    torch.use_deterministic_algorithms(True)
    # Filling new tensors with NaN finds reads of memory that was never written; it only costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Benchmarking would choose another algorithm in every process.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def set_precision(name: str) -> None:
    """Allow TF32 on CUDA for the whole process if `name` is "tf32", else forbid it.

    float32 means float32: cuDNN would use TF32 unless told otherwise.
    """
    # Two switches: cuDNN, which computes the recurrence, has its own.
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    torch.backends.cudnn.allow_tf32 = name == "tf32"


def describe_precision(name: str, device: torch.device) -> str:
    """Return the precision that is computed with: on a CPU, tf32 is float32."""
    return "float32" if name == "tf32" and device.type == "cpu" else name
