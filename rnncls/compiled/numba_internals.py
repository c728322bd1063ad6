"""The private parts of Numba that `compiler` uses. To import this raises where there are others."""

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class EntryPoint(Compiler):
    """Numba's compiler, for a function that Python calls."""

    def __init__(
        self, typingctx: Any, targetctx: Any, library: Any, *rest: Any, **options: Any
    ) -> None:
        # Numba makes a library if it is given none. This one is of another class.
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


class Part(Compiler):
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
        return 0  # For Numba, there is no function of this name.

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


class _NoEnvironments:
    """What Numba asks to connect a part with Python, which it does not need."""

    def set_env(self, _name: str, _environment: Any) -> None:
        pass
