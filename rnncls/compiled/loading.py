"""Compiles the entry points of a program, or reads what an earlier process compiled."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from rnncls.compiled import compiler
from rnncls.compiled.compiler import entry_point
from rnncls.compiled.kept import CodeFolder, KeptCode, code_folder, say_compiling, warn

# The entry points of a program, by name.
Functions = TypeVar("Functions")


def load(
    modules: Sequence[ModuleType],
    make: Callable[[Callable[..., Any]], Functions],
    warm_up: Callable[[Functions], None],
    what: str,
    seconds: int,
) -> Functions:
    """Return the functions of a program as machine code, from the folder where they are kept.

    If they are not there they are compiled, which takes seconds, and kept; without a folder they
    are compiled for this process alone. `modules`: all sources on which the machine code depends.
    `make` applies what it is given to each Python function. `warm_up` calls those that are needed,
    for Numba compiles at the first call. `what` is compiled, and about how many `seconds` that
    takes, is what people are told.
    """
    # How they are compiled is part of what the machine code depends on.
    paths = [Path(str(module.__file__)) for module in (*modules, compiler)]
    paths.append(Path(compiler.__file__).with_name("numba_internals.py"))
    sources = b"".join(path.read_bytes() for path in paths)
    folder = code_folder(sources, what, seconds)
    if folder is not None:
        try:
            return _ready(make, warm_up, folder)
        # What is kept is whole, but Numba may raise anything when it loads it.
        except Exception as error:
            warn(f"compiled code cannot be kept in {folder.path}: {error}")

    say_compiling(f"{what} (about {seconds} s)")
    return _ready(make, warm_up, None)


def _ready(
    make: Callable[[Callable[..., Any]], Functions],
    warm_up: Callable[[Functions], None],
    folder: CodeFolder | None,
) -> Functions:
    """Return the functions, compiled or read from the folder, if there is one."""

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = entry_point(function)
        if folder is not None:
            dispatcher._cache = KeptCode(function.__name__, folder)
        return dispatcher

    functions = make(compiled)
    warm_up(functions)
    return functions
