"""How an operation that Numba lacks gets into a kernel: on a GPU as inline PTX, in the simulator as a Python stand-in.

`ptx.py` and `elements.py` define their operations with this; kernels never need it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence

from kernels import SIMULATED

if not SIMULATED:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic


def device_operation(stand_ins: str) -> Callable[[Callable], Callable]:
    """Decorate the definition of an intrinsic: it becomes one on a GPU, and its stand-in in the simulator.

    Args:
        stand_ins: The module that holds a function of the same name for the simulator.
    """

    def decorate(definition: Callable) -> Callable:
        if not SIMULATED:
            return intrinsic(definition)
        stand_in = getattr(importlib.import_module(stand_ins), definition.__name__)
        stand_in.__doc__ = definition.__doc__
        return stand_in

    return decorate


def operation_family(stand_ins: str) -> Callable[[Callable], Callable]:
    """Decorate a function that makes an intrinsic for the sizes it is given; its stand-in makes one for the simulator.

    Args:
        stand_ins: The module that holds a function of the same name for the simulator.
    """

    def decorate(make: Callable) -> Callable:
        if not SIMULATED:
            return functools.cache(make)
        stand_in = functools.cache(getattr(importlib.import_module(stand_ins), make.__name__))
        return functools.wraps(make)(stand_in)

    return decorate


def _llvm_type(letters: str):
    """Return the LLVM type of results given as register letters: a scalar, a struct of several, or void for none."""
    of = {"r": ir.IntType(32), "h": ir.IntType(16), "l": ir.IntType(64), "f": ir.FloatType()}
    types = [of[letter] for letter in letters]
    return ir.VoidType() if not types else types[0] if len(types) == 1 else ir.LiteralStructType(types)


def emit(
    builder, text: str, results: str, operands: str, arguments: Sequence, *, tied: Sequence = (), effects: bool = False
):
    """Insert PTX text into the function being built and return its results as an LLVM value.

    Args:
        builder: llvmlite's IR builder.
        text: The instruction; $0, $1, ... are the results and then the arguments.
        results: A letter a result: r 32 bits, h 16 bits, l 64 bits, f float32 (as in CUDA's inline assembly).
        operands: The same for the arguments.
        arguments: LLVM values.
        tied: LLVM values that the first results start with, in the same registers; the text names them as results.
        effects: True if it reads or writes memory or synchronises, so that the compiler keeps its place.
    """
    constraints = [f"={letter}" for letter in results] + list(operands) + [str(i) for i in range(len(tied))]
    constraints += ["~{memory}"] if effects else []
    values = [*arguments, *tied]
    function = ir.FunctionType(_llvm_type(results), [value.type for value in values])
    return builder.call(ir.InlineAsm(function, text, ",".join(constraints), side_effect=effects), values)


def members(builder, aggregate, n: int) -> list:
    """Split a tuple or a struct into its LLVM values."""
    return [builder.extract_value(aggregate, i) for i in range(n)]


def element_pointer(context, builder, array_type, array, index):
    """Return the address of an element of a one-dimensional array."""
    return builder.gep(context.make_array(array_type)(context, builder, value=array).data, [index])


def on_registers(text: str, results: str, operands: str, *, effects: bool = False) -> Callable:
    """Make the code generator of an instruction whose arguments are all scalars."""

    def generate(context, builder, signature, arguments):
        value = emit(builder, text, results, operands, arguments, effects=effects)
        if not results:
            return context.get_dummy_value()
        if len(results) == 1:
            return value
        return context.make_tuple(builder, signature.return_type, members(builder, value, len(results)))

    return generate
