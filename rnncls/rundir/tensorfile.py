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
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from rnncls.errors import CheckpointError, Damaged, MachineError, Problem
from rnncls.system.files import open_regular, write_atomically, writing

FORMAT = "rnncls-checkpoint/1"
MAX_HEADER_BYTES = 16 * 2**20
MAX_RANK, MAX_DIMENSION = 8, 2**40
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
        write_atomically(path, content)


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The state text and the tensors, on the CPU.

    Raises CheckpointError when the file is missing, damaged, foreign or of another format version, and MachineError
    when it cannot be read.
    """
    data, metadata, entries, start = _read_file(path)
    if set(metadata) != {"format", "state", "sha256"}:
        found = ", ".join(sorted(metadata)) or "no metadata"
        expected = f"a checkpoint of rnncls ({FORMAT})"
        raise CheckpointError(
            Problem(
                "not a checkpoint of rnncls", str(path), expected=expected, found=found, id="K4"
            )
        )
    if metadata["format"] != FORMAT:
        found = metadata["format"]
        raise CheckpointError(
            Problem(
                "a checkpoint of another version", str(path), expected=FORMAT, found=found, id="K10"
            )
        )
    content = memoryview(data)[start:]
    fields = (
        (name, entry["dtype"], entry["shape"], content[slice(*entry["data_offsets"])])
        for name, entry in sorted(entries.items())
    )
    if _digest(metadata["state"], fields) != metadata["sha256"]:
        raise damaged(path, "its contents differ from their checksum", "K3")
    try:
        return metadata["state"], safetensors.torch.load(data)
    except Exception:  # signed, but not what safetensors takes for its format
        raise damaged(path, "tensors that cannot be loaded", "K6") from None


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


def _read_file(path: Path) -> tuple[bytes, dict[str, str], dict[str, dict[str, Any]], int]:
    """The whole file, its metadata, its tensor entries and where the tensor bytes begin.

    The header is checked before the rest is read: a huge file that is no checkpoint costs nothing.
    """
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(8)
            head += file.read(min(int.from_bytes(head, "little"), MAX_HEADER_BYTES))
            metadata, entries = _read_header(path, head, size)
            data = head + file.read()
    except OSError as error:
        raise cannot_read(path, error) from None
    if len(data) != size:
        raise damaged(path, "a file that changes while it is read", "K2")
    return data, metadata, entries, len(head)


def _opened(path: Path) -> IO[bytes]:
    try:
        return open(open_regular(path), "rb")
    except FileNotFoundError:
        remedy = "a checkpoint file or a run directory"
        raise CheckpointError(
            Problem("no such checkpoint", str(path), remedy=remedy, id="K1")
        ) from None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL, errno.ENXIO):
            raise
        what = "a symbolic link" if error.errno == errno.ELOOP else "not a regular file"
        raise CheckpointError(
            Problem(
                what, str(path), expected="a file", remedy="the path of the file itself", id="K7"
            )
        ) from None


def cannot_read(path: Path, error: OSError) -> MachineError:
    """What to raise for an OSError that does not mean a missing or damaged file."""
    remedy = "the permissions of the file, or the disk"
    return MachineError(
        Problem(f"cannot read the checkpoint: {error.strerror}", str(path), remedy=remedy, id="K23")
    )


def _read_header(
    path: Path, head: bytes, size: int
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Metadata and tensor entries of a file of `size` bytes; CheckpointError unless all of it is sound."""
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        remedy = "load it where you trust its origin and save its tensors as safetensors"
        raise CheckpointError(
            Problem(
                "a pickle-based file; rnncls never unpickles", str(path), remedy=remedy, id="K5"
            )
        )
    if len(head) < 8 or len(head) != 8 + int.from_bytes(head[:8], "little"):
        raise damaged(path, f"{size:,} bytes that are no safetensors file, or a part of one", "K2")
    try:
        header = json.loads(head[8:].decode(), object_pairs_hook=_unique)
        metadata = header.pop("__metadata__", {})
        spans = sorted(_span(entry) for entry in header.values())
        for text in (*header, *metadata.values()):
            text.encode()  # a number has no encode, half a surrogate pair has no encoding
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise damaged(path, "a header that is no safetensors header", "K6") from None
    ends = [0, *(end for _, end in spans)]
    contiguous = all(begin == end for (begin, _), end in zip(spans, ends, strict=False))
    if not contiguous or ends[-1] != size - len(head):
        raise damaged(path, "tensors with holes, overlaps or missing bytes", "K2")
    return metadata, header


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    """The byte range of a header entry. Raises ValueError unless dtype, shape and range agree."""
    begin, end = entry["data_offsets"]
    size, shape = _DTYPE_BYTES[entry["dtype"]], entry["shape"]
    if (
        set(entry) != {"dtype", "shape", "data_offsets"}
        or type(begin) is not int
        or type(end) is not int
    ):
        raise ValueError
    if type(shape) is not list or len(shape) > MAX_RANK:
        raise ValueError
    for dimension in shape:
        if type(dimension) is not int or not 0 <= dimension <= MAX_DIMENSION:
            raise ValueError
        size *= dimension
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
    return Damaged(
        Problem(
            "the checkpoint is damaged",
            str(path),
            expected="a whole checkpoint",
            found=found,
            remedy=remedy,
            id=id,
        )
    )
