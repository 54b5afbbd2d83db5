"""Matrix product, step 8: one warp group multiplies with Hopper's `wgmma`, straight from shared memory.

A product of 64 x 128 outputs and 64 terms is four instructions, and no operand goes through registers. TMA brings a
stage of both operands with two instructions of one thread, already swizzled as `wgmma` wants them. Nothing overlaps
yet: the block waits for the stage, then for the tensor cores. What TMA cannot read goes to the best step without it.
Flat arrays: I rows, J columns, K terms.
"""

from __future__ import annotations

from numba import cuda, uint8

from kernels.accumulators import zero_accumulators
from kernels.launch import Launch, ceil_div
from kernels.matmul.box_outputs import make_storer
from kernels.matmul.common import (
    Product,
    forward_launcher,
    grad_input_launcher,
    grad_weight_launcher,
    in_pieces,
)
from kernels.matmul.hopper import (
    LAYOUTS,
    OUTPUTS,
    ROW_BYTES,
    TERMS,
    WARP_GROUP,
    layout_of,
    make_describer,
    make_loader,
    operand_maps,
    portable_step,
    takes_tma,
)
from kernels.ptx import shared_address
from kernels.ptx_hopper import mbarrier_init, mbarrier_init_fence, mbarrier_wait
from kernels.registry import kernel
from kernels.wgmma import wgmma_ss, wgmma_wait_for

TILE_I, TILE_J = 64, 128  # outputs of a block
A_BYTES = TILE_I * ROW_BYTES
STAGE_BYTES = (TILE_I + TILE_J) * ROW_BYTES
ACCUMULATORS = TILE_J // 2  # of a thread

SIGNATURE = "void({out}[::1], uint16[::1], uint64[::1], uint64[::1], int64, int64, int64, int64, int64, int64)"


def make_kernel(layout: str):
    """Make the kernel of one layout."""
    a_k_contiguous, b_k_contiguous = LAYOUTS[layout]
    load_stage_device, store_rows_device = make_loader(layout, TILE_I, TILE_J), make_storer(layout, TILE_J)
    describe_a_device, describe_b_device = make_describer(a_k_contiguous), make_describer(b_k_contiguous)
    zeros = zero_accumulators(ACCUMULATORS)
    multiply = wgmma_ss(TILE_J, TERMS // 16, not a_k_contiguous, not b_k_contiguous)
    finished = wgmma_wait_for(ACCUMULATORS)

    @kernel(SIGNATURE.format(out=OUTPUTS[layout]), name=f"{layout}_kernel", architectures=("sm_90a",),
            launch_bounds=WARP_GROUP)  # fmt: skip
    def matmul_kernel(out, bias, map_a, map_b, I, J, K, has_bias, accumulate, whole):  # noqa: E741
        """A block owns 64 x 128 outputs at a time: one row of its accumulators belongs to four threads."""
        stage_bytes = cuda.shared.array(STAGE_BYTES, uint8, 1024)
        barrier_bytes = cuda.shared.array(8, uint8, 8)
        stage, arrived = shared_address(stage_bytes, 0), shared_address(barrier_bytes, 0)
        if cuda.threadIdx.x == 0:
            mbarrier_init(arrived, 1)
            mbarrier_init_fence()
        cuda.syncthreads()  # the barrier is there
        n_columns = (J + TILE_J - 1) // TILE_J
        phase = 0
        item = cuda.blockIdx.x
        while item < (I + TILE_I - 1) // TILE_I * n_columns:
            first_i, first_j = item // n_columns * TILE_I, item % n_columns * TILE_J
            acc = zeros()
            k = 0
            while k < K:
                if cuda.threadIdx.x == 0:
                    load_stage_device(stage, arrived, map_a, map_b, first_i, first_j, k)
                mbarrier_wait(arrived, phase)
                phase ^= 1
                acc = multiply(acc, describe_a_device(stage), describe_b_device(stage + A_BYTES), k)
                acc = finished(acc)
                cuda.syncthreads()  # all warps' products have read the stage: it may be copied into
                k += TERMS
            store_rows_device(acc, stage, out, bias, first_i, first_j, I, J, has_bias, accumulate, whole)
            cuda.syncthreads()  # all have read the box, in the stage's memory
            item += cuda.gridDim.x

    return matmul_kernel


KERNELS = {layout: make_kernel(layout) for layout in LAYOUTS}


def arguments(product: Product, tile_i: int, tile_j: int) -> tuple:
    """Return the arguments of a kernel; without a bias `a` stands in its place, unread."""
    map_a, map_b = operand_maps(product, tile_i, tile_j)
    has_bias = product.bias is not None
    arrays = (product.out, product.bias if has_bias else product.a, map_a.array, map_b.array)
    flags = (int(has_bias), int(product.accumulate), int(in_pieces(product.out, product.J)))
    return (*arrays, product.I, product.J, product.K, *flags)


def step(product: Product, stream: object) -> list[Launch]:
    """Launch a block for each tile of the output, or use the portable step where TMA cannot read the operands."""
    if not takes_tma(product):
        return portable_step(product, stream)
    grid = ceil_div(product.I, TILE_I) * ceil_div(product.J, TILE_J)
    return [Launch(KERNELS[layout_of(product)], grid, WARP_GROUP, arguments(product, TILE_I, TILE_J), stream)]


matmul_forward = forward_launcher(step)
matmul_grad_input = grad_input_launcher(step)
matmul_grad_weight = grad_weight_launcher(step)
