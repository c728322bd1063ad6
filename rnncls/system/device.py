"""Which device computes, with how many threads, and how reproducibly."""

import os
import re
import sys

import torch

from rnncls.config import DEVICE_PATTERN
from rnncls.errors import ConfigError, MachineError, Problem


def resolve_device(name: str) -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:INDEX`.

    Raises ConfigError for any other name, and MachineError where the device is not there.
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
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (
            int(name.partition(":")[2] or 0) >= count
        ):  # torch.device would take the index modulo 256
            built = (
                f"built for CUDA {torch.version.cuda}"
                if torch.version.cuda
                else "a build without CUDA"
            )
            found = f"{count} CUDA devices (torch {torch.__version__}, {built})"
            remedy = "device=auto or device=cpu" if count == 0 else f"cuda:0 to cuda:{count - 1}"
            raise MachineError(
                Problem(
                    f"no device {name}",
                    "device",
                    expected="a CUDA device",
                    found=found,
                    remedy=remedy,
                    id="R17",
                )
            )
    return torch.device(name)


def describe(device: torch.device) -> str:
    """`cpu, 1 thread` or the name of the GPU, for the first lines of a run."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'s' if threads > 1 else ''}"


def make_deterministic() -> None:
    """Have CUDA compute the same bits every time, at some cost in speed; the CPU does so anyway. For the whole process.

    cuDNN's RNN kernels need the cuBLAS workspace setting (PyTorch's documentation of nn.RNN), before CUDA is
    first used.
    """
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if used and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        print(
            "rnncls: warning: CUDA is in use already; set CUBLAS_WORKSPACE_CONFIG=:16:8 before",
            file=sys.stderr,
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it only costs time
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def set_precision(name: str) -> None:
    """Whether CUDA may use TF32, for the whole process. float32 means float32: cuDNN would use TF32 unless told."""
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    torch.backends.cudnn.allow_tf32 = name == "tf32"


def describe_precision(name: str, device: torch.device) -> str:
    """What is computed with; there is no TF32 on a CPU."""
    return "float32" if name == "tf32" and device.type == "cpu" else name
