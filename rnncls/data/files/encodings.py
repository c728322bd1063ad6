"""Finds out how text is encoded, by the mark at its beginning, and turns all of it into UTF-8.

Whoever reads lines or JSON sees UTF-8 alone. What cannot be decoded becomes bytes that are not
UTF-8 either, so that it makes one bad line and not the end of the file.
"""

import codecs
import io
from typing import IO

from rnncls.errors import DataError, Problem

# A file is looked at so far, before it is read.
HEAD_BYTES = 2**16

BYTE_ORDER_MARK = codecs.BOM_UTF8

# Those of UTF-32 first: one of them begins like one of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# What an encoding is called for people: each value of `data.encoding`, and what is found in a file.
ENCODING_NAMES = {
    "utf-8": "UTF-8",
    "utf-8-sig": "UTF-8 with mark",
    "utf-16": "UTF-16 with mark",
    "utf-16-le": "UTF-16 without mark",
    "utf-16-be": "UTF-16 without mark",
    "cp1252": "Windows-1252",
    "latin-1": "Latin-1",
}

# So many bytes, of which mostly each second one is NUL, are no text in UTF-8.
_LEAST_FOR_UTF_16 = 8
_MOST_FOR_UTF_16 = 64

# Stands for a piece of text that ends within a character: a half of a surrogate pair, which UTF-8
# does not have.
_CUT_OFF = "\udcff"


def encoding_of(path: object, head: bytes, wanted: str) -> str:
    """Return the encoding of a file that begins with `head`, one of ENCODING_NAMES.

    A mark at the beginning says more than `wanted`, which is a value of `data.encoding` or what
    this function has returned for the file before.

    Raises: DataError for UTF-32, and for UTF-16 without a mark unless it is wanted.
    """
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            if name == "utf-32":
                raise _other_encoding(path, "UTF-32", "iconv -f UTF-32 -t UTF-8")
            return name

    order = _utf_16_order(head)
    if wanted == "utf-16":
        return order or "utf-16-le"
    # Text such as "a\0b\0c\0" is UTF-8, too, and yet never meant so.
    if wanted == "utf-8" and order:
        raise _other_encoding(path, "UTF-16 without a mark", "data.encoding=utf-16")
    return "utf-8" if wanted == "utf-8-sig" else wanted


def key_of(encoding: str) -> str:
    """Return the value of `data.encoding` with which a file of this encoding is read.

    What has a mark is known by it, and needs none.
    """
    if encoding in ("utf-16-le", "utf-16-be"):
        return "utf-16"
    return encoding if encoding in ("cp1252", "latin-1") else "utf-8"


def _utf_16_order(head: bytes) -> str:
    """Return utf-16-le or utf-16-be for bytes of which mostly each second one is NUL, else ""."""
    begin = head[:_MOST_FOR_UTF_16]
    first = begin[0::2].count(0)
    second = begin[1::2].count(0)
    if 4 * max(first, second) < len(begin) or len(begin) < _LEAST_FOR_UTF_16:
        return ""
    if min(first, second):
        return ""
    return "utf-16-be" if first else "utf-16-le"


def _other_encoding(path: object, found: str, remedy: str) -> DataError:
    return DataError(
        Problem(
            "not UTF-8",
            str(path),
            expected="text in UTF-8, or a mark at the beginning of the file",
            found=found,
            remedy=remedy if remedy.startswith("iconv") else f"save the text as UTF-8; or {remedy}",
            id="D11",
        )
    )


class ToUtf8:
    """Turns blocks of a stream into UTF-8, block by block.

    `encoding` is a value of `data.encoding`, or what `encoding_of` says of the file.
    """

    def __init__(self, name: object, encoding: str) -> None:
        self.name = name  # of the stream
        self.encoding = encoding
        self.head = b""  # of a stream that may still turn out to begin with a mark
        self.is_known = False
        self.decoder: codecs.IncrementalDecoder | None = None  # None: it is UTF-8

    def feed(self, block: bytes, is_last: bool = False) -> bytes:
        """Return what the block adds. Raises: DataError, as `encoding_of` does."""
        if not self.is_known:
            block = self.head + block
            if not is_last and _may_become_mark(block):
                self.head = block
                return b""
            self._begin(block)

        if self.decoder is None:
            return block
        try:
            text = self.decoder.decode(block, is_last)
        # Only the end of UTF-16 fails: everything else that is wrong is passed on as it is.
        except UnicodeDecodeError:
            text = _CUT_OFF
        return text.encode(errors="surrogatepass")

    def _begin(self, head: bytes) -> None:
        self.is_known = True
        self.encoding = encoding_of(self.name, head, self.encoding)
        if self.encoding.startswith("utf-8"):
            return

        codec = self.encoding
        if codec == "utf-16":
            codec = "utf-16-le" if head.startswith(codecs.BOM_UTF16_LE) else "utf-16-be"
        # Half of a pair stays one; a byte that has no character becomes one, as Python does it.
        errors = "surrogatepass" if codec.startswith("utf-16") else "surrogateescape"
        self.decoder = codecs.getincrementaldecoder(codec)(errors)


def _may_become_mark(head: bytes) -> bool:
    return any(len(head) < len(mark) and mark.startswith(head) for mark in _MARKS)


class _Transcoded(io.RawIOBase):
    """A file of another encoding, as a file of UTF-8."""

    def __init__(self, source: IO[bytes], to_utf_8: ToUtf8) -> None:
        self.source = source
        self.to_utf_8 = to_utf_8
        self.ready = memoryview(b"")
        self.has_ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # of a BufferedReader
        while not self.ready and not self.has_ended:
            block = self.source.read(HEAD_BYTES)
            self.has_ended = not block
            self.ready = memoryview(self.to_utf_8.feed(block, is_last=self.has_ended))
        piece = self.ready[: len(buffer)]
        buffer[: len(piece)] = piece
        self.ready = self.ready[len(piece) :]
        return len(piece)


def as_utf_8(path: object, source: io.BufferedReader, encoding: str) -> io.BufferedReader:
    """Return a file of text as one of UTF-8, from its beginning. A mark of UTF-8 stays.

    Raises: DataError, as `encoding_of` does.
    """
    to_utf_8 = ToUtf8(path, encoding_of(path, source.peek(HEAD_BYTES), encoding))
    if to_utf_8.encoding.startswith("utf-8"):
        return source
    return io.BufferedReader(_Transcoded(source, to_utf_8), HEAD_BYTES)


def can_be_written(text: str) -> bool:
    """Return whether a text is Unicode, without halves of surrogate pairs, which UTF-8 lacks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def undecodable(content: bytes, encoding: str) -> Problem:
    """Return the problem of a line, as UTF-8 or turned into it, that is no text.

    `encoding` is what the line was before.
    """
    if encoding.startswith("utf-8"):
        try:
            content.decode()
        except UnicodeDecodeError as error:
            found = f"byte 0x{content[error.start]:02x} at offset {error.start} of the line"
        remedy = "save the text as UTF-8; or data.encoding=cp1252, latin-1 or utf-16"
        return Problem("not UTF-8", found=found, remedy=remedy, id="D11")

    text = content.decode(errors="surrogatepass")
    offset = next((at for at, character in enumerate(text) if "\ud800" <= character <= "\udfff"), 0)
    found = f"half of a character at offset {offset} of the line"
    if not encoding.startswith("utf-16"):
        found = f"byte 0x{ord(text[offset]) & 0xFF:02x} at offset {offset} of the line"
    name = ENCODING_NAMES[encoding].split(" with")[0]
    return Problem(f"not {name}", found=found, remedy="save the text as UTF-8", id="D11")
