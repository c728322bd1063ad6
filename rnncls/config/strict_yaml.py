"""Reads YAML without surprises: plain values, with the line and column of every key.

PyYAML follows YAML 1.1, where `1e-3` is a string, `no` is False, `010` is 8, `12:30:45` is 45045
and the last of two equal keys wins silently. Here numbers are numbers, and everything YAML 1.1
would read in a way its writer hardly meant is refused with the advice to quote it. Tags, anchors
and aliases are refused too, which also leaves no room for code execution or alias bombs.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rnncls.errors import ConfigError, Problem, require_more_files

KeyPath = tuple[str | int, ...]  # ("optimizer", "betas", 0)

# A config has about 1 kB and three levels. Without limits, a file of brackets alone would keep the
# parser busy and exceed Python's recursion limit.
MAX_BYTES = 64 * 1024
MAX_DEPTH = 32

# The decimal notation of JSON, and also "+1", ".5", "1." and "1e-3". A leading zero is refused: it
# would be an octal number to some readers and a decimal one to others.
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NAMED = {
    "": None,
    "~": None,
    "null": None,
    "true": True,
    "false": False,
    ".inf": float("inf"),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}

# Line breaks are part of every YAML text.
_OTHER_THAN_ASCII = re.compile(r"[^\n -~]")

# Tells which type YAML 1.1 would give a plain scalar. It parses nothing.
_YAML_1_1: Any = yaml.SafeLoader("")


@dataclass(frozen=True)
class Document:
    """A parsed YAML document: its value, the place of each key or item, and its problems."""

    value: Any
    source: str
    marks: dict[KeyPath, tuple[int, int]] = field(default_factory=dict)  # line and column, from 1
    problems: list[tuple[KeyPath, Problem]] = field(default_factory=list)

    def where(self, path: KeyPath) -> str:
        """Return `file:line:column` of the key at `path`, or of its nearest parent with a place."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.marks:
                line, column = self.marks[path[:end]]
                return f"{self.source}:{line}:{column}"
        return self.source


def dotted(path: KeyPath) -> str:
    """Return a path as messages show it: ("optimizer", "lr") -> "optimizer.lr"."""
    return ".".join(str(part) for part in path)


def read(path: Path, pipes: bool = True) -> Document:
    """Parse the file at `path`; see `parse`.

    `pipes`: whether it may be a pipe, as bash makes one of `<(command)`. One that nobody writes to
    is never waited for.

    Raises: ConfigError if it cannot be read. MachineError if no more files can be open.
    """
    try:
        # One byte more than allowed tells that a file is too large, without reading all of it.
        with open(_open(path, pipes), "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    # ValueError: a name that no file can have, with a NUL for example.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        what = f"cannot read the config {path}: {reason}"
        require_more_files(error, what)
        remedy = "check the path; a config is a YAML file"
        raise ConfigError(Problem(what, remedy=remedy, id="C1")) from None

    if not raw and path.is_fifo():
        what = f"cannot read the config {path}: nobody writes to this pipe"
        raise ConfigError(Problem(what, remedy="begin to write before, or name a file", id="C1"))

    if len(raw) > MAX_BYTES:
        expected = f"at most {MAX_BYTES} bytes"
        raise ConfigError(
            Problem("the config is too large", str(path), expected=expected, id="C13")
        )

    try:
        # A byte order mark, which some editors write, is accepted and dropped.
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        raise ConfigError(
            Problem("the config is not text", str(path), expected="UTF-8", found=found, id="C2")
        ) from None

    return parse(text, str(path))


def _open(path: Path, pipes: bool) -> int:
    """Open a file, or a pipe if that is allowed, and return its descriptor; never block.

    Raises: OSError, also for a folder, a device or a socket. ValueError for a name with a NUL.
    """
    # O_NONBLOCK: to open a pipe that nobody writes to would wait for ever. A link is followed: it
    # is the user who names the file. Its kind is asked of what is open, which stays what it is.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind) or (pipes and stat.S_ISFIFO(kind)):
        # From a pipe with a writer, reading waits for what is written; from any other it ends.
        os.set_blocking(descriptor, True)
        return descriptor

    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "not a regular file")


def parse(text: str, source: str) -> Document:
    """Parse YAML text. `source` is what messages call the place of the text.

    A problem after which reading can continue (a duplicate key, an ambiguous value) is added to
    the document's `problems`, so that it is reported together with those of validation.

    Raises: ConfigError for any other problem.
    """
    try:
        composer = _Composer(text, source)
    except yaml.reader.ReaderError as error:
        expected = "printable characters"
        found = f"character U+{ord(text[error.position]):04X} at offset {error.position}"
        raise ConfigError(
            Problem("the config is not text", source, expected=expected, found=found, id="C2")
        ) from None

    try:
        return composer.document()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_problem(error, text, source)) from None
    # PyYAML hands the number of an escape such as "\UFFFFFFFF" to chr(), and that of the version
    # behind %YAML to int(), whatever it is.
    except (ValueError, OverflowError):
        what = "not YAML: a number out of range, in an escape or as version"
        raise ConfigError(Problem(what, composer.here(), id="C3")) from None


def is_text(text: str) -> bool:
    """Return whether a file can hold a text. Half a character, of a pair that makes one, is none;
    Python has such halves for bytes of a command line that are no UTF-8, too.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, source: str) -> Problem:
    """Return a syntax error of PyYAML as a problem with line, column and the line itself."""
    # PyYAML gives one place or two: that of the error, and that of the construct it is in.
    marks = [mark for mark in (error.problem_mark, error.context_mark) if mark]
    where = source
    if marks:
        where = f"{source}:{marks[0].line + 1}:{marks[0].column + 1}"

    # The error may lie behind the last line; the line that began the construct is shown then.
    found = ""
    lines = text.splitlines()
    for mark in marks:
        if mark.line < len(lines):
            found = lines[mark.line].strip()
            break
    return Problem(f"not YAML: {error.problem}", where, found=found, id="C3")


def dump(value: dict[str, Any]) -> str:
    """Return YAML text that `parse` reads back as `value`, with printable characters only.

    A name or a separator may have a character that steers a terminal, a line break, or a byte that
    is no UTF-8: such text stands between double quotes, with escapes.
    """
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    # PyYAML leaves some of these characters as they are. They can only be within double quotes.
    return _OTHER_THAN_ASCII.sub(_yaml_escape, text)


def _yaml_escape(found: re.Match[str]) -> str:
    character = found[0]
    if character.isprintable():
        return character
    number = ord(character)
    return f"\\u{number:04X}" if number <= 0xFFFF else f"\\U{number:08X}"


class _Dumper(yaml.SafeDumper):
    """Quotes text that `parse` would read as something else, such as 1e-3."""

    # A subclass, because representers are registered on the class: PyYAML's own must not change.


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None
    if not text.isprintable():
        style = '"'
    elif not isinstance(_Composer.plain(text), str):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _position(event: yaml.Event) -> tuple[int, int]:
    """Return line and column, counted from 1."""
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


class _Composer:
    """Builds plain values from PyYAML's events and collects problems on the way."""

    def __init__(self, text: str, source: str) -> None:
        self.loader: Any = yaml.SafeLoader(text)
        self.events = self._parsed()
        self.source = source
        self.problems: list[tuple[KeyPath, Problem]] = []
        self.marks: dict[KeyPath, tuple[int, int]] = {}

    def _parsed(self) -> Iterator[yaml.Event]:
        # What yaml.parse does; with the loader at hand, whose place is that of an error.
        while self.loader.check_event():
            yield self.loader.get_event()

    def document(self) -> Document:
        # The events of a document: stream start, document start, the events of its one node,
        # document end, stream end. An empty text has only those of the stream.
        next(self.events)
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            return Document(None, self.source)

        value = self.node(next(self.events), ())
        next(self.events)

        # `---` begins another document, which would be silently ignored.
        if not isinstance(next(self.events), yaml.StreamEndEvent):
            self.add_problem("a second YAML document", (), event, expected="one document", id="C4")
        return Document(value, self.source, self.marks, self.problems)

    def node(self, event: yaml.Event, path: KeyPath) -> Any:
        """Return the value that begins with this event."""
        # The value of a key keeps the place of the key; only items and the whole get one here.
        self.marks.setdefault(path, _position(event))

        # Checked on the way down, before the recursion could exceed Python's own limit.
        if len(path) > MAX_DEPTH:
            expected = f"at most {MAX_DEPTH} levels"
            raise ConfigError(
                Problem("nested too deeply", self.place(event), expected=expected, id="C13")
            )

        self.refuse_extras(event, path)
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(path)
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event, path)

        # An alias. It was refused above, so that its value does not matter.
        return None

    def mapping(self, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.key(event, path)
            child = (*path, key)

            if key in result:
                line, _ = self.marks[child]
                again, _ = _position(event)
                self.add_problem(
                    f'duplicate key "{key}"',
                    child,
                    event,
                    found=f"first on line {line}, again on line {again}",
                    remedy="keep one of them",
                    id="C6",
                )

            self.marks[child] = _position(event)
            result[key] = self.node(next(self.events), child)
        return result

    def key(self, event: yaml.Event, path: KeyPath) -> str:
        """Return a key of the mapping at `path`. Raises: ConfigError if it is not a scalar."""
        if not isinstance(event, yaml.ScalarEvent):
            where = self.place(event)
            raise ConfigError(Problem("a key must be a word", where, expected="a word", id="C4"))

        self.refuse_extras(event, path)

        self.require_characters(event)

        # A quoted "1" is a word. Unquoted, `1: x` or `null: x` is not a key of a config.
        key: str = event.value
        if event.implicit[0] and not isinstance(self.plain(key), str):
            what = f"a key must be a word: {key}"
            self.add_problem(what, path, event, expected="a word", id="C4")
        return key

    def sequence(self, path: KeyPath) -> tuple[Any, ...]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, (*path, len(items))))
        return tuple(items)

    def refuse_extras(self, event: yaml.Event, path: KeyPath) -> None:
        """Add a problem for an anchor, an alias or a tag."""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            what = "anchors and aliases are not allowed"
            self.add_problem(what, path, event, remedy="write the value out", id="C13")

        tag = getattr(event, "tag", None)
        if tag:
            what = f"tags are not allowed: {tag}"
            self.add_problem(what, path, event, remedy="write a plain value", id="C14")

    def scalar(self, event: yaml.ScalarEvent, path: KeyPath) -> Any:
        # Quoted, or a block after | or >: text, whatever it looks like.
        text = event.value
        if not event.implicit[0]:
            self.require_characters(event)
            return text

        value = self.plain(text)
        if isinstance(value, str):
            # Text to us. Where YAML 1.1 would read something else, ask the writer to be clear.
            tag = _YAML_1_1.resolve(yaml.ScalarNode, text, (True, False))
            kind = tag.rpartition(":")[2]
            if kind != "str":
                what = f"ambiguous value {text} (YAML 1.1 reads it as {kind})"
                otherwise = "otherwise true, false, null or a plain decimal number"
                remedy = f'"{text}" if it is text; {otherwise}'
                self.add_problem(what, path, event, remedy=remedy, id="C8")
        return value

    @staticmethod
    def plain(text: str) -> Any:
        """Return the value of an unquoted scalar: null, a boolean, a decimal number, or text."""
        if text in _NAMED:
            return _NAMED[text]
        # int() refuses thousands of digits with a ValueError. As a float, such a number is still
        # checked against the range of its key.
        if _INT.fullmatch(text) and len(text) <= 40:
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        return text

    def require_characters(self, event: yaml.ScalarEvent) -> None:
        """Raise ConfigError for text that no file can hold: "\\ud800" is half a character."""
        if not is_text(event.value):
            expected = "whole characters, such as an escape with \\U and 8 digits"
            raise ConfigError(
                Problem("the config is not text", self.place(event), expected=expected, id="C2")
            )

    def here(self) -> str:
        """Return the place up to which the text was read."""
        return f"{self.source}:{self.loader.line + 1}:{self.loader.column + 1}"

    def place(self, event: yaml.Event) -> str:
        line, column = _position(event)
        return f"{self.source}:{line}:{column}"

    def add_problem(self, what: str, path: KeyPath, event: yaml.Event, **details: str) -> None:
        where = self.place(event)
        if path:
            where += f", {dotted(path)}"
        self.problems.append((path, Problem(what, where, **details)))
