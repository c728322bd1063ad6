"""Machine code that is the same in the process that compiles it and in those that read it.

Numba compiles each function that an entry point calls on its own as well. The process that does so
would link these instead of the entry point's copies of them, which LLVM has optimized in their
place, and which may round otherwise. A process that reads the kept code has nothing but the copies.

This has to use private parts of Numba; importing it raises where another version has others.
"""

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class WithOwnCopies(Compiler):
    """Numba's compiler, for an entry point that calls its own copies of other functions."""

    def __init__(
        self, typingctx: Any, targetctx: Any, library: Any, *rest: Any, **options: Any
    ) -> None:
        # What Numba would make if there were none, but of another class.
        library = _Library(targetctx.codegen(), "rnncls")
        library.enable_object_caching()
        super().__init__(typingctx, targetctx, library, *rest, **options)


class _Library(JITCodeLibrary):
    """The code of one entry point."""

    def _finalize_final_module(self) -> None:
        for function in self._final_module.functions:
            # A copy, in whose place the linker may take the same function of another module.
            if not function.is_declaration and function.linkage.name == "linkonce_odr":
                function.linkage = "internal"
        super()._finalize_final_module()
