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


def _load_words(builder, pointer, n_words: int, letter: str, wanted=None, space: str = "global") -> list:
    """Load 2 or 4 words at once as LLVM values of register letter r or f; zeros if `wanted` (32 bits) is 0."""
    results = [f"${i}" for i in range(n_words)]
    kind = {"r": "u32", "f": "f32"}[letter]
    text = f"ld.{space}.v{n_words}.{kind} {{{', '.join(results)}}}, [${n_words}];"
    if wanted is None:
        return members(builder, emit(builder, text, letter * n_words, "l", [pointer], effects=True), n_words)
    zeros = " ".join(f"mov.b32 {result}, 0;" for result in results)
    text = f"{{ .reg .pred p; setp.ne.u32 p, ${n_words + 1}, 0; {zeros} @p {text} }}"
    return members(builder, emit(builder, text, letter * n_words, "lr", [pointer, wanted], effects=True), n_words)


def _store_words(builder, pointer, words: list, letter: str, wanted=None) -> None:
    """Store 2 or 4 words at once, or nothing if `wanted` (32 bits) is 0."""
    operands = ", ".join(f"${i + 1}" for i in range(len(words)))
    kind = {"r": "u32", "f": "f32"}[letter]
    text = f"st.global.v{len(words)}.{kind} [$0], {{{operands}}};"
    arguments = [pointer, *words]
    if wanted is not None:
        text = f"{{ .reg .pred p; setp.ne.u32 p, ${len(words) + 1}, 0; @p {text} }}"
        arguments.append(wanted)
    letters = "l" + letter * len(words) + "r" * (wanted is not None)
    emit(builder, text, "", letters, arguments, effects=True)


def _load_elements(builder, bf16: bool, pointer, n: int, wanted=None, space: str = "global") -> list:
    """Load `n` elements as LLVM floats."""
    if bf16:
        return [x for word in _load_words(builder, pointer, n // 2, "r", wanted, space) for x in _widen(builder, word)]
    starts = [_bytes_after(builder, pointer, 16 * k) for k in range(n // 4)]
    return [x for start in starts for x in _load_words(builder, start, 4, "f", wanted, space)]


def _store_elements(builder, bf16: bool, pointer, floats: list, wanted=None) -> None:
    """Store LLVM floats as elements."""
    n = len(floats)
    if bf16:
        words = [_narrow(builder, floats[j], floats[j + 1]) for j in range(0, n, 2)]
        _store_words(builder, pointer, words, "r", wanted)
    else:
        for k in range(0, n, 4):
            _store_words(builder, _bytes_after(builder, pointer, 4 * k), floats[k : k + 4], "f", wanted)


def _local_pointers(context, builder, array_type, array, n: int) -> list:
    """Return the addresses of the first `n` elements of a local array."""
    data = context.make_array(array_type)(context, builder, value=array).data
    return [builder.gep(data, [ir.Constant(ir.IntType(64), j)]) for j in range(n)]


def _load_many(n: int, into, array, index, space: str = "global"):
    """Signature and code of a load of `n` elements."""
    bf16 = _is_bf16(array)

    def generate(context, builder, signature, arguments):
        into, array, index = arguments
        pointer = element_pointer(context, builder, signature.args[1], array, index)
        if space == "shared":
            number = builder.ptrtoint(builder.addrspacecast(pointer, ir.IntType(8).as_pointer(3)), ir.IntType(32))
            pointer = builder.inttoptr(builder.zext(number, ir.IntType(64)), ir.IntType(8).as_pointer())
        targets = _local_pointers(context, builder, signature.args[0], into, n)
        for x, target in zip(_load_elements(builder, bf16, pointer, n, space=space), targets, strict=True):
            builder.store(x, target)
        return context.get_dummy_value()

    return types.void(into, array, types.int64), generate


def _store_many(n: int, array, index, values):
    """Signature and code of a store of `n` elements."""
    bf16 = _is_bf16(array)

    def generate(context, builder, signature, arguments):
        array, index, values = arguments
        sources = _local_pointers(context, builder, signature.args[2], values, n)
        pointer = element_pointer(context, builder, signature.args[0], array, index)
        _store_elements(builder, bf16, pointer, [builder.load(source) for source in sources])
        return context.get_dummy_value()

    return types.void(array, types.int64, values), generate


def _strided(context, builder, array_type, array, index, stride, limit, count: int) -> list:
    """Return, of each of `count` places, its address and whether it lies before the limit (32 bits)."""
    places = [index]
    for _ in range(1, count):
        places.append(builder.add(places[-1], stride))
    pointers = [element_pointer(context, builder, array_type, array, place) for place in places]
    wanted = [builder.zext(builder.icmp_signed("<", place, limit), ir.IntType(32)) for place in places]
    return list(zip(pointers, wanted, strict=True))


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
def as_held(typing_context, array, x):
    """Return a float32 rounded as it would be by storing it in the array."""
    bf16 = _is_bf16(array)

    def generate(context, builder, signature, arguments):
        _, x = arguments
        if not bf16:
            return x
        return _widen(builder, _narrow(builder, x, x))[0]

    return types.float32(array, types.float32), generate


@element_access
def load4(typing_context, into_4, array, index):
    """Load elements `index` to `index + 3` into a local array of four float32."""
    return _load_many(4, into_4, array, index)


@element_access
def load8(typing_context, into_8, array, index):
    """Load elements `index` to `index + 7` into a local array of eight float32."""
    return _load_many(8, into_8, array, index)


@element_access
def load8_shared(typing_context, into_8, array, index):
    """Like load8 from an array in shared memory."""
    return _load_many(8, into_8, array, index, "shared")


@element_access
def store4(typing_context, array, index, from_4):
    """Store four float32 of a local array as elements `index` to `index + 3`."""
    return _store_many(4, array, index, from_4)


@element_access
def store8(typing_context, array, index, from_8):
    """Store eight float32 of a local array as elements `index` to `index + 7`."""
    return _store_many(8, array, index, from_8)


@element_access
def load_packs(typing_context, into, array, index, stride, limit, count):
    """Load `count` (a literal) packs of eight that begin `stride` elements apart; zeros for those not below `limit`.

    All loads are under way before the first result is needed, so a thread waits for memory once and not `count` times.
    """
    if not isinstance(count, types.IntegerLiteral):
        return None
    bf16, times = _is_bf16(array), count.literal_value

    def generate(context, builder, signature, arguments):
        into, array, *place, _ = arguments
        targets = _local_pointers(context, builder, signature.args[0], into, 8 * times)
        for k, (pointer, wanted) in enumerate(_strided(context, builder, signature.args[1], array, *place, times)):
            for j, x in enumerate(_load_elements(builder, bf16, pointer, 8, wanted)):
                builder.store(x, targets[8 * k + j])
        return context.get_dummy_value()

    return types.void(into, array, types.int64, types.int64, types.int64, count), generate


@element_access
def store_packs(typing_context, array, index, stride, limit, values, count):
    """Store `count` (a literal) packs of eight that begin `stride` elements apart, of them those below `limit`."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    bf16, times = _is_bf16(array), count.literal_value

    def generate(context, builder, signature, arguments):
        array, *place, values, _ = arguments
        sources = _local_pointers(context, builder, signature.args[4], values, 8 * times)
        for k, (pointer, wanted) in enumerate(_strided(context, builder, signature.args[0], array, *place, times)):
            floats = [builder.load(source) for source in sources[8 * k : 8 * k + 8]]
            _store_elements(builder, bf16, pointer, floats, wanted)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, types.int64, values, count), generate


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
