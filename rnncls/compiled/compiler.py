"""How Numba compiles the functions of a program: its entry points, and the parts they are made of.

Python calls an entry point, and entry points call parts. Numba would optimize each part and turn it
into machine code on its own, and then do the same once more for the copies inside the entry point.
A part is therefore left as it is until it is in an entry point, which takes half of the time.

It also gives the same bits to the process that compiles and to those that read the kept code. If
there were machine code of the parts, the linker of the process that compiles would take that, in
place of the copies that LLVM has optimized inside the entry point and that may round otherwise.

This has to use private parts of Numba; importing it raises where another version has others.
"""

from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

_OPTIONS: dict[str, Any] = {
    # LLVM may reorder sums, so that loops become vector instructions ("reassoc"), fuse a product
    # and a sum ("contract"), ignore the sign of zero ("nsz") and divide by multiplying ("arcp").
    # "nnan" and "ninf" are left out: a loss or gradient that is not finite must be noticed.
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    # Division by zero gives an infinity instead of an exception, as in NumPy.
    "error_model": "numpy",
    # Other Python threads run at the same time.
    "nogil": True,
    # Nobody counts who uses an array, which takes a fifth of a small step's time: the caller holds
    # all of them, and no function makes one.
    "_nrt": False,
    # C calls none of them.
    "no_cfunc_wrapper": True,
    # Unless it is said, a function is inlined where its caller is.
    "forceinline": False,
}


class _EntryPoint(Compiler):
    """Numba's compiler, for a function that Python calls."""

    def __init__(
        self, typingctx: Any, targetctx: Any, library: Any, *rest: Any, **options: Any
    ) -> None:
        # What Numba would make if there were none, but of another class.
        library = _EntryPointCode(targetctx.codegen(), "rnncls")
        library.enable_object_caching()
        super().__init__(typingctx, targetctx, library, *rest, **options)


class _EntryPointCode(JITCodeLibrary):
    """The code of one entry point, with its own copies of all parts."""

    def _finalize_final_module(self) -> None:
        for function in self._final_module.functions:
            # A copy, in whose place the linker could take that of another entry point.
            if not function.is_declaration and function.linkage.name == "linkonce_odr":
                function.linkage = "internal"
        super()._finalize_final_module()


class _Part(Compiler):
    """Numba's compiler, for a function that only compiled code calls."""

    def __init__(
        self, typingctx: Any, targetctx: Any, library: Any, *rest: Any, **options: Any
    ) -> None:
        library = _PartCode(targetctx.codegen(), "rnncls")
        super().__init__(typingctx, targetctx, library, *rest, **options)


class _PartCode(JITCodeLibrary):
    """The code of a part, which other code copies and which never becomes machine code."""

    @property
    def codegen(self) -> Any:
        return _NoEnvironments()

    def get_pointer_to_function(self, _name: str) -> int:
        return 0  # Numba takes it that there is no function of this name.

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


class _NoEnvironments:
    """What Numba asks to connect a part with Python, which it does not need."""

    def set_env(self, _name: str, _environment: Any) -> None:
        pass


_PART: dict[str, Any] = {
    **_OPTIONS,
    "no_cpython_wrapper": True,
    "pipeline_class": _Part,
}

# For parts. A call from Python ends the process: see `entry_point`.
jit: Callable[..., Any] = njit(**_PART)

# For parts that give a name to some lines of their caller: LLVM copies them into it.
jit_inlined: Callable[..., Any] = njit(**{**_PART, "forceinline": True})

# For parts that return a view of an array, which must not be functions of their own, since nobody
# counts who uses the memory. Numba copies them into their caller, which takes long if they have
# more than a line or two.
jit_view: Callable[..., Any] = njit(inline="always", **_OPTIONS)


def entry_point(function: Callable[..., Any]) -> Any:
    """Return the function, or part, for calls from Python. The first call compiles it."""
    return njit(getattr(function, "py_func", function), pipeline_class=_EntryPoint, **_OPTIONS)
