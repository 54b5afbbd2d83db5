"""Elements of float32 and bfloat16 arrays as float32 in registers: one kernel source for both dtypes.

A bfloat16 array is an array of uint16. Arithmetic is in float32 always; loading widens, storing rounds to nearest even.
`load8` and `store8` move eight elements with 128-bit accesses (one for bfloat16, two for float32), `load4` and `store4`
move four (64 and 128 bits). They go to and from a local array, which the compiler keeps in registers.

A kernel for any size works on packs of eight. `load_pack` and `store_pack` move the first `packs` of a row (or a flat
array) with 128-bit accesses, and the elements after them, or all if the row is not aligned, one by one:

    x_8 = cuda.local.array(8, float32)
    pack = cuda.grid(1)
    while pack < n_packs_of(inp_N):
        load_pack(x_8, inp_N, pack, packs)
        for j in range(8):
            x_8[j] *= scale
        store_pack(out_N, pack, packs, x_8)
        pack += cuda.gridsize(1)

Loops are written with `while` because Numba computes the length of such a `range` with a 64-bit division, which costs
more than the body. Arrays are one-dimensional; a row of a matrix is one.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels import SIMULATED
from kernels.intrinsics import device_operation, element_pointer, emit, members

if not SIMULATED:
    from llvmlite import ir
    from numba.cuda import types

element_access = device_operation("kernels.simulator.elements")


def _is_bf16(array_type) -> bool:
    """Tell the two dtypes apart, and refuse any other while the kernel is compiled."""
    if array_type.dtype not in (types.float32, types.uint16) or array_type.ndim != 1:
        raise TypeError(f"elements are loaded from 1-D float32 or uint16 (bfloat16) arrays, not from {array_type}")
    return array_type.dtype == types.uint16


def _widen(builder, word) -> list:
    """Make of a word of two bfloat16 two LLVM floats."""
    low = builder.shl(word, ir.Constant(ir.IntType(32), 16))
    high = builder.and_(word, ir.Constant(ir.IntType(32), 0xFFFF0000))
    return [builder.bitcast(bits, ir.FloatType()) for bits in (low, high)]


def _narrow(builder, low, high):
    return emit(builder, "cvt.rn.bf16x2.f32 $0, $2, $1;", "r", "ff", [low, high])


def _bytes_after(builder, pointer, n_bytes: int):
    """Return the pointer moved on by some bytes."""
    as_bytes = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    return builder.gep(as_bytes, [ir.Constant(ir.IntType(64), n_bytes)])


def _load_floats(builder, pointer, n_words: int, letter: str) -> list:
    """Load 2 or 4 words at once as LLVM values of register letter r or f."""
    results = ", ".join(f"${i}" for i in range(n_words))
    kind = {"r": "u32", "f": "f32"}[letter]
    text = f"ld.global.v{n_words}.{kind} {{{results}}}, [${n_words}];"
    return members(builder, emit(builder, text, letter * n_words, "l", [pointer], effects=True), n_words)


def _store_words(builder, pointer, words: list, letter: str) -> None:
    """Store 2 or 4 words at once."""
    operands = ", ".join(f"${i + 1}" for i in range(len(words)))
    kind = {"r": "u32", "f": "f32"}[letter]
    text = f"st.global.v{len(words)}.{kind} [$0], {{{operands}}};"
    emit(builder, text, "", "l" + letter * len(words), [pointer, *words], effects=True)


def _load_many(n: int, into, array, index):
    """Signature and code of a load of `n` elements."""
    bf16 = _is_bf16(array)

    def generate(context, builder, signature, arguments):
        into, array, index = arguments
        pointer = element_pointer(context, builder, signature.args[1], array, index)
        if bf16:
            words = _load_floats(builder, pointer, n // 2, "r")
            floats = [x for word in words for x in _widen(builder, word)]
        else:
            starts = [_bytes_after(builder, pointer, 16 * k) for k in range(n // 4)]
            floats = [x for start in starts for x in _load_floats(builder, start, 4, "f")]
        target = context.make_array(signature.args[0])(context, builder, value=into).data
        for j, x in enumerate(floats):
            builder.store(x, builder.gep(target, [ir.Constant(ir.IntType(64), j)]))
        return context.get_dummy_value()

    return types.void(into, array, types.int64), generate


def _store_many(n: int, array, index, values):
    """Signature and code of a store of `n` elements."""
    bf16 = _is_bf16(array)

    def generate(context, builder, signature, arguments):
        array, index, values = arguments
        source = context.make_array(signature.args[2])(context, builder, value=values).data
        floats = [builder.load(builder.gep(source, [ir.Constant(ir.IntType(64), j)])) for j in range(n)]
        pointer = element_pointer(context, builder, signature.args[0], array, index)
        if bf16:
            words = [_narrow(builder, floats[j], floats[j + 1]) for j in range(0, n, 2)]
            _store_words(builder, pointer, words, "r")
        else:
            for k in range(n // 4):
                _store_words(builder, _bytes_after(builder, pointer, 16 * k), floats[4 * k : 4 * k + 4], "f")
        return context.get_dummy_value()

    return types.void(array, types.int64, values), generate


@element_access
def load(typing_context, array, index):
    """Return one element as float32."""
    bf16 = _is_bf16(array)

    def generate(context, builder, signature, arguments):
        value = builder.load(element_pointer(context, builder, signature.args[0], *arguments))
        if bf16:
            bits = builder.shl(builder.zext(value, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
            value = builder.bitcast(bits, ir.FloatType())
        return value

    return types.float32(array, types.int64), generate


@element_access
def store(typing_context, array, index, x):
    """Store a float32 as one element."""
    bf16 = _is_bf16(array)

    def generate(context, builder, signature, arguments):
        array, index, x = arguments
        if bf16:
            x = emit(builder, "cvt.rn.bf16.f32 $0, $1;", "h", "f", [x])
        builder.store(x, element_pointer(context, builder, signature.args[0], array, index))
        return context.get_dummy_value()

    return types.void(array, types.int64, types.float32), generate


@element_access
def load4(typing_context, into_4, array, index):
    """Load elements `index` to `index + 3` into a local array of four float32."""
    return _load_many(4, into_4, array, index)


@element_access
def load8(typing_context, into_8, array, index):
    """Load elements `index` to `index + 7` into a local array of eight float32."""
    return _load_many(8, into_8, array, index)


@element_access
def store4(typing_context, array, index, from_4):
    """Store four float32 of a local array as elements `index` to `index + 3`."""
    return _store_many(4, array, index, from_4)


@element_access
def store8(typing_context, array, index, from_8):
    """Store eight float32 of a local array as elements `index` to `index + 7`."""
    return _store_many(8, array, index, from_8)


@cuda.jit(device=True)
def n_packs_of(row):
    """Return the number of packs of eight that cover a row, the last of them perhaps in part."""
    return (row.size + 7) >> 3


@cuda.jit(device=True)
def load_pack(into_8, row, pack, packs):
    """Load the eight elements of a pack; the first `packs` are aligned and whole. Past the end of the row are zeros."""
    if pack < packs:
        load8(into_8, row, pack * 8)
    else:
        for j in range(8):
            i = pack * 8 + j
            into_8[j] = load(row, i) if i < row.size else float32(0)


@cuda.jit(device=True)
def store_pack(row, pack, packs, from_8):
    """Store the eight elements of a pack; what lies past the end of the row is dropped."""
    if pack < packs:
        store8(row, pack * 8, from_8)
    else:
        for j in range(8):
            i = pack * 8 + j
            if i < row.size:
                store(row, i, from_8[j])
