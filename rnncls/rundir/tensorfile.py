"""One file of named tensors and a state text, written atomically and verified when it is read.

It is in the safetensors format; nothing is pickled. The metadata holds exactly three strings:

    format   rnncls-checkpoint/1
    state    JSON text, the caller's
    sha256   over the state text and every tensor's name, dtype, shape and bytes

The reader of safetensors checks the header: types, shapes, ranges without holes or overlaps. This
module adds an early exit, before a huge file that cannot be a checkpoint is read, and the checksum.
"""

import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from rnncls.errors import CheckpointError, Damaged, MachineError, Problem
from rnncls.system.files import open_regular, write_atomically
from rnncls.system.refusals import writing

FORMAT = "rnncls-checkpoint/1"
MAX_HEADER_BYTES = 16 * 2**20

# Far beyond any tensor of a model or its optimizer.
MAX_RANK = 8
MAX_DIMENSION = 2**40

# The largest model that a config can ask for has 1024 layers of two directions: 8,195 tensors, and
# Adam has three more for each of them.
MAX_TENSORS = 33_000

# A tensor's entry has five texts, three brackets and five commas. The parser never begins with a
# header that has more: the worst would take 20 times its memory, and seconds.
MAX_TEXTS = 5 * MAX_TENSORS
MAX_MARKS = 8 * MAX_TENSORS

# A text of JSON. One that does not end goes up to the end, so that no other is sought within it.
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)

# The names that safetensors gives to the types that rnncls writes.
_DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.int64: "I64"}

# How pickles of protocols 2 to 5 begin, and zip files, which torch.save writes around a pickle.
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def write(path: Path, state: str, tensors: dict[str, Tensor]) -> None:
    """Commit the file at `path`, or leave what was there. Raises: WriteError."""
    # Copies: safetensors refuses tensors that share memory, as views into one flat storage do.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "state": state, "sha256": _digest(state, tensors)}
    content = safetensors.torch.save(tensors, metadata)
    with writing(path, "cannot write the checkpoint", needed=len(content)):
        write_atomically(path, content)


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the state text and the tensors, on the CPU, once the checksum is verified.

    Raises: CheckpointError if the file is missing, damaged, foreign or of another format version.
    MachineError if it cannot be read.
    """
    content, metadata = _read_file(path)

    # Whatever safetensors or torch raise for a hostile header: neither says which errors.
    try:
        tensors = safetensors.torch.load(content)
    except Exception:
        raise damaged(path, "a header that is not a safetensors header", "K6") from None

    # Neither of these two is damage: the file is whole, but another program's or version's.
    if set(metadata) != {"format", "state", "sha256"}:
        raise CheckpointError(
            Problem(
                "not a checkpoint of rnncls",
                str(path),
                expected=f"a checkpoint of rnncls ({FORMAT})",
                found=", ".join(sorted(metadata)) or "no metadata",
                id="K4",
            )
        )
    if metadata["format"] != FORMAT:
        raise CheckpointError(
            Problem(
                "a checkpoint of another version",
                str(path),
                expected=FORMAT,
                found=metadata["format"],
                id="K10",
            )
        )

    if not all(_is_ours(tensor) for tensor in tensors.values()):
        raise damaged(path, "tensors of a type or shape that rnncls does not write", "K6")
    if _digest(metadata["state"], tensors) != metadata["sha256"]:
        raise damaged(path, "its contents differ from their checksum", "K3")
    return metadata["state"], tensors


def _is_ours(tensor: Tensor) -> bool:
    """Return whether rnncls may have written such a tensor, and NumPy can hold it.

    NumPy, which `_digest` needs, has fewer dimensions and types than torch.
    """
    has_shape = tensor.dim() <= MAX_RANK and max(tensor.shape, default=0) <= MAX_DIMENSION
    return has_shape and tensor.dtype in _DTYPE_NAMES


def _digest(state: str, tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of state text and tensors in name order, each field after its length."""
    sha = hashlib.sha256()

    # Lengths first, or bytes could move from one field into the next without a trace.
    def add(field: bytes) -> None:
        sha.update(len(field).to_bytes(8, "little"))
        sha.update(field)

    add(state.encode())
    for name, tensor in sorted(tensors.items()):
        add(name.encode())
        add(_DTYPE_NAMES[tensor.dtype].encode())
        add(json.dumps(list(tensor.shape)).encode())
        # Flat, because an empty tensor may have a shape whose product NumPy cannot count.
        add(tensor.flatten().numpy().tobytes())
    return sha.hexdigest()


def _read_file(path: Path) -> tuple[bytes, dict[str, str]]:
    """Return the whole file and its metadata. The rest is read only if the header fits the size."""
    try:
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            # A length that is too large to be true reads no more than the most that is allowed.
            head = file.read(8)
            head += file.read(min(int.from_bytes(head, "little"), MAX_HEADER_BYTES))
            metadata = _read_header(path, head, size)
            content = head + file.read()
    except OSError as error:
        raise cannot_read(path, error) from None

    # Checkpoints appear by a rename and never grow: another program is writing this file.
    if len(content) != size:
        raise damaged(path, "a file that changes while it is read", "K2")
    return content, metadata


def _open(path: Path) -> IO[bytes]:
    try:
        return open(open_regular(path), "rb")
    except FileNotFoundError:
        raise CheckpointError(
            Problem(
                "no such checkpoint",
                str(path),
                remedy="a checkpoint file or a run directory",
                id="K1",
            )
        ) from None
    # ELOOP: a symbolic link. EINVAL and ENXIO: a folder, a pipe, a device, a socket.
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL, errno.ENXIO):
            raise
        raise CheckpointError(
            Problem(
                "a symbolic link" if error.errno == errno.ELOOP else "not a regular file",
                str(path),
                expected="a file",
                remedy="the path of the file itself",
                id="K7",
            )
        ) from None


def _read_header(path: Path, head: bytes, size: int) -> dict[str, str]:
    """Return the metadata of a file of `size` bytes that begins with `head`.

    Raises: CheckpointError for a pickle, for a header that is not JSON as rnncls writes it, and
    for a file that is longer or shorter than its header says.
    """
    if head.startswith(_PICKLES):
        raise CheckpointError(
            Problem(
                "a pickle-based file; rnncls never unpickles",
                str(path),
                remedy="load it where you trust its origin and save its tensors as safetensors",
                id="K5",
            )
        )

    # The first 8 bytes are the length of the header that follows, little-endian.
    if len(head) < 8 or len(head) != 8 + int.from_bytes(head[:8], "little"):
        found = f"{size:,} bytes that are not a safetensors file, or a part of one"
        raise damaged(path, found, "K2")

    if _is_crowded(head):
        raise damaged(path, "a header with far more entries than rnncls writes", "K6")

    try:
        header = json.loads(head[8:].decode(), object_pairs_hook=_require_unique)
        metadata: dict[str, str] = header.pop("__metadata__", {})
        ends = [entry["data_offsets"][1] for entry in header.values()]
        is_whole = len(head) + max(ends, default=0) == size

        # A number has no encode, and half a surrogate pair has no encoding.
        for text in (*header, *metadata.values()):
            text.encode()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise damaged(path, "a header that is not a safetensors header", "K6") from None
    if not is_whole:
        raise damaged(path, "missing bytes, or more than its header says", "K2")
    return metadata


def _is_crowded(header: bytes) -> bool:
    """Return whether a header has more texts, brackets and commas than any of rnncls."""
    # A quote behind a backslash is within a text, or ends one behind an escaped backslash: of the
    # two quotes of a text, one at least is counted.
    if header.count(b'"') - header.count(b'\\"') > 2 * MAX_TEXTS:
        return True

    # The state is one text, with brackets and commas of its own.
    rest = _TEXT.sub(b"", header)
    return sum(rest.count(mark) for mark in (b"{", b"[", b",")) > MAX_MARKS


def _require_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse duplicate keys: two readers may take a different one of them."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate keys")
    return result


def cannot_read(path: Path, error: OSError) -> MachineError:
    """Return what to raise for an OSError that does not mean a missing or damaged file."""
    return MachineError(
        Problem(
            f"cannot read the checkpoint: {error.strerror}",
            str(path),
            remedy="the permissions of the file, or the disk",
            id="K23",
        )
    )


def damaged(path: Path, found: str, id: str) -> Damaged:
    """Return what to raise for a file that cannot be trusted. `id`: the kind of fault."""
    return Damaged(
        Problem(
            "the checkpoint is damaged",
            str(path),
            expected="an undamaged checkpoint",
            found=found,
            remedy="another checkpoint of the run; this one cannot be trusted",
            id=id,
        )
    )
