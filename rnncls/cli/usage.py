"""Says what is wrong with a command line that typer could not parse, and what was meant."""

import difflib
import re
from typing import Any

from rnncls.cli.command import kind_of, name_of, range_of
from rnncls.cli.words import kind_of_word
from rnncls.config.names import advice, is_switch, is_switch_value
from rnncls.errors import Problem


def describe(error: Any, words: list[str]) -> str:
    """Return the message for stderr. `error` is typer's UsageError; `words` is sys.argv[1:]."""
    # `rnncls` and `rnncls runs` alone: the help is the message.
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error.format_message())

    lines = []
    if error.ctx is not None:
        lines = [
            error.ctx.get_usage(),
            f"Try '{error.ctx.command_path} --help' for help.",
            "",
        ]
    return "\n".join([*lines, _problem_of(error, words).render()])


def _problem_of(error: Any, words: list[str]) -> Problem:
    """Return what typer found, by the name of its error: the classes move between versions."""
    kind = type(error).__name__
    if kind == "NoSuchOption":
        what = f"no such option: {error.option_name}"
        remedy = _meant_option(error.option_name, error.ctx, words)
        return Problem(what, remedy=remedy, id="C17")

    if kind == "BadOptionUsage":
        return Problem(f"{error.option_name} needs a value", id="C17")

    param = getattr(error, "param", None)
    if kind == "MissingParameter" and param is not None:
        return Problem(f"{name_of(param)} is missing", expected=param.help or "", id="C17")

    if kind == "BadParameter" and param is not None:
        name = name_of(param)
        expected = f"a {kind_of(param)}"
        if range_of(param):
            expected += f": {range_of(param)}"
        found = value_behind(name, words) or ""
        return Problem(f"bad value for {name}", expected=expected, found=found, id="C17")

    message = error.format_message().rstrip(".")
    # The word as Python writes it: in single quotes, or in double ones if it has a single one.
    if quoted := re.match(r"No such command (['\"])(.*?)\1", message):
        return _no_such_command(error, quoted[2])
    if message.startswith("Got unexpected extra"):
        extra = message.partition(" (")[2].removeprefix("s) (").rstrip(")")
        return Problem("more words than the command takes", found=extra, id="C17")
    return Problem(message[:1].lower() + message[1:], id="C17")


def _no_such_command(error: Any, word: str) -> Problem:
    """Return the problem of a word where a command belongs: misspelt, or already its first word."""
    group = error.ctx.command_path
    commands = list(error.ctx.command.commands)

    remedy = ""
    close = difflib.get_close_matches(word, commands, n=1)
    if close:
        remedy = f"did you mean {group} {close[0]}?"
    # A config or a data file, without what to do with it.
    elif "train" in commands and kind_of_word(word) in ("config", "data"):
        remedy = f"did you mean {group} train {word}?"
    expected = "one of " + ", ".join(commands)
    return Problem(f"no such command: {word}", expected=expected, remedy=remedy, id="C17")


def _meant_option(option: str, context: Any, words: list[str]) -> str:
    """Return advice for an option that a command does not have; "" if there is none."""
    command = context.command
    own = [name for param in command.params for name in param.opts if name.startswith("--")]

    # An option that is merely misspelt first, then a key of the config.
    close = difflib.get_close_matches(option, own, n=1, cutoff=0.8)
    if close:
        return f"did you mean {close[0]}?"
    if _takes_overrides(command):
        remedy = advice(option, _value_for(option, words))
        if remedy:
            return remedy

    # `rnncls --debug eval` and not `rnncls eval --debug`.
    root = context.find_root().command
    if option in [name for param in root.params for name in param.opts]:
        return f"rnncls {option} {command.name} ..."
    # Without the dashes, which all options have in common.
    letters = {name.removeprefix("--"): name for name in own}
    close = difflib.get_close_matches(option.removeprefix("--"), list(letters), n=1)
    return f"did you mean {letters[close[0]]}?" if close else ""


def _takes_overrides(command: Any) -> bool:
    # Not the KEY=VALUE of --read, which is about a file alone.
    return any("SECTION.KEY=VALUE" in (param.metavar or "") for param in command.params)


def _value_for(option: str, words: list[str]) -> str | None:
    """Return the value that an unknown option was given; None if it stands alone."""
    value = value_behind(option, words)
    if value is None or "=" in value or value.lower().endswith((".yaml", ".yml")):
        return None
    # What stands behind a switch may be another word: `--gpu configs/smoke.yaml`.
    if is_switch(option) and not is_switch_value(value):
        return None
    return value


def value_behind(option: str, words: list[str]) -> str | None:
    """Return the value of an option: of `--lr=1e-3` and of `--lr 1e-3`; None if there is none."""
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == option and equals:
            return value
        if word == option:
            following = words[position + 1 : position + 2]
            return following[0] if following and not following[0].startswith("--") else None
    return None
