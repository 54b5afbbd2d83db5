"""What a kernel is compiled from, as one short text: two kernels have the same fingerprint only if they are the same.

Compiled code depends on more than a function's own lines: on the constants that a factory gave it, on the device
functions and intrinsics that it calls and on theirs, on values of the module that somebody may have set anew. All of it
is followed from the function and hashed by value, and with it the sources of the modules of this package that it leads
to, though what they define is hashed already: a wrong kernel would be worse than one compiled without need. What cannot
be described so that every process finds the same text has no fingerprint: it is compiled anew in each process.
"""

from __future__ import annotations

import builtins
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType, SimpleNamespace

import numpy as np

_BY_VERSION = {"numba", "numba_cuda", "llvmlite", "numpy", "cuda", *sys.stdlib_module_names} - {"__main__"}
"""Packages whose functions and classes are known by their names: the versions are part of `compile_cache`'s key."""

_PLAIN = (type(None), type(Ellipsis), bool, int, float, complex, str, bytes)


class NoFingerprintError(Exception):
    """Something that a kernel uses cannot be described."""


def fingerprint(*values: object) -> str:
    """Return the fingerprint of functions and of plain values.

    Raises:
        NoFingerprintError: Something in them cannot be described.
    """
    description = _Description()
    found = hashlib.sha256(repr(description.of(values)).encode())
    for module in sorted(description.modules | {__name__}):
        found.update(f"{module} {_source_hash(module)}".encode())
    return found.hexdigest()


@functools.cache
def _source_hash(module: str) -> str:
    return hashlib.sha256(Path(sys.modules[module].__file__).read_bytes()).hexdigest()


def _root(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _name(value: object) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _is_own_module(value: object) -> bool:
    return isinstance(value, ModuleType) and _root(value.__name__) not in _BY_VERSION


def _names_in(code: CodeType) -> Iterator[str]:
    """Give the names of globals and attributes in a function and in those inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


class _Description:
    """Describes values as nested tuples of texts. Functions may call one another: the second time, one is a number."""

    def __init__(self) -> None:
        self.modules: set[str] = set()  # of this package, to which the values lead
        self._seen: dict[int, tuple[int, object]] = {}  # by identity; the object is kept, so that no other gets its id

    def of(self, value: object) -> tuple:
        """Describe anything."""
        if isinstance(value, _PLAIN):
            return type(value).__name__, repr(value)
        if isinstance(value, (tuple, list)):
            return (_name(type(value)), *map(self.of, value))
        if isinstance(value, (set, frozenset)):
            return (type(value).__name__, *sorted((self.of(v) for v in value), key=repr))
        if isinstance(value, dict):
            return ("dict", *(part for item in value.items() for part in map(self.of, item)))
        if isinstance(value, (np.ndarray, np.generic)):
            return "numpy", str(value.dtype), repr(value.shape), hashlib.sha256(value.tobytes()).hexdigest()
        if isinstance(value, CodeType):
            return self._code(value)
        if id(value) in self._seen:
            return "again", str(self._seen[id(value)][0])
        self._seen[id(value)] = len(self._seen), value
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if _root(home) == "kernels":
            self.modules.add(home)
        return self._object(value)

    def _object(self, value: object) -> tuple:
        """Describe what has a name, or parts of its own."""
        from llvmlite import ir
        from numba.cuda.dispatcher import CUDADispatcher
        from numba.cuda.extending import _Intrinsic
        from numba.cuda.types import Type

        if isinstance(value, ModuleType):  # its members are described where they are used
            return "module", value.__name__
        if isinstance(value, Type):
            return "type", _name(type(value)), repr(value), repr(value.key)
        if isinstance(value, ir.Type):
            return "llvm type", _name(type(value)), str(value)
        if isinstance(value, CUDADispatcher):
            return "jit", self.of(value.py_func), self.of(sorted(value.targetoptions.items()))
        if isinstance(value, _Intrinsic):
            return "intrinsic", self.of(value._defn), repr(value._prefer_literal)
        if isinstance(value, functools._lru_cache_wrapper):
            return "cached", self.of(value.__wrapped__)
        if isinstance(value, FunctionType) and _root(value.__module__) not in _BY_VERSION:
            return self._function(value)
        if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
            if _root(value.__module__) in _BY_VERSION | {"kernels"}:  # the package's classes are in its sources
                return "name", _name(value)
        elif isinstance(value, SimpleNamespace) or _root(type(value).__module__) == "kernels":
            return "object", _name(type(value)), self.of(vars(value))
        raise NoFingerprintError(f"{type(value).__name__} {value!r}")

    def _code(self, code: CodeType) -> tuple:
        names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
        arguments = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
        handlers = code.co_exceptiontable.hex()
        return "code", code.co_code.hex(), handlers, self.of(code.co_consts), repr(names), repr(arguments)

    def _function(self, function: Callable) -> tuple:
        """Describe a function, what it captured, and the globals whose names it mentions, of modules the members."""
        names = sorted(set(_names_in(function.__code__)))
        captured = [cell.cell_contents for cell in function.__closure__ or ()]
        used = {name: function.__globals__[name] for name in names if name in function.__globals__}
        members, modules = {}, [value for value in (*used.values(), *captured) if _is_own_module(value)]
        for module in modules:  # grows
            found = {f"{module.__name__}.{name}": getattr(module, name) for name in names if hasattr(module, name)}
            members |= found
            modules += [value for value in found.values() if _is_own_module(value) and value not in modules]
        unknown = [name for name in names if name not in used and hasattr(builtins, name)]
        parts = function.__code__, function.__defaults__, function.__kwdefaults__, captured, used, members, unknown
        return ("function", _name(function), *map(self.of, parts))
