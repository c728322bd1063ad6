"""Commands as `rnncls` has them: help in words that a user knows, with examples; no option twice.

What typer says about types and ranges ("<int range>", "1<=x<=5") is written for programmers, and
differs between its versions. Here it is said in words.
"""

import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from rnncls.errors import ConfigError, Problem

# Of typer's own copy of click, which is private and differs between versions: so there is no type
# that could be named here.
Parameter = Any
Context = Any
Formatter = Any

EXAMPLES = "\n\nExamples:\n"  # what introduces them in the docstring of a command


class Command(TyperCommand):
    """A command. The block `Examples:` of its function's docstring is shown as it is."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the words of a command. Raises: ConfigError if an option is repeated."""
        # Completion parses lines that are not finished.
        if not ctx.resilient_parsing:
            self._refuse_repeated(ctx, args)
        return super().parse_args(ctx, args)

    def _refuse_repeated(self, ctx: Context, args: list[str]) -> None:
        # The last one would win without a word. A flag says the same however often it is given.
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        counts = Counter(name_of(param) for param in given if _has_one_value(param))
        for name, count in counts.items():
            if count > 1:
                what = f"{name} was given {count} times"
                raise ConfigError(Problem(what, expected="once", remedy="keep one", id="C17"))

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        """Return what stands behind the command in its usage line."""
        arguments = [param for param in self.get_params(ctx) if _is_argument(param)]
        return ["[OPTIONS]", *map(_usage_of, arguments)]

    def format_help_text(self, ctx: Context, formatter: Formatter) -> None:  # noqa: ARG002
        """Write the description, without the examples."""
        text, _, _ = inspect.cleandoc(self.help or "").partition(EXAMPLES)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(text)

    def format_options(self, ctx: Context, formatter: Formatter) -> None:
        """Write arguments and options."""
        _write_params(self.get_params(ctx), formatter)

    def format_epilog(self, ctx: Context, formatter: Formatter) -> None:  # noqa: ARG002
        """Write the examples, line by line."""
        _, _, examples = inspect.cleandoc(self.help or "").partition(EXAMPLES)
        if examples:
            with formatter.section("Examples"):
                for line in inspect.cleandoc(examples).splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Group(TyperGroup):
    """A group of commands, or `rnncls` itself."""

    def format_options(self, ctx: Context, formatter: Formatter) -> None:
        """Write options and commands."""
        _write_params(self.get_params(ctx), formatter)
        self.format_commands(ctx, formatter)


class App(typer.Typer):
    """A typer app whose groups and commands are those of this module."""

    def __init__(self, **settings: Any) -> None:
        # Help and errors stay plain text, and a traceback shows no local variables.
        super().__init__(
            cls=Group,
            no_args_is_help=True,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            **settings,
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[..., Any]:
        """Return the decorator that adds a function as a command."""
        return super().command(name, cls=Command, **settings)


def name_of(param: Parameter) -> str:
    """Return what messages call a parameter: `--config`, or `CHECKPOINT`."""
    if _is_argument(param):
        return str(param.metavar or param.name.upper())
    return str(max(param.opts, key=len))


def range_of(param: Parameter) -> str:
    """Return the range of a number in words, such as `from 1 to 1,024`; "" if it has none."""
    # Of the parameter, or of its type, by the version of typer.
    owner = param if hasattr(param, "min") else getattr(param, "type", None)
    low = getattr(owner, "min", None)
    high = getattr(owner, "max", None)
    if low is not None and high is not None:
        return f"from {low:,} to {high:,}"
    if low is not None:
        return f"at least {low:,}"
    return f"at most {high:,}" if high is not None else ""


def kind_of(param: Parameter) -> str:
    """Return the kind of a parameter's value: whole number, number, file or text."""
    # typer's own names: <int range>, <path>, <str>; in older versions integer range, path, text.
    name = param.display_type(None) if hasattr(param, "type_descriptor") else param.type.name
    for part, kind in (("int", "whole number"), ("float", "number"), ("path", "file")):
        if part in name:
            return kind
    return "text"


def _is_argument(param: Parameter) -> bool:
    return bool(param.param_type_name == "argument")


def _has_one_value(param: Parameter) -> bool:
    return not (_is_argument(param) or param.multiple or param.is_flag or param.count)


def _usage_of(argument: Parameter) -> str:
    """Return an argument in a usage line; its metavar may have brackets of its own."""
    word = name_of(argument)
    if "[" in word:
        return word
    if not argument.required:
        word = f"[{word}]"
    return word if argument.nargs == 1 else f"{word}..."


def _write_params(params: list[Parameter], formatter: Formatter) -> None:
    """Write the arguments and the options, each with what it is for."""
    shown = [param for param in params if not getattr(param, "hidden", False)]
    arguments = [(name_of(param), _help_of(param)) for param in shown if _is_argument(param)]
    options = [(_option_of(param), _help_of(param)) for param in shown if not _is_argument(param)]
    for title, rows in (("Arguments", arguments), ("Options", options)):
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def _option_of(param: Parameter) -> str:
    """Return an option with the word for its value: `-c, --config FILE`."""
    names = ", ".join(sorted(param.opts, key=len))
    if param.is_flag or param.count:
        return names
    return f"{names} {param.metavar or _word_of(param)}"


def _word_of(param: Parameter) -> str:
    """Return a word for the value of an option that has none of its own."""
    kind = kind_of(param)
    if kind.endswith("number"):
        return "NUMBER"
    if kind == "file":
        return "DIRECTORY" if "dir" in param.name else "FILE"
    return str(param.name.upper())


def _help_of(param: Parameter) -> str:
    """Return what a parameter is for, with its range and its default."""
    extras = [range_of(param)] if range_of(param) else []

    default = param.default
    is_shown = param.show_default and default != "" and not getattr(param, "is_flag", False)
    if is_shown and isinstance(default, str | int | float | Path):
        extras.append(f"default {default}")
    if param.required and not _is_argument(param):
        extras.append("required")

    help = param.help or ""
    return f"{help} ({'; '.join(extras)})" if extras else help
