"""What kernels do with the accumulators of `kernels.wgmma`: zero, round, move to and from shared memory.

A tuple of registers cannot be looped over in Numba, so each of these is made for a number of registers and written out;
`kernels.tuples` applies a function to each. Sections in brackets: the PTX ISA, version 9.0.

Of the n floats of a thread, float i belongs to one of two rows, "upper" (i & 2 == 0) and "lower", 8 rows further down,
and to the column `column(i)` = 8 * (i // 4) + (i & 1), counted from the thread's first one. `thread` is the number
of the thread in its warp group, 0 to 127; its upper row is 16 * (thread // 32) + thread % 32 // 4 and its first column
2 * (thread % 4). A box is 64 rows of 128 bytes in the 128-byte swizzle at a shared address that is a multiple of 1024.
"""

from __future__ import annotations

from kernels import SIMULATED
from kernels.intrinsics import device_operation, emit, members, operation_family

if not SIMULATED:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    I32 = ir.IntType(32)

instruction = device_operation("kernels.simulator.accumulators")
family = operation_family("kernels.simulator.accumulators")


def column(i: int) -> int:
    """Return the column of a thread's float i, counted from its first."""
    return 8 * (i // 4) + (i & 1)


def _floats(n: int):
    return types.UniTuple(types.float32, n)


def _words(n: int):
    return types.UniTuple(types.uint32, n)


# ---- zeros, rounding -----------------------------------------------------------------------------------------------


@family
def zero_accumulators(n):
    """Make () -> n zeros that the compiler takes for computed ones: constants would be copied at each use."""

    @intrinsic
    def zeros(typing_context):
        def generate(context, builder, signature, arguments):
            text = " ".join(f"mov.f32 ${i}, 0f00000000;" for i in range(n))
            struct = emit(builder, text, "f" * n, "", [], effects=True)
            return context.make_tuple(builder, signature.return_type, members(builder, struct, n))

        return _floats(n)(), generate

    return zeros


@family
def zero_words(n):
    """Make () -> n words of zero."""

    @intrinsic
    def zeros(typing_context):
        def generate(context, builder, signature, arguments):
            return context.make_tuple(builder, signature.return_type, [ir.Constant(I32, 0)] * n)

        return _words(n)(), generate

    return zeros


def _pack(builder, floats: list) -> list:
    """Round pairs of floats to words of two bfloat16."""
    text = "cvt.rn.bf16x2.f32 $0, $2, $1;"
    return [emit(builder, text, "r", "ff", floats[i : i + 2]) for i in range(0, len(floats), 2)]


@family
def pack_accumulators(n):
    """Make (acc) -> n / 2 words of two bfloat16: as they are, the A operand of `wgmma_rs` [cvt.rn.bf16x2.f32]."""

    @intrinsic
    def pack(typing_context, acc):
        def generate(context, builder, signature, arguments):
            return context.make_tuple(builder, signature.return_type, _pack(builder, members(builder, arguments[0], n)))

        return _words(n // 2)(_floats(n)), generate

    return pack


# ---- to and from shared memory -------------------------------------------------------------------------------------


def _box_address(builder, box, thread, chunk: int):
    """Return the swizzled address, for `ldmatrix` and `stmatrix`, of a thread's row in one of two chunks of 16 bytes.

    Lanes 0 to 15 name the rows of `chunk`, an even number, and lanes 16 to 31 those of the chunk after it.
    """

    def constant(x):
        return ir.Constant(I32, x)

    lane = builder.and_(thread, constant(31))
    row = builder.add(builder.shl(builder.lshr(thread, constant(5)), constant(4)), builder.and_(lane, constant(15)))
    swizzled = builder.xor(builder.lshr(lane, constant(4)), builder.and_(row, constant(7)))
    in_row = builder.xor(builder.shl(swizzled, constant(4)), constant(chunk << 4))
    return builder.add(builder.add(box, builder.shl(row, constant(7))), in_row)


def _store_box(builder, words: list, box, thread) -> None:
    """Store words of two bfloat16, 32 for the 64 columns of a box, with `stmatrix`."""
    text = "stmatrix.sync.aligned.m8n8.x4.shared.b16 [$0], {$1, $2, $3, $4};"
    for i in range(0, len(words), 4):
        address = _box_address(builder, box, thread, i // 2)
        emit(builder, text, "", "rrrrr", [address, *words[i : i + 4]], effects=True)


@family
def store_bf16_box(n, first=0, columns=64):
    """Make (acc, box, thread): round the columns from `first` on, and store them from column 0 of a box [stmatrix]."""

    @intrinsic
    def store(typing_context, acc, box, thread):
        def generate(context, builder, signature, arguments):
            floats = members(builder, arguments[0], n)[first // 2 : (first + columns) // 2]
            _store_box(builder, _pack(builder, floats), arguments[1], arguments[2])
            return context.get_dummy_value()

        return types.void(_floats(n), types.uint32, types.uint32), generate

    return store


@family
def store_words_box(n, first=0, columns=64):
    """Like store_bf16_box for n words of two bfloat16, as `pack_accumulators` gives them [stmatrix]."""

    @intrinsic
    def store(typing_context, words, box, thread):
        def generate(context, builder, signature, arguments):
            chosen = members(builder, arguments[0], n)[first // 4 : (first + columns) // 4]
            _store_box(builder, chosen, arguments[1], arguments[2])
            return context.get_dummy_value()

        return types.void(_words(n), types.uint32, types.uint32), generate

    return store


@instruction
def load_words_box(typing_context, box, thread):
    """Load a box of 64 rows and 64 bfloat16 columns as 16 words, the A operand of 4 steps of `wgmma_rs` [ldmatrix]."""

    def generate(context, builder, signature, arguments):
        text, words = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];", []
        for chunk in range(0, 8, 2):
            address = _box_address(builder, *arguments, chunk)
            words += members(builder, emit(builder, text, "rrrr", "r", [address], effects=True), 4)
        return context.make_tuple(builder, signature.return_type, words)

    return _words(16)(types.uint32, types.uint32), generate


@family
def load_columns(n):
    """Make (address) -> n / 2 floats: of a row of floats in shared memory, those of the thread's columns.

    The address is that of the thread's first column, a multiple of 8 bytes. [Data Movement: ld.shared.v2]
    """

    @intrinsic
    def load(typing_context, address):
        def generate(context, builder, signature, arguments):
            floats = []
            for i in range(0, n, 4):
                text = f"ld.shared.v2.f32 {{$0, $1}}, [$2+{4 * column(i)}];"
                floats += members(builder, emit(builder, text, "ff", "r", arguments, effects=True), 2)
            return context.make_tuple(builder, signature.return_type, floats)

        return _floats(n // 2)(types.uint32), generate

    return load


@family
def store_float_box(n, first=0):
    """Make (acc, box, thread): store the 32 columns from `first` on as they are, a box of floats [st.shared.v2]."""

    @intrinsic
    def store(typing_context, acc, box, thread):
        def generate(context, builder, signature, arguments):
            acc, box, thread = arguments
            floats = members(builder, acc, n)[first // 2 : first // 2 + 16]
            for i in range(0, 16, 2):
                address = _float_address(builder, box, thread, i)
                emit(
                    builder, "st.shared.v2.f32 [$0], {$1, $2};", "", "rff", [address, *floats[i : i + 2]], effects=True
                )
            return context.get_dummy_value()

        return types.void(_floats(n), types.uint32, types.uint32), generate

    return store


def _float_address(builder, box, thread, i: int):
    """Return the swizzled address of a thread's float i in a box of floats."""

    def constant(x):
        return ir.Constant(I32, x)

    group = builder.and_(builder.lshr(thread, constant(2)), constant(7))
    row = builder.add(builder.shl(builder.lshr(thread, constant(5)), constant(4)), group)
    row = builder.add(row, constant(8 if i & 2 else 0))
    first_byte = builder.shl(builder.and_(thread, constant(3)), constant(3))  # two floats
    in_row = builder.xor(builder.add(first_byte, constant(4 * column(i))), builder.shl(group, constant(4)))
    return builder.add(builder.add(box, builder.shl(row, constant(7))), in_row)
