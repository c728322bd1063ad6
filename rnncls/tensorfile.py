"""One file of named tensors and a state text, written atomically and verified before anything in it is used.

The safetensors format, no pickle. The metadata holds exactly three strings:

    format   rnncls-checkpoint/1
    state    JSON text, the caller's
    sha256   over the state text and every tensor's name, dtype, shape and bytes
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rnncls.errors import CheckpointError, Damaged, MachineError, Problem
from rnncls.files import replace, writing

FORMAT = "rnncls-checkpoint/1"
MAX_HEADER_BYTES = 16 * 2**20
MAX_FILE_BYTES = 64 * 2**30
_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1}
_DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.int64: "I64"}


def write(path: Path, state: str, tensors: dict[str, Tensor]) -> None:
    """Commit the file at `path`, or leave what was there. Raises WriteError."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    fields = (
        (name, _DTYPE_NAMES[tensor.dtype], list(tensor.shape), tensor.numpy().tobytes())
        for name, tensor in sorted(tensors.items())
    )
    metadata = {"format": FORMAT, "state": state, "sha256": _digest(state, fields)}
    content = safetensors.torch.save(tensors, metadata)
    with writing(path, "cannot write the checkpoint", needed=len(content)):
        replace(path, content)


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The state text and the tensors, on the CPU.

    Raises CheckpointError when the file is missing, damaged, foreign or of another format version, and MachineError
    when it cannot be read.
    """
    data = _read_file(path)
    metadata, entries, start = _read_header(path, data)
    if set(metadata) != {"format", "state", "sha256"}:
        found = ", ".join(sorted(metadata)) or "no metadata"
        expected = f"a checkpoint of rnncls ({FORMAT})"
        raise CheckpointError(Problem("not a checkpoint of rnncls", str(path), expected, found, id="K4"))
    if metadata["format"] != FORMAT:
        found = metadata["format"]
        raise CheckpointError(Problem("a checkpoint of another version", str(path), FORMAT, found, id="K10"))
    content = memoryview(data)[start:]
    fields = (
        (name, entry["dtype"], entry["shape"], content[slice(*entry["data_offsets"])])
        for name, entry in sorted(entries.items())
    )
    if _digest(metadata["state"], fields) != metadata["sha256"]:
        raise damaged(path, "its contents differ from their checksum", "K3")
    return metadata["state"], safetensors.torch.load(data)


def _digest(state: str, tensors: Iterable[tuple[str, str, list[int], bytes | memoryview]]) -> str:
    """SHA-256 over the state text and the tensors in name order, each field preceded by its length."""
    sha = hashlib.sha256()

    def add(field: bytes | memoryview) -> None:
        sha.update(len(field).to_bytes(8, "little"))
        sha.update(field)

    add(state.encode())
    for name, dtype, shape, content in tensors:
        add(name.encode())
        add(dtype.encode())
        add(json.dumps(shape).encode())
        add(content)
    return sha.hexdigest()


def _read_file(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        remedy = "a checkpoint file or a run directory"
        raise CheckpointError(Problem("no such checkpoint", str(path), remedy=remedy, id="K1")) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            remedy = "the path of the file itself"
            raise CheckpointError(Problem("a symbolic link", str(path), "a file", remedy=remedy, id="K7")) from None
        raise _cannot_read(path, error) from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            expected = f"a regular file of at most {MAX_FILE_BYTES:,} bytes"
            raise CheckpointError(Problem("not a checkpoint", str(path), expected, id="K4"))
        try:
            return file.read()
        except OSError as error:
            raise _cannot_read(path, error) from None


def _cannot_read(path: Path, error: OSError) -> MachineError:
    remedy = "the permissions of the file, or the disk"
    return MachineError(Problem(f"cannot read the checkpoint: {error.strerror}", str(path), remedy=remedy, id="K23"))


def _read_header(path: Path, data: bytes) -> tuple[dict[str, str], dict[str, dict[str, Any]], int]:
    """Metadata, tensor entries and the offset of the tensor bytes; CheckpointError unless all of it is sound."""
    if data[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        remedy = "load it where you trust its origin and save its tensors as safetensors"
        raise CheckpointError(Problem("a pickle-based file; rnncls never unpickles", str(path), remedy=remedy, id="K5"))
    size = int.from_bytes(data[:8], "little")
    start = 8 + size
    if len(data) < 8 or size > MAX_HEADER_BYTES or start > len(data):
        raise damaged(path, f"{len(data):,} bytes that are no safetensors file, or a part of one", "K2")
    try:
        header = json.loads(data[8:start], object_pairs_hook=_unique)
        metadata = header.pop("__metadata__", {})
        spans = sorted(_span(entry) for entry in header.values())
        for text in (*header, *metadata.values()):
            text.encode()  # a number has no encode, half a surrogate pair has no encoding
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise damaged(path, "a header that is no safetensors header", "K6") from None
    ends = [0, *(end for _, end in spans)]
    contiguous = all(begin == end for (begin, _), end in zip(spans, ends, strict=False))
    if not contiguous or ends[-1] != len(data) - start:
        raise damaged(path, "tensors with holes, overlaps or missing bytes", "K2")
    return metadata, header, start


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    """The byte range of a header entry. Raises ValueError unless dtype, shape and range agree."""
    begin, end = entry["data_offsets"]
    size = _DTYPE_BYTES[entry["dtype"]]
    for dimension in entry["shape"]:
        if type(dimension) is not int or dimension < 0:
            raise ValueError
        size *= dimension
    if set(entry) != {"dtype", "shape", "data_offsets"} or type(begin) is not int or type(end) is not int:
        raise ValueError
    if end - begin != size:
        raise ValueError
    return begin, end


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate keys")
    return result


def damaged(path: Path, found: str, id: str) -> Damaged:
    remedy = "another checkpoint of the run; this one cannot be trusted"
    return Damaged(Problem("the checkpoint is damaged", str(path), "a whole checkpoint", found, remedy, id=id))
