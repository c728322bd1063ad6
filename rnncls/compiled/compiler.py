"""How Numba compiles the functions of a program: its entry points, and the parts they are made of.

Python calls an entry point, and entry points call parts. Numba would optimize each part and turn it
into machine code on its own, and then do the same once more for the copies inside the entry point.
So a part is optimized as a whole and becomes machine code only there, which takes half of the time.

It also gives the same bits to the process that compiles and to those that read the kept code. If
there were machine code of the parts, the linker of the process that compiles would take that, in
place of the copies that LLVM has optimized inside the entry point and that may round otherwise.

This needs private parts of Numba (`numba_internals`). Where another version has others, compiling
takes longer, and the process that compiles may round otherwise than those that read.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit

_OPTIONS: dict[str, Any] = {
    # LLVM may reorder sums, so that loops become vector instructions ("reassoc"), fuse a product
    # and a sum ("contract"), ignore the sign of zero ("nsz") and divide by multiplying ("arcp").
    # "nnan" and "ninf" are left out: a loss or gradient that is not finite must be noticed.
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    # Division by zero gives an infinity instead of an exception, as in NumPy.
    "error_model": "numpy",
    # Other Python threads run at the same time.
    "nogil": True,
    # References to arrays are not counted, which would take a fifth of a small step's time: the
    # caller of the entry point holds all arrays, and no function makes one.
    "_nrt": False,
    # No function is called from C.
    "no_cfunc_wrapper": True,
    # Otherwise a function would be inlined because its caller is.
    "forceinline": False,
}


_ENTRY_POINT = {**_OPTIONS}
_PART = {**_OPTIONS, "no_cpython_wrapper": True}

with suppress(ImportError):
    from rnncls.compiled.numba_internals import EntryPoint, Part

    _ENTRY_POINT["pipeline_class"] = EntryPoint
    _PART["pipeline_class"] = Part

# For parts. To call one from Python ends the process, unless it has been given to `entry_point`.
jit: Callable[..., Any] = njit(**_PART)

# For parts that give a name to some lines of their caller: LLVM copies them into it.
jit_inlined: Callable[..., Any] = njit(**{**_PART, "forceinline": True})

# For parts that return an array. Without counted references, Numba refuses an array as a result,
# though not in a tuple. It copies these parts into their caller, which takes long if they have more
# than a line or two.
jit_view: Callable[..., Any] = njit(inline="always", **_OPTIONS)


def entry_point(function: Callable[..., Any]) -> Any:
    """Return the function, or part, for calls from Python. The first call compiles it."""
    return njit(getattr(function, "py_func", function), **_ENTRY_POINT)
