"""Every GPU instruction that Numba lacks, one documented intrinsic each.

A kernel imports the name from here and nothing else. On a GPU the name is an intrinsic that puts the instruction into
the kernel as inline PTX; in the simulator it is the stand-in of `kernels.simulator.instructions`. The brackets name the
section of NVIDIA's "Parallel Thread Execution ISA", version 9.0, chapter "Instruction Set", whose words the
stand-ins follow. Arrays handed to these are one-dimensional and C-contiguous; an index counts elements of the array.

Not here on purpose: `tanh.approx`. Its error of 2**-11 is lost in a bfloat16 result near 1, but not in
`1 + tanh(x)` for negative x, which GELU needs; `exp2` gives the same at full precision and is as cheap for
kernels that wait for memory.
"""

from __future__ import annotations

from kernels import SIMULATED
from kernels.intrinsics import device_operation, element_pointer, emit, members, on_registers

if not SIMULATED:
    from llvmlite import ir
    from numba.cuda import types

instruction = device_operation("kernels.simulator.instructions")


# ---- bits and numbers ----------------------------------------------------------------------------------------------


@instruction
def float_bits(typing_context, x):
    """Return the 32 bits of a float32 as an unsigned integer [Data Movement: mov.b32]."""
    return types.uint32(types.float32), on_registers("mov.b32 $0, $1;", "r", "f")


@instruction
def bits_float(typing_context, bits):
    """Return the float32 that has these 32 bits [Data Movement: mov.b32]."""
    return types.float32(types.uint32), on_registers("mov.b32 $0, $1;", "f", "r")


@instruction
def pack_bf16x2(typing_context, low, high):
    """Round two float32 to bfloat16, to nearest even, and pack them [Data Movement: cvt.rn.bf16x2.f32]."""
    return types.uint32(types.float32, types.float32), on_registers("cvt.rn.bf16x2.f32 $0, $2, $1;", "r", "ff")


@instruction
def unpack_bf16x2(typing_context, packed):
    """Return the low and the high bfloat16 of 32 bits as float32 [Logic and Shift: shl.b32, and.b32]."""
    pair = types.UniTuple(types.float32, 2)
    text = "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;"

    def generate(context, builder, signature, arguments):
        struct = emit(builder, text, "rr", "r", arguments)
        floats = [builder.bitcast(bits, ir.FloatType()) for bits in members(builder, struct, 2)]
        return context.make_tuple(builder, signature.return_type, floats)

    return pair(types.uint32), generate


@instruction
def float_to_bf16(typing_context, x):
    """Round a float32 to the 16 bits of a bfloat16, to nearest even [Data Movement: cvt.rn.bf16.f32]."""
    return types.uint16(types.float32), on_registers("cvt.rn.bf16.f32 $0, $1;", "h", "f")


@instruction
def bf16_to_float(typing_context, bits):
    """Return the float32 of the 16 bits of a bfloat16, exactly [Data Movement: mov.b32 of a pair]."""
    return types.float32(types.uint16), on_registers("{ .reg .b16 z; mov.b16 z, 0; mov.b32 $0, {z, $1}; }", "f", "h")


@instruction
def exp2(typing_context, x):
    """2**x to about 2 units in the last place, subnormals to zero [Floating-Point: ex2.approx.ftz.f32]."""
    return types.float32(types.float32), on_registers("ex2.approx.ftz.f32 $0, $1;", "f", "f")


@instruction
def log2(typing_context, x):
    """Logarithm to base 2 to about 2**-22, subnormals taken for zero [Floating-Point: lg2.approx.ftz.f32]."""
    return types.float32(types.float32), on_registers("lg2.approx.ftz.f32 $0, $1;", "f", "f")


@instruction
def maximum(typing_context, x, y):
    """Return the greater of two float32, the other one if one is NaN [Floating-Point: max.f32]."""
    return types.float32(types.float32, types.float32), on_registers("max.f32 $0, $1, $2;", "f", "ff")


@instruction
def reciprocal(typing_context, x):
    """1/x to 1 unit in the last place, subnormals to zero [Floating-Point: rcp.approx.ftz.f32]."""
    return types.float32(types.float32), on_registers("rcp.approx.ftz.f32 $0, $1;", "f", "f")


# ---- 128 bits at a time in global memory ---------------------------------------------------------------------------


def _load_128(name: str):
    def generate(context, builder, signature, arguments):
        pointer = element_pointer(context, builder, signature.args[0], *arguments)
        struct = emit(builder, f"{name}.v4.u32 {{$0, $1, $2, $3}}, [$4];", "rrrr", "l", [pointer], effects=True)
        return context.make_tuple(builder, signature.return_type, members(builder, struct, 4))

    return generate


def _store_128(name: str):
    def generate(context, builder, signature, arguments):
        array, index, words = arguments
        pointer = element_pointer(context, builder, signature.args[0], array, index)
        text = f"{name}.v4.u32 [$0], {{$1, $2, $3, $4}};"
        emit(builder, text, "", "lrrrr", [pointer, *members(builder, words, 4)], effects=True)
        return context.get_dummy_value()

    return generate


@instruction
def load_128(typing_context, array, index):
    """Load 16 bytes at element `index`, which must be 16-byte aligned, as 4 words [Data Movement: ld.global.v4]."""
    return types.UniTuple(types.uint32, 4)(array, types.int64), _load_128("ld.global")


@instruction
def load_128_streaming(typing_context, array, index):
    """Like load_128 for data read once, evicted first [Data Movement: Cache Operators, ld.global.cs.v4]."""
    return types.UniTuple(types.uint32, 4)(array, types.int64), _load_128("ld.global.cs")


@instruction
def store_128(typing_context, array, index, words):
    """Store 4 words at element `index`, which must be 16-byte aligned [Data Movement: st.global.v4]."""
    return types.void(array, types.int64, types.UniTuple(types.uint32, 4)), _store_128("st.global")


@instruction
def store_128_streaming(typing_context, array, index, words):
    """Like store_128 for data that is not read again soon [Data Movement: Cache Operators, st.global.cs.v4]."""
    return types.void(array, types.int64, types.UniTuple(types.uint32, 4)), _store_128("st.global.cs")


# ---- shared memory and asynchronous copies -------------------------------------------------------------------------


@instruction
def shared_address(typing_context, array, index):
    """Return the 32-bit shared-memory address of element `index` of a shared array [Data Movement: cvta.to.shared]."""

    def generate(context, builder, signature, arguments):
        pointer = element_pointer(context, builder, signature.args[0], *arguments)
        in_shared = builder.addrspacecast(pointer, ir.PointerType(pointer.type.pointee, 3))
        return builder.ptrtoint(in_shared, ir.IntType(32))

    return types.uint32(array, types.int64), generate


@instruction
def load_shared_128(typing_context, address):
    """Load 16 bytes at a shared address, a multiple of 16, as 4 words [Data Movement: ld.shared.v4]."""
    text = "ld.shared.v4.u32 {$0, $1, $2, $3}, [$4];"
    return types.UniTuple(types.uint32, 4)(types.uint32), on_registers(text, "rrrr", "r", effects=True)


@instruction
def store_shared_32(typing_context, address, word):
    """Store a word at a shared address, a multiple of 4 [Data Movement: st.shared]."""
    return types.void(types.uint32, types.uint32), on_registers("st.shared.u32 [$0], $1;", "", "rr", effects=True)


@instruction
def store_shared_64(typing_context, address, low, high):
    """Store two words at a shared address, a multiple of 8 [Data Movement: st.shared.v2]."""
    text = "st.shared.v2.u32 [$0], {$1, $2};"
    return types.void(types.uint32, types.uint32, types.uint32), on_registers(text, "", "rrr", effects=True)


@instruction
def cp_async_16(typing_context, address, source, index, n_bytes):
    """Start to copy 16 bytes from element `index` of a global array to a shared address.

    Only the first `n_bytes` (0 to 16) are read, the rest is filled with zeros, so that a tile may hang over the edge of
    a matrix. Both sides must be 16-byte aligned.
    [Data Movement: Asynchronous copy, cp.async.cg.shared.global]
    """

    def generate(context, builder, signature, arguments):
        address, array, index, n_bytes = arguments
        pointer = element_pointer(context, builder, signature.args[1], array, index)
        text = "cp.async.cg.shared.global [$0], [$1], 16, $2;"
        emit(builder, text, "", "rlr", [address, pointer, n_bytes], effects=True)
        return context.get_dummy_value()

    return types.void(types.uint32, source, types.int64, types.int32), generate


@instruction
def cp_async_commit(typing_context):
    """Close the group of this thread's copies started since the last one [Asynchronous copy: cp.async.commit_group]."""
    return types.void(), on_registers("cp.async.commit_group;", "", "", effects=True)


@instruction
def cp_async_wait(typing_context, n_pending):
    """Wait until at most `n_pending` (a literal) of this thread's groups are under way.

    A barrier must follow before other threads read what was copied. [Asynchronous copy: cp.async.wait_group]
    """
    if not isinstance(n_pending, types.IntegerLiteral):
        return None
    text = f"cp.async.wait_group {n_pending.literal_value};"

    def generate(context, builder, signature, arguments):
        emit(builder, text, "", "", [], effects=True)
        return context.get_dummy_value()

    return types.void(n_pending), generate


# ---- tensor cores --------------------------------------------------------------------------------------------------


def _ldmatrix(modifier: str):
    text = f"ldmatrix.sync.aligned.m8n8.x4{modifier}.shared.b16 {{$0, $1, $2, $3}}, [$4];"
    signature = types.UniTuple(types.uint32, 4)(types.uint32)
    return signature, on_registers(text, "rrrr", "r", effects=True)


@instruction
def ldmatrix_x4(typing_context, address):
    """Load four 8x8 matrices of 16-bit elements from shared memory, spread over the warp.

    Lane l hands in the address of row l % 8 of matrix l // 8 (16 bytes, aligned) and receives, of each matrix,
    the elements (l // 4, 2 * (l % 4)) and, in the high half, the one after it. [Warp Level Matrix: ldmatrix]
    """
    return _ldmatrix("")


@instruction
def ldmatrix_x4_trans(typing_context, address):
    """Like ldmatrix_x4 with each 8x8 matrix transposed while loading [Warp Level Matrix: ldmatrix.trans]."""
    return _ldmatrix(".trans")


@instruction
def mma_m16n8k16_bf16(typing_context, a, b0, b1, c):
    """Multiply a 16x16 by a 16x8 bfloat16 tile on the tensor cores and add a float32 tile: D = A @ B + C.

    `a` holds four words of two elements, `b0` and `b1` one each, `c` and the result four floats. With g = lane // 4
    and q = 2 * (lane % 4): a[0] is A[g, q:q+2], a[1] A[g+8, q:q+2], a[2] A[g, q+8:q+10], a[3] A[g+8, q+8:q+10];
    b0 is B[q:q+2, g], b1 B[q+8:q+10, g]; c[0], c[1] are C[g, q:q+2], c[2], c[3] C[g+8, q:q+2].
    [Warp Level Matrix: Matrix Fragments for mma.m16n8k16; mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32]
    """
    words, floats = types.UniTuple(types.uint32, 4), types.UniTuple(types.float32, 4)
    text = (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )

    def generate(context, builder, signature, arguments):
        a, b0, b1, c = arguments
        operands = [*members(builder, a, 4), b0, b1, *members(builder, c, 4)]
        struct = emit(builder, text, "ffff", "rrrrrrffff", operands)
        return context.make_tuple(builder, signature.return_type, members(builder, struct, 4))

    return floats(words, types.uint32, types.uint32, floats), generate
