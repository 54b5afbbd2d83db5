"""Tuples as registers: one operation for all elements of a tuple, written out for each of them without a loop.

What a thread holds of a matrix that Hopper's tensor cores multiply is a tuple of float32. A tuple is a value, with no
memory behind it, so the compiler keeps each element in a register. Kernels apply ordinary device functions to tuples:

    weights = each(exponential, (scores, shift))   # (exponential(0, scores[0], shift), exponential(1, scores[1], ...
    words = each_pair(rounded, (weights,))         # (rounded(0, (weights[0], weights[1])), rounded(1, ...
    total = fold(add, weights, total)              # total + weights[0] + weights[1] + ...

The function's first argument is the place, which the compiler knows. Of the arguments, a tuple as long as the first one
gives an element (a pair, four) to each call, one half as long half as many; everything else is handed to all calls as
it is.
"""

from __future__ import annotations

from kernels import SIMULATED
from kernels.intrinsics import device_operation, members

if not SIMULATED:
    from numba.cuda import types

tuple_operation = device_operation("kernels.simulator.tuples")


def _share(argument, n: int, group: int) -> int:
    """Return how many elements of an argument go to one call; 0 if it is handed over as it is."""
    is_spread = isinstance(argument, types.UniTuple) and len(argument) in (n, n // 2)
    return len(argument) * group // n if is_spread else 0


def _part_type(argument, size: int):
    """Return the type of what one call gets of an argument."""
    return argument if size == 0 else argument.dtype if size == 1 else types.UniTuple(argument.dtype, size)


def _call(context, builder, function, signature, given: list, values: list):
    """Call a device function with LLVM values whose Numba types are `given`."""
    values = [context.cast(builder, v, a, b) for v, a, b in zip(values, given, signature.args, strict=True)]
    return context.get_function(function, signature)(builder, values)


def _each(typing_context, function, arguments, group: int):
    """Signature and code of the calls of a function with `group` elements at a time."""
    n = len(arguments[0])

    given = [types.int64, *(_part_type(argument, _share(argument, n, group)) for argument in arguments)]
    called = function.get_call_type(typing_context, tuple(given), {})
    returned = called.return_type
    width = len(returned) if isinstance(returned, types.UniTuple) else 1
    result = types.UniTuple(returned.dtype if width > 1 else returned, n // group * width)

    def generate(context, builder, signature, values):
        wholes = members(builder, values[1], len(arguments))
        results = []
        for i in range(n // group):
            row = [context.get_constant(types.int64, i)]
            for whole, argument, wanted in zip(wholes, arguments, given[1:], strict=True):
                size = _share(argument, n, group)
                own = [builder.extract_value(whole, size * i + e) for e in range(size)] or [whole]
                row.append(own[0] if size < 2 else context.make_tuple(builder, wanted, own))
            value = _call(context, builder, function, called, given, row)
            results += members(builder, value, width) if width > 1 else [value]
        return context.make_tuple(builder, result, results)

    return result(function, arguments), generate


@tuple_operation
def each(typing_context, function, arguments):
    """Return the tuple of function(i, element i of each tuple of `arguments`)."""
    return _each(typing_context, function, arguments, 1)


@tuple_operation
def each_pair(typing_context, function, arguments):
    """The same with elements 2 * i and 2 * i + 1 as a tuple; what is returned is strung together."""
    return _each(typing_context, function, arguments, 2)


@tuple_operation
def each_four(typing_context, function, arguments):
    """The same with four elements at a time."""
    return _each(typing_context, function, arguments, 4)


@tuple_operation
def fold(typing_context, function, values, start):
    """Return function(start, all elements combined by it), in two chains so that two calls can be under way."""
    given = [values.dtype, values.dtype]
    called = function.get_call_type(typing_context, tuple(given), {})

    def generate(context, builder, signature, arguments):
        chains = members(builder, arguments[1], 2)
        for i in range(2, len(values)):
            element = builder.extract_value(arguments[1], i)
            chains[i % 2] = _call(context, builder, function, called, given, [chains[i % 2], element])
        combined = _call(context, builder, function, called, given, chains)
        return _call(context, builder, function, called, given, [arguments[2], combined])

    return values.dtype(function, values, values.dtype), generate


def _every_other_pair(values, first: int):
    """Signature and code of taking elements `first`, `first + 1`, `first + 4`, `first + 5`, and so on."""
    half = types.UniTuple(values.dtype, len(values) // 2)

    def generate(context, builder, signature, arguments):
        places = [i for i in range(len(values)) if i & 2 == first]
        return context.make_tuple(builder, half, [builder.extract_value(arguments[0], i) for i in places])

    return half(values), generate


@tuple_operation
def upper_row(typing_context, values):
    """Return what belongs to the upper of the thread's two rows: elements 0, 1, 4, 5, 8, 9, ..."""
    return _every_other_pair(values, 0)


@tuple_operation
def lower_row(typing_context, values):
    """Return what belongs to the lower of the thread's two rows: elements 2, 3, 6, 7, 10, 11, ..."""
    return _every_other_pair(values, 2)
