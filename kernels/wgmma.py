"""Hopper's matrix products of a warp group, `wgmma`: 64 rows by up to 256 columns at once, from shared memory.

A warp group is 128 threads, four warps that begin at a multiple of four. Together they hold an accumulator of 64 rows
and N columns, N/2 floats a thread, here a tuple that stays in registers. With w the warp, g = lane // 4 and
q = 2 * (lane % 4), floats 4j to 4j + 3 are those of rows 16w + g (first two) and 16w + g + 8 (last two), columns
8j + q and 8j + q + 1.

The operands are bfloat16. B, and mostly A, are read from shared memory, where boxes lie as TMA brings them: rows of 128
bytes (64 elements) in the 128-byte swizzle, each box at a multiple of 1024 bytes. An operand lies "K-major" if its
contiguous axis is that of the summed terms, "MN-major" if it is that of its rows (A) or columns (B). A 64-bit
descriptor says where it is. A product sums `steps` times 16 terms.

Products run beside the program: accumulators, and registers given as A, must not be touched until a wait.

    acc = product(acc, descriptor_a, descriptor_b, keep)    # fence, products, commit
    acc = wait(acc)                                         # wgmma_wait_for(...): now it can be read

The accumulators go through the wait, or the compiler might move their use above it. The section of the PTX ISA,
version 9.0, is "Asynchronous Warpgroup Level Matrix Instructions".
"""

from __future__ import annotations

from kernels import SIMULATED
from kernels.intrinsics import device_operation, emit, members, operation_family

if not SIMULATED:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

instruction = device_operation("kernels.simulator.wgmma")
family = operation_family("kernels.simulator.wgmma")

SWIZZLE_128 = 1 << 62
EIGHT_ROWS = 1024 >> 4 << 32
"""Distance of one group of 8 rows of 128 bytes to the next, in 16 bytes, where the descriptor wants it."""

K_STEP_K_MAJOR = 16 * 2 >> 4
K_STEP_MN_MAJOR = 16 * 128 >> 4
"""What 16 terms further add to a descriptor: along a row, or 16 rows down."""


# ---- descriptors ---------------------------------------------------------------------------------------------------


def _descriptor(builder, address, constant: int):
    """Return constant bits and the address, of which a descriptor holds bits 4 to 17."""
    masked = builder.lshr(builder.and_(address, ir.Constant(ir.IntType(32), 0x3FFFF)), ir.Constant(ir.IntType(32), 4))
    long = ir.IntType(64)
    return builder.or_(builder.zext(masked, long), ir.Constant(long, constant))


@instruction
def wgmma_descriptor(typing_context, address):
    """Describe a K-major operand at a shared address: rows of 64 terms, one below the other [Matrix Descriptor].

    Bytes further on are reached by adding their number, shifted right by 4, to the descriptor.
    """

    def generate(context, builder, signature, arguments):
        return _descriptor(builder, arguments[0], SWIZZLE_128 | EIGHT_ROWS | 1 << 16)

    return types.uint64(types.uint32), generate


@instruction
def wgmma_descriptor_mn(typing_context, address, box_bytes):
    """Describe an MN-major operand: a row holds one term of 64 rows or columns [Matrix Descriptor].

    The next 64 rows or columns lie `box_bytes` further on; a box of 64 terms has 8192.
    """

    def generate(context, builder, signature, arguments):
        long = ir.IntType(64)
        further = builder.shl(builder.zext(arguments[1], long), ir.Constant(long, 16 - 4))
        return builder.or_(_descriptor(builder, arguments[0], SWIZZLE_128 | EIGHT_ROWS), further)

    return types.uint64(types.uint32, types.uint32), generate


# ---- products ------------------------------------------------------------------------------------------------------


def _names(first: int, n: int) -> str:
    return "{" + ", ".join(f"${first + i}" for i in range(n)) + "}"


def _products(columns: int, steps: int, a: list[str], b: str, first_keeps: str, modifiers: str) -> str:
    """Write a group of `steps` products: `a` names the first operand of each, `first_keeps` whether the first adds.

    The fence orders earlier accesses to registers before them, and the commit closes the group
    [wgmma.fence, wgmma.commit_group].
    """
    d = _names(0, columns // 2)
    lines = ["wgmma.fence.sync.aligned;"]
    for step in range(steps):
        keeps = "1" if step else first_keeps
        lines.append(
            f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {d}, {a[step]}, {b}{step}, {keeps}, "
            f"1, 1, {modifiers};"
        )
    return " ".join([*lines, "wgmma.commit_group.sync.aligned;"])


def _advance(name: str, operand: int, steps: int, mn_major: bool) -> str:
    """Write the descriptors of all steps, named `name`0, `name`1, ..."""
    step = K_STEP_MN_MAJOR if mn_major else K_STEP_K_MAJOR
    lines = [f".reg .b64 {name}<{steps}>;"] + [f"add.s64 {name}{s}, ${operand}, {s * step};" for s in range(steps)]
    return " ".join(lines)


def _floats(n: int):
    return types.UniTuple(types.float32, n)


def _words(n: int):
    return types.UniTuple(types.uint32, n)


def _accumulating(text: str, n: int, operands: str, flatten):
    """Generate code whose first argument, n floats, is updated in place; `flatten` makes operands of the others."""

    def generate(context, builder, signature, arguments):
        values = flatten(builder, arguments[1:])
        tied = members(builder, arguments[0], n)
        struct = emit(builder, text, "f" * n, operands, values, tied=tied, effects=True)
        return context.make_tuple(builder, signature.return_type, members(builder, struct, n))

    return generate


def _fresh(text: str, n: int, operands: str, flatten):
    """Generate code that makes n new floats; `flatten` makes operands of the arguments."""

    def generate(context, builder, signature, arguments):
        struct = emit(builder, text, "f" * n, operands, flatten(builder, arguments), effects=True)
        return context.make_tuple(builder, signature.return_type, members(builder, struct, n))

    return generate


def _as_they_are(builder, arguments):
    return list(arguments)


def _ss_text(columns: int, steps: int, a_mn: bool, b_mn: bool, first_keeps: str, setup: str) -> str:
    n = columns // 2
    a = [f"a{step}" for step in range(steps)]
    products = _products(columns, steps, a, "b", first_keeps, f"{int(a_mn)}, {int(b_mn)}")
    return f"{{ {setup} {_advance('a', n, steps, a_mn)} {_advance('b', n + 1, steps, b_mn)} {products} }}"


@family
def wgmma_ss(columns, steps=4, a_mn_major=False, b_mn_major=False):
    """Make the product of two operands in shared memory: (acc, descriptor_a, descriptor_b, keep) -> acc.

    With keep = 0 the old accumulators are thrown away. [wgmma.mma_async]
    """
    n = columns // 2
    setup = f".reg .pred keep; setp.ne.b32 keep, ${n + 2}, 0;"
    text = _ss_text(columns, steps, a_mn_major, b_mn_major, "keep", setup)
    signature_args = (types.uint64, types.uint64, types.uint32)

    @intrinsic
    def product(typing_context, acc, descriptor_a, descriptor_b, keep):
        return _floats(n)(_floats(n), *signature_args), _accumulating(text, n, "llr", _as_they_are)

    return product


@family
def wgmma_ss_new(columns, steps=4, a_mn_major=False, b_mn_major=False):
    """Like wgmma_ss with fresh accumulators: (descriptor_a, descriptor_b) -> acc [wgmma.mma_async]."""
    n = columns // 2
    text = _ss_text(columns, steps, a_mn_major, b_mn_major, "0", "")

    @intrinsic
    def product(typing_context, descriptor_a, descriptor_b):
        return _floats(n)(types.uint64, types.uint64), _fresh(text, n, "ll", _as_they_are)

    return product


@family
def wgmma_rs(columns, steps=4, b_mn_major=False):
    """Make the product of A in registers and B in shared memory: (acc, a_words, descriptor_b) -> acc.

    `a_words` are 4 * steps words of two bfloat16, for each step those of `ptx.mma_m16n8k16_bf16` of the warp's 16 rows.
    They must change from one time around a loop to the next: ptxas 13.0 lets others overwrite words that do not.
    [wgmma.mma_async]
    """
    n, n_words = columns // 2, 4 * steps
    a = [_names(n + 4 * step, 4) for step in range(steps)]
    products = _products(columns, steps, a, "b", "1", str(int(b_mn_major)))
    text = f"{{ {_advance('b', n + n_words, steps, b_mn_major)} {products} }}"

    @intrinsic
    def product(typing_context, acc, a_words, descriptor_b):
        def flatten(builder, arguments):
            return [*members(builder, arguments[0], n_words), arguments[1]]

        generate = _accumulating(text, n, "r" * n_words + "l", flatten)
        return _floats(n)(_floats(n), _words(n_words), types.uint64), generate

    return product


# ---- order ---------------------------------------------------------------------------------------------------------


@instruction
def wgmma_wait(typing_context, n_pending):
    """Wait until at most `n_pending` (a literal) groups are under way: their operands in shared memory are free.

    Accumulators that are to be read go through `wgmma_wait_for`. [wgmma.wait_group]
    """
    if not isinstance(n_pending, types.IntegerLiteral):
        return None
    text = f"wgmma.wait_group.sync.aligned {n_pending.literal_value};"

    def generate(context, builder, signature, arguments):
        emit(builder, text, "", "", [], effects=True)
        return context.get_dummy_value()

    return types.void(n_pending), generate


@family
def wgmma_wait_for(n, n_pending=0):
    """Make a wait through which n accumulators go: (acc) -> acc, as wgmma_wait(n_pending) [wgmma.wait_group]."""
    text = f"wgmma.wait_group.sync.aligned {n_pending};"

    @intrinsic
    def wait(typing_context, acc):
        return _floats(n)(_floats(n)), _accumulating(text, n, "", _as_they_are)

    return wait
