"""Says in words what a key of the schema takes: its type, its choices, its range.

Messages, `rnncls config keys` and docs/config.md say it alike, because all of them ask here.
"""

import math
from typing import Any

from rnncls.config.schema import DEVICE_PATTERN

# Of JSON Schema: one key or section.
Schema = dict[str, Any]

# An upper bound from here on only keeps typos from filling the memory: a list leaves it out.
GUARD = 2**20

# Of more than these choices, a list of keys shows the first four.
MOST_CHOICES = 5

# The types of JSON Schema that a user would not recognise; the others keep their names.
_TYPES = {"boolean": "true or false", "string": "text", "array": "list"}

# In place of a regular expression.
_PATTERNS = {DEVICE_PATTERN: "auto, cpu, cuda or cuda:INDEX"}


def is_nullable(schema: Schema) -> bool:
    """Return whether a key may be null."""
    return any(alternative.get("type") == "null" for alternative in schema.get("anyOf", []))


def type_of(schema: Schema) -> str:
    """Return a type in words, such as "integer or null"."""
    return " or ".join(map(_name_of_type, schema.get("anyOf", [schema])))


def _name_of_type(schema: Schema) -> str:
    """Return one type in words, such as "integer" or "list of texts"."""
    name: str = schema.get("type", "string")
    word = _TYPES.get(name, name)
    return f"{word} of {_name_of_type(schema['items'])}s" if "items" in schema else word


def choices_of(schema: Schema) -> tuple[str, ...]:
    """Return the only values of a key, () if they are not few words."""
    if "const" in schema:
        return (str(schema["const"]),)
    return tuple(schema.get("enum", ()))


def range_of(schema: Schema, guard: float = math.inf) -> str:
    """Return a range in words; "" if type or choices say all.

    Upper bounds from `guard` on are left out.
    """
    if "anyOf" in schema:
        ranges = [range_of(alternative, guard) for alternative in schema["anyOf"]]
        return ", ".join(text for text in ranges if text)
    if "prefixItems" in schema:
        items = [range_of(item, guard) for item in schema["prefixItems"]]
        return f"{len(items)} numbers, {items[0]}"
    if "pattern" in schema:
        return _PATTERNS[schema["pattern"]]
    return _bounds_of(schema, guard)


def in_words(schema: Schema, guard: float = math.inf) -> str:
    """Return type and range, or the choices: "integer, at least 1, or null"."""
    if choices := choices_of(schema):
        # A comma and the like would be lost among the commas.
        words = [word if word[0].isalnum() else f'"{word}"' for word in choices]
        if guard < math.inf and len(words) > MOST_CHOICES:
            words[MOST_CHOICES - 1 :] = ["..."]
        return ", ".join(words)
    if "properties" in schema:
        return "a section with the keys " + ", ".join(schema["properties"])

    text = range_of(schema, guard)
    if "pattern" in schema:
        return text
    if "prefixItems" in schema:
        return f"list of {text}"

    kind = type_of(schema).removesuffix(" or null")
    text = f"{kind}, {text}" if text else kind
    return f"{text}, or null" if is_nullable(schema) else text


def _bounds_of(schema: Schema, guard: float) -> str:
    """Return the bounds of a number or of the length of a text, in words."""
    least = schema.get("minimum")
    most = schema.get("maximum", math.inf)
    below = schema.get("exclusiveMaximum", math.inf)
    if least is not None and most < guard:
        return f"{least:,} to {most:,}"
    if least is not None and below < guard:
        return f"{least:,} to below {below:,}"

    above = schema.get("exclusiveMinimum")
    if above is not None and most < guard:
        return f"above {above:,} to {most:,}"

    bounds = []
    if above is not None:
        bounds.append(f"above {above:,}")
    if least is not None:
        bounds.append(f"at least {least:,}")
    if below < guard:
        bounds.append(f"below {below:,}")
    if most < guard:
        bounds.append(f"at most {most:,}")
    if guard == math.inf and "maxLength" in schema:
        bounds.append(f"at most {schema['maxLength']:,} characters")
    if guard == math.inf and "maxItems" in schema and "items" in schema:
        fewest = schema.get("minItems", 0)
        most = f"{schema['maxItems']:,} of them"
        bounds.append(f"{fewest:,} to {most}" if fewest else f"at most {most}")
    return ", ".join(bounds)
