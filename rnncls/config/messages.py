"""Turns pydantic's validation errors into the problems that rnncls reports.

pydantic names a value by its place in the models. A user knows it by its line in a file or by an
override, and wants to read the whole range of the key, not only the bound that was crossed.
"""

import difflib
import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from pydantic_core import ErrorDetails

from rnncls.config.names import advice, advice_for_file, section_with
from rnncls.config.schema import Config, FilesConfig, SumModConfig
from rnncls.config.strict_yaml import Document, KeyPath, dotted
from rnncls.config.words import choices_of, in_words, is_nullable
from rnncls.errors import Problem

SOURCES = ("sum_mod", "files")  # the values of data.source
MOST_LETTERS_OF_VALUE = 60
MOST_COMPARED = 1000  # letters of a word for which a similar one is sought

_THOUSANDS = re.compile(r"[1-9][0-9]{0,2}(,[0-9]{3})+")

# What the value of a key is called by its Python type; a list was read as a tuple.
_KINDS = {
    str: "text",
    dict: "a section",
    tuple: "a list",
    int: "integer",
    float: "number",
    bool: "boolean",
}


class Places:
    """Knows where each key was set: in the file, or by an override, which wins."""

    def __init__(self, document: Document) -> None:
        self.document = document
        # The last override of each key, as it was written.
        self.overrides: dict[KeyPath, str] = {}

        # The value of data.source, which decides the keys of the section. An unknown value leaves
        # the default, so that the other keys can still be checked against something.
        self.source = "sum_mod"

    def where(self, path: KeyPath) -> str:
        """Return where the key at `path` was set, as messages show it."""
        # An override of the key itself, or of the section around it.
        for end in range(len(path), 0, -1):
            if path[:end] in self.overrides:
                return f"override {self.overrides[path[:end]]}, {dotted(path)}"

        # A section that the file does not have exists because an override set one of its keys: a
        # problem of the section as a whole, such as a missing key, is named after that.
        if path and str(path[0]) not in self.document.value:
            for key, override in self.overrides.items():
                if key[: len(path)] == path:
                    return f"override {override}, {dotted(path)}"

        place = self.document.where(path)
        return f"{place}, {dotted(path)}" if path else place

    def text_of(self, path: KeyPath) -> str | None:
        """Return the value of an override as it was written; None if no override set the key."""
        override = self.overrides.get(path)
        return None if override is None else override.partition("=")[2]


def problem_of(detail: ErrorDetails, places: Places) -> Problem:
    """Return one of pydantic's errors as a problem with id, place, expected and found value."""
    kind = detail["type"]
    path = path_of(detail)

    if kind == "clash":
        return _clash(detail, path, places)
    if kind == "extra_forbidden":
        return _unknown_key(path, detail["input"], places)

    # pydantic reports a bad data.source as an error of `data`, whose keys depend on it.
    value = detail["input"]
    if kind.startswith("union_tag"):
        path = (*path, "source")
        value = value.get("source")
        schema: dict[str, Any] = {"enum": list(SOURCES)}
    else:
        schema = schema_at(path, places.source)

    remedy = _meant_value(path, str(value).lower(), schema)
    # A value where a section belongs, such as optimizer=adam: one of its keys is meant.
    if len(path) == 1 and "properties" in schema and kind != "missing":
        remedy = "leave it out" if value is None else _advice(path, value, places)

    return Problem(
        f"bad value for {dotted(path)}",
        places.where(path),
        expected=_expected(schema),
        found="nothing" if kind == "missing" else describe_value(value),
        remedy=remedy,
        id=_id_of(kind),
    )


def counted(detail: ErrorDetails) -> Problem:
    """Return one of pydantic's errors as a problem that is counted and not explained.

    A message shows the first problems and says how many more there are. To look for the places and
    the likeliest names of thousands that nobody reads would take minutes.
    """
    ids = {"clash": "C15", "extra_forbidden": "C5"}
    kind = detail["type"]
    path = path_of(detail)
    return Problem(f"one more problem with {dotted(path)}", id=ids.get(kind) or _id_of(kind))


def _meant_value(path: KeyPath, text: str, schema: dict[str, Any]) -> str:
    """Return the value that a bad one, in small letters, may have meant; "" if unknown."""
    if path == ("device",) and text.startswith("gpu"):
        return "cuda, or cuda:INDEX for one of several"
    if text == "none" and is_nullable(schema):
        return "null"
    if "\0" in text:
        return "a path without the character NUL"
    # What predict's --bad calls it, too.
    if path == ("data", "bad") and text == "stop":
        return "error"

    # One length, or several without brackets; each of them once.
    if path == ("model", "ngrams"):
        lengths = sorted({int(length) for length in re.findall(r"[0-9]{1,9}", text)} - {0, 1})
        return json.dumps(lengths)

    # For example train.max_steps=12,000, or optimizer.lr=1e-3,2e-3.
    numbers = ("integer", "number")
    if "," in text and any(part.get("type") in numbers for part in schema.get("anyOf", [schema])):
        if _THOUSANDS.fullmatch(text):
            return text.replace(",", "")
        return "one value; rnncls sweep tries several"
    return _closest(text, schema.get("enum", []), cutoff=0.5)


def path_of(detail: ErrorDetails) -> KeyPath:
    """Return the path of the key with the error, and of the item where the key is a list.

    pydantic inserts a tag after `data`, and behind a key that takes several types one for each of
    them, such as `tuple[constrained-str, ...]`.
    """
    path = detail["loc"]
    if len(path) > 1 and path[0] == "data" and path[1] in SOURCES:
        path = (path[0], *path[2:])

    # There are no keys within keys: what is text there is a tag.
    items = (part for part in path[2:] if isinstance(part, int))
    return (*path[:2], *items)


def told_once(details: Iterable[ErrorDetails]) -> list[ErrorDetails]:
    """Return pydantic's errors without those that say again what is wrong with the same value.

    Of a key that takes text or a list there is one for each type. An item of a list says more than
    that the list is no text.
    """
    by_path: dict[KeyPath, ErrorDetails] = {}
    for detail in details:
        by_path.setdefault(path_of(detail), detail)
    keys_of_items = {path[:2] for path in by_path if len(path) > 2}
    return [detail for path, detail in by_path.items() if path not in keys_of_items]


def describe_value(value: Any) -> str:
    """Return a value as the user would write it, cut to a readable length, with its type."""
    # JSON is also YAML, so that what is shown could be typed; str() is for what JSON cannot hold.
    text = json.dumps(value, default=str)
    if len(text) > MOST_LETTERS_OF_VALUE:
        text = text[: MOST_LETTERS_OF_VALUE - 3] + "..."

    kind = _KINDS.get(type(value))
    return f"{text} ({kind})" if kind else text


def _id_of(kind: str) -> str:
    """Return the id of a bad value from the type of pydantic's error."""
    # "greater_than_equal", "less_than" and so on.
    if kind.startswith(("greater", "less")):
        return "C10"
    if kind == "finite_number":
        return "C11"
    return "C9"


def _clash(detail: ErrorDetails, path: KeyPath, places: Places) -> Problem:
    """Return the problem that one of the schema's own rules between keys has found."""
    # pydantic reports the section whose rule it is, and the rule's key is relative to that.
    context = detail["ctx"]
    return Problem(
        context["what"],
        places.where((*path, *context["key"].split("."))),
        expected=context["expected"],
        found=context["found"],
        remedy=context["remedy"],
        id="C15",
    )


def _unknown_key(path: KeyPath, value: Any, places: Places) -> Problem:
    """Return the problem of a key that does not exist, with the likeliest key that does."""
    section = path[:-1]
    key = str(path[-1])
    known = list(schema_at(section, places.source).get("properties", {}))

    expected = "one of " + ", ".join(known)
    remedy = ""
    if section:
        expected = f'a key of section "{dotted(section)}"'
        remedy = ", ".join(known)

    # A key of the other source is right, and only the source is not.
    other_source = _source_with(key) if section == ("data",) else ""
    if other_source:
        expected = f"keys of source {places.source}"
        remedy = f"data.source={other_source}, which has this key"
    elif isinstance(value, dict) or (value is None and path not in places.overrides):
        remedy = _meant_section(path, value or {}, known, places) or remedy
    else:
        remedy = _advice(path, value, places) or remedy

    return Problem(
        f'unknown key "{key}"',
        places.where(path),
        expected=expected,
        found=key,
        remedy=remedy,
        id="C5",
    )


def _meant_section(path: KeyPath, keys: dict[str, Any], known: list[str], places: Places) -> str:
    """Return which section is meant by one that does not exist and has these keys."""
    # Overrides such as optim.lr=1 have made the section: they are what must be written otherwise.
    for overridden in places.overrides:
        if overridden[:-1] == path:
            return _advice(overridden, None, places)

    meant = _closest(str(path[-1]), known) or section_with(keys)
    return f"did you mean {dotted((*path[:-1], meant))}?" if meant else ""


def _advice(path: KeyPath, value: Any, places: Places) -> str:
    """Return which key is meant by the one at `path`, written as its value was: "" if unknown."""
    if path in places.overrides:
        return advice(dotted(path), places.text_of(path), places.source)
    return advice_for_file(dotted(path[:-1]), str(path[-1]), value, places.source)


def _source_with(key: str) -> str:
    """Return the data source that has this key; "" if both do, or neither."""
    generated = key in SumModConfig.model_fields
    read = key in FilesConfig.model_fields
    if generated == read:
        return ""
    return "sum_mod" if generated else "files"


def _closest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the most similar of the words; "" if none is similar enough."""
    # A checkpoint may hold words of megabytes, which would take minutes to compare.
    if len(word) > MOST_COMPARED:
        return ""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=cutoff)
    return close[0] if close else ""


def schema_at(path: KeyPath, source: str) -> dict[str, Any]:
    """Return the JSON Schema of the key at `path`, {} for a key that does not exist.

    `source` is the value of data.source, which decides the keys of the data section.
    """
    # The schema is the one source of ranges and choices: no message can contradict validation.
    root = _root_schema()
    schema = root
    for part in path:
        # A number is an item of a list, whose items all have one schema.
        if isinstance(part, int):
            lists = (each for each in schema.get("anyOf", [schema]) if each.get("type") == "array")
            schema = next(lists, {})
            schema = schema.get("prefixItems", [schema.get("items", {})])[0]
        else:
            schema = schema.get("properties", {}).get(part, {})

        # Sections are defined apart, under "$defs", and referred to by "#/$defs/ModelConfig". There
        # are two data sections, told apart by their source.
        reference = schema.get("$ref")
        if "discriminator" in schema:
            reference = schema["discriminator"]["mapping"].get(source)
        if reference:
            schema = root["$defs"][reference.rpartition("/")[2]]
    return schema


@cache
def _root_schema() -> dict[str, Any]:
    # Making it takes milliseconds, and each of many wrong keys asks for it.
    return Config.model_json_schema()


def _expected(schema: dict[str, Any]) -> str:
    """Return what a key takes, in words: `one of tanh, relu`, `number, above 0, or null`."""
    words = in_words(schema)
    return f"one of {words}" if choices_of(schema) else words
