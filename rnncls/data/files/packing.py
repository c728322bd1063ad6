"""Unpacks files: gzip, bzip2, xz, and zip with one file in it, known by their first bytes.

None of them may grow beyond reason: a bomb is refused before it has taken memory or time.
"""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePath
from typing import IO, NamedTuple

from rnncls.errors import DataError, Problem

# A packed file may be a bomb. Text hardly shrinks to a hundredth; below 64 MiB no ratio does harm.
MAX_RATIO = 500
RATIO_FROM = 64 * 2**20

BLOCK_BYTES = 2**17  # unpacked at a time

MOST_MEMBERS_SHOWN = 5  # of a zip

# What names the files of a zip, which is read as a whole: an Excel file has a few kB of it.
MOST_DIRECTORY_BYTES = 2**20
_END_BYTES = 2**16 + 22 + 76  # with a comment, and with the two parts of a longer end

# xz asks for as much as its packer was told to use: 65 MiB with `xz -9`.
MOST_XZ_BYTES = 2**27

# What zipfile and the packers raise for content that they cannot make sense of.
_DAMAGED = (EOFError, ValueError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)


class _Packer(NamedTuple):
    """One way to pack a file."""

    name: str  # for people
    magic: bytes  # with which a packed file begins
    module: str  # of the standard library, that unpacks it; "" if there is none
    test: str  # the command that tests such a file


PACKERS = (
    _Packer("gzip", b"\x1f\x8b", "gzip", "gzip -t"),
    _Packer("bzip2", b"BZh", "bz2", "bzip2 -t"),
    _Packer("xz", b"\xfd7zXZ\x00", "lzma", "xz -t"),
    _Packer("zip", b"PK\x03\x04", "zipfile", "unzip -t"),
    _Packer("zip", b"PK\x05\x06", "zipfile", "unzip -t"),
    _Packer("Zstandard", b"\x28\xb5\x2f\xfd", "", "zstd -d"),
    _Packer("7-Zip", b"7z\xbc\xaf\x27\x1c", "", "7z x"),
    _Packer("RAR", b"Rar!\x1a\x07", "", "unrar x"),
    _Packer("compress", b"\x1f\x9d", "", "uncompress"),
    _Packer("LZ4", b"\x04\x22\x4d\x18", "", "lz4 -d"),
)


def packer_of(head: bytes) -> _Packer | None:
    """Return how a file is packed that begins with `head`, None if it is not."""
    for packer in PACKERS:
        if head.startswith(packer.magic):
            # "BZh" alone may be text: a digit follows, and the first number of a block or the end.
            if packer.name == "bzip2" and head[4:6] not in (b"1A", b"\x17r"):
                continue
            return packer
    return None


def unpacked(path: object, file: io.BufferedReader) -> io.BufferedReader:
    """Return what is in a packed file, and any other file as it is.

    By its first bytes, because a name may lack `.gz` or have it without reason.

    Raises: DataError if the file cannot be unpacked; reading does, too.
    """
    packer = packer_of(file.peek(8))
    if packer is None:
        return file
    if not packer.module:
        remedy = f"unpack it first: {packer.test}"
        raise DataError(_unreadable(path, f"a {packer.name} file", remedy))
    try:
        content: io.BufferedReader = io.BufferedReader(_Unpacked(path, file, packer), BLOCK_BYTES)
    # A Python that was built without a library lacks the module.
    except ImportError:
        what = f"this Python cannot read {packer.name}: it has no module {packer.module}"
        raise DataError(_unreadable(path, what, "unpack the file first")) from None

    inner = packer_of(content.peek(8))
    if inner is not None:
        what = f"a file that is packed twice: {inner.name} in {packer.name}"
        raise DataError(_unreadable(path, what, "unpack it once"))
    return content


class _Unpacked(io.RawIOBase):
    """The bytes in a packed file."""

    def __init__(self, path: object, file: IO[bytes], packer: _Packer) -> None:
        self.path = path
        self.file = file
        self.packer = packer
        self.size = 0  # bytes unpacked so far
        with self._guarded():
            self.source = _open(path, file, packer.module)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # of a BufferedReader
        with self._guarded():
            content = self.source.read(len(buffer))
        buffer[: len(content)] = content
        self.size += len(content)

        # The position in the packed file is that of the unpacked text, give or take a buffer.
        if self.size > RATIO_FROM and self.size > MAX_RATIO * self.file.tell():
            raise self._damaged(f"it unpacks to more than {MAX_RATIO} times its size")
        return len(content)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Raise DataError if the file is damaged or cannot be read."""
        try:
            yield
        except (ImportError, DataError):
            raise
        except MemoryError:
            raise self._damaged("it asks for more memory than there is") from None
        except OSError as error:
            # Of a damaged gzip or bzip2 file; what the system refuses has a number.
            if error.errno is None:
                raise self._damaged(str(error)) from None
            what = f"cannot read the data: {error.strerror}"
            raise DataError(Problem(what, str(self.path), id="D1")) from None
        except Exception as error:
            # lzma.LZMAError, by its name, because a Python may lack the module.
            if isinstance(error, _DAMAGED) or type(error).__name__ == "LZMAError":
                raise self._damaged(str(error)) from None
            raise

    def _damaged(self, found: str) -> DataError:
        return damaged(self.path, f"{self.packer.name} file", found, self.packer.test)


def damaged(path: object, kind: str, found: str, test: str = "") -> DataError:
    """Return the error to raise for a file that cannot be unpacked, or must not be.

    `test` is a command that says more about such a file.
    """
    remedy = f"{test}, or unpack it yourself" if test else "make the file anew"
    return DataError(
        Problem(
            f"the {kind} is damaged or a bomb",
            str(path),
            expected=f"a complete {kind}",
            found=found,
            remedy=remedy,
            id="D20",
        )
    )


def _open(path: object, file: IO[bytes], module: str) -> IO[bytes]:
    """Return the file that a packed file holds. Raises: ImportError, and what it raises."""
    if module == "gzip":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]  # reads as one
    if module == "bz2":
        import bz2

        return bz2.BZ2File(file)
    if module == "lzma":
        return _Xz(file)  # type: ignore[return-value]  # is read as one
    return _open_member(path, file)


class _Xz:
    """The text in an xz file of one or several streams, which is refused if it takes much memory.

    `lzma.LZMAFile` knows no such limit.
    """

    def __init__(self, file: IO[bytes]) -> None:
        import lzma

        self.file = file
        self.new = partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, MOST_XZ_BYTES)
        self.stream = self.new()

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, b"" at the end. Raises: EOFError, LZMAError."""
        while True:
            block = b""
            if self.stream.eof:
                # Zeros may stand between two streams, and at the end.
                block = self.stream.unused_data.lstrip(b"\0")
                while not block and (more := self.file.read(BLOCK_BYTES)):
                    block = more.lstrip(b"\0")
                if not block:
                    return b""
                self.stream = self.new()
            elif self.stream.needs_input:
                block = self.file.read(BLOCK_BYTES)
                if not block:
                    raise EOFError("the file ends before the end of the stream")

            content = self.stream.decompress(block, size)
            if content:
                return content


def _open_member(path: object, file: IO[bytes]) -> IO[bytes]:
    """Return the only file in a zip. Raises: DataError if there is none, or more than one."""
    archive = archive_of(file)
    members = members_of(archive)
    if len(members) != 1:
        found = "no file" if not members else f"{len(members):,} files: {_listed(members)}"
        remedy = "unpack it, and give the files by their names"
        raise DataError(
            _unreadable(
                path, "a zip of several files" if members else "an empty zip", remedy, found
            )
        )
    if members[0].flag_bits & 1:
        raise DataError(_unreadable(path, "an encrypted zip", "unpack it first"))
    return archive.open(members[0])


def archive_of(file: IO[bytes]) -> zipfile.ZipFile:
    """Open a zip. Raises: zipfile.BadZipFile, also if the names of its files are very many."""
    # The end of a zip, which says how large its directory is, has 22 bytes and a comment.
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _END_BYTES))
    end = file.read(_END_BYTES)
    of_directory = _number_at(end, b"PK\x05\x06", "<I", 12)
    # Of a file above 4 GiB, some packers say so in a longer end before that one.
    if of_directory == 2**32 - 1:
        of_directory = _number_at(end, b"PK\x06\x06", "<Q", 40)
    if of_directory > MOST_DIRECTORY_BYTES:
        raise zipfile.BadZipFile(f"{of_directory:,} bytes of names of files")
    file.seek(0)
    return zipfile.ZipFile(file)


def _number_at(content: bytes, mark: bytes, kind: str, offset: int) -> int:
    """Return the number at an offset behind the last `mark`, 0 if there is none."""
    at = content.rfind(mark)
    if at < 0 or at + offset + struct.calcsize(kind) > len(content):
        return 0
    return int(struct.unpack_from(kind, content, at + offset)[0])


def members_of(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the files in a zip, without those that only a system's file manager needs."""
    members = []
    for info in archive.infolist():
        is_hidden = any(
            part.startswith((".", "__MACOSX")) for part in PurePath(info.filename).parts
        )
        if not info.is_dir() and not is_hidden:
            members.append(info)
    return members


def member_names(file: IO[bytes]) -> list[str]:
    """Return the names of the files in a zip, [] if it cannot be read. The position moves."""
    try:
        with archive_of(file) as archive:
            return [info.filename for info in members_of(archive)]
    except (OSError, *_DAMAGED):
        return []


def _listed(members: list[zipfile.ZipInfo]) -> str:
    shown = [info.filename for info in members[:MOST_MEMBERS_SHOWN]]
    return ", ".join(shown) + (", ..." if len(members) > MOST_MEMBERS_SHOWN else "")


def _unreadable(path: object, what: str, remedy: str, found: str = "") -> Problem:
    return Problem(what, str(path), found=found, remedy=remedy, id="D14")


def require_ratio(path: object, kind: str, size: int, packed: int) -> None:
    """Raise DataError if content of `size` bytes is beyond reason for so few packed ones."""
    if size > RATIO_FROM and size > MAX_RATIO * packed:
        raise damaged(path, kind, f"it unpacks to more than {MAX_RATIO} times its size")
