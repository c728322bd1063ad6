"""Keeps machine code between processes: one file for each compiled function.

A file begins with the SHA-256 of the rest, because Numba loads what it is given: one flipped bit in
a pickle or in machine code ends the process with a segmentation fault. The very bytes that were
checked are those that are loaded.

A file appears whole or not at all, and its name stands for everything that the code depends on. So
processes that compile at the same time, also on different machines, do not disturb each other.
"""

import hashlib
import os
import stat
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from tqdm import tqdm

from rnncls.errors import on_one_line
from rnncls.system.files import TEMPORARY, read_regular, write_atomically

MAX_CODE_BYTES = 64 * 2**20  # of one file; the largest has about 1 MB

LEFTOVER_S = 3600  # the age from which a temporary file is nobody's any more

_DIGEST_BYTES = hashlib.sha256().digest_size


class CodeFolder:
    """The folder of the files.

    What is compiled into it, and about how many seconds that takes, is what people are told.
    """

    def __init__(self, path: Path, what: str = "the training step", seconds: int = 20) -> None:
        self.path = path
        self.what = what
        self.seconds = seconds
        self.is_said = False  # that something is compiled

    def read(self, name: str) -> bytes | None:
        """Return what was written under this name; None, and say so, if it has to be compiled."""
        try:
            content = read_regular(self.path / name, MAX_CODE_BYTES)
        except FileNotFoundError:
            pass
        except OSError as error:
            warn(f"compiled code cannot be read from {self.path}: {error.strerror}")
        else:
            code = content[_DIGEST_BYTES:]
            if content[:_DIGEST_BYTES] == _digest(name, code):
                return code
            warn(f"{self.path / name} is damaged; it is compiled anew")

        if not self.is_said:
            self.is_said = True
            how = f"(once, about {self.seconds} s); kept in {self.path}"
            say_compiling(f"{self.what} {how}")
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file. A warning says if it cannot be written: that costs time, and no run."""
        try:
            # A file that a power cut destroys is noticed, and compiled anew.
            write_atomically(self.path / name, _digest(name, content) + content, durable=False)
            self._remove_leftovers()
        except OSError as error:
            warn(f"compiled code cannot be kept in {self.path}: {error.strerror}")

    def _remove_leftovers(self) -> None:
        """Remove what processes left that were killed while they wrote. Raises: OSError."""
        now = datetime.now(UTC).timestamp()
        for path in self.path.glob(f"{TEMPORARY}*"):
            # Another process may be writing it. That takes less than a second.
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > LEFTOVER_S:
                    path.unlink()


class KeptCode:
    """What Numba asks for the machine code of one function before it compiles it.

    Not Numba's own cache: that has an index beside the files, which two processes can bring out of
    step, and loads both unchecked.

    It has to use private parts of Numba. Where another version does not have them, the first call
    raises, before anything is compiled.
    """

    def __init__(self, function: str, folder: CodeFolder) -> None:
        self.function = function
        self.folder = folder

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the code for these types of arguments; None if there is none."""
        from numba.core.compiler import CompileResult
        from numba.core.serialize import loads

        target_context.refresh()
        content = self.folder.read(self._name(sig, target_context.codegen()))
        if content is None:
            return None
        return CompileResult._rebuild(target_context, *loads(content))

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code for these types of arguments."""
        from numba.core.serialize import dumps

        # `data` is a CompileResult, a named tuple. Addresses in this process, which its globals may
        # have, mean nothing in another one.
        code = data._asdict()["library"]
        if not code.has_dynamic_globals:
            self.folder.write(self._name(sig, data.codegen), dumps(data._reduce()))

    def _name(self, sig: Any, codegen: Any) -> str:
        """Return the name of the file, which is another one for all that changes the code."""
        # The magic tuple has the processor and its features. The folder stands for our sources.
        key = (
            sys.version,
            numba.__version__,
            llvmlite.__version__,
            np.__version__,
            codegen.magic_tuple(),
            sig,
        )
        return f"{self.function}.{hashlib.sha256(str(key).encode()).hexdigest()[:16]}.code"


def _digest(name: str, content: bytes) -> bytes:
    # With the name, so that a file of another name is no valid one.
    digest = hashlib.sha256(name.encode() + b"\0")
    digest.update(content)
    return digest.digest()


def code_folder(
    sources: bytes, what: str = "the training step", seconds: int = 20
) -> CodeFolder | None:
    """Return the folder for the machine code of these sources.

    Warn and return None if there is no safe place.
    """
    # 64 bits of the hash are enough to tell versions of the sources apart.
    version = hashlib.sha256(sources).hexdigest()[:16]
    try:
        # A relative path is not valid there (XDG Base Directory Specification).
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not base.is_absolute():
            base = Path.home() / ".cache"

        folder = base.resolve() / "rnncls" / version
        _make_private(folder)
        reason = _unsafe(folder)
    # RuntimeError: there is no home directory, or links lead in a circle.
    except (OSError, RuntimeError) as error:
        reason = str(error)

    if reason:
        warn(f"compiled code is not kept, but made anew at every start: {reason}")
        return None
    return CodeFolder(folder, what, seconds)


def _make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone. Raises: OSError."""
    if not folder.is_dir():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _unsafe(folder: Path) -> str:
    """Return why others could put code into a folder; "" if they cannot. Raises: OSError."""
    # What is in the folder is run. So it must be ours, and nobody else may have written to it.
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return f"{folder} belongs to somebody else"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to {folder} (chmod go-w)"

    # Who may write to a folder above can put another one in its place. Whoever owns the root
    # directory may do anything; in a container that need not be the user of number 0.
    trusted = {os.geteuid(), Path("/").stat().st_uid}
    for parent in folder.parents:
        status = parent.stat()
        if status.st_uid not in trusted:
            return f"{parent}, in which it would be, belongs to somebody else"
        if _others_may_rename(status):
            return f"others may write to {parent}, in which it would be (chmod go-w)"
    return ""


def _others_may_rename(status: os.stat_result) -> bool:
    """Return whether others may rename what is in a folder that has this status."""
    # In a sticky folder, such as /tmp, everybody may rename only what is his own.
    if status.st_mode & stat.S_ISVTX:
        return False

    # Where every user has a group of his own, with his number, folders may be open to the group.
    by_group = status.st_mode & stat.S_IWGRP and status.st_gid != os.geteuid()
    return bool(by_group or status.st_mode & stat.S_IWOTH)


def say_compiling(what: str) -> None:
    """Say on stderr what the process is busy with."""
    # Through tqdm, which moves a bar out of the way: that of a sweep is there already.
    tqdm.write(on_one_line(f"compiling {what}"), file=sys.stderr)


def warn(text: str) -> None:
    """Say on stderr what costs time."""
    tqdm.write(f"rnncls: warning[R31]: {on_one_line(text)}", file=sys.stderr)
