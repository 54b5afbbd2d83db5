"""Matrix product, step 9: a ring of three stages, so that TMA copies while the tensor cores multiply.

Two warp groups share a tile of 128 x 128 outputs. Each stage has a barrier at which its copies count their bytes; one
thread keeps two stages ahead. One product may still be under way when the next one starts: a stage is free when the
product after the one that read it has been started and that one is over, for both warp groups. What TMA cannot read
goes to the best step without it. Flat arrays: I rows, J columns, K terms.
"""

from __future__ import annotations

from numba import cuda, uint8

from kernels.accumulators import zero_accumulators
from kernels.launch import Launch, ceil_div
from kernels.matmul.box_outputs import make_storer
from kernels.matmul.common import Product, forward_launcher, grad_input_launcher, grad_weight_launcher
from kernels.matmul.hopper import (
    BOX_BYTES,
    LAYOUTS,
    OUTPUTS,
    ROW_BYTES,
    TERMS,
    WARP_GROUP,
    layout_of,
    make_describer,
    make_loader,
    portable_step,
    takes_tma,
)
from kernels.matmul.step8_wgmma import SIGNATURE, arguments
from kernels.ptx import shared_address
from kernels.ptx_hopper import mbarrier_init, mbarrier_init_fence, mbarrier_wait, warp_uniform
from kernels.registry import kernel
from kernels.wgmma import wgmma_ss, wgmma_wait, wgmma_wait_for

TILE_I, TILE_J = 128, 128  # outputs of a block
BLOCK = TILE_I // 64 * WARP_GROUP
STAGES = 3  # so that two blocks fit into a multiprocessor: one stores while the other multiplies
A_BYTES = TILE_I * ROW_BYTES
STAGE_BYTES = (TILE_I + TILE_J) * ROW_BYTES
BARRIER_BYTES = STAGES * 8
SHARED_BYTES = STAGES * STAGE_BYTES + 1024  # dynamic shared memory starts anywhere, stages at multiples of 1024
ACCUMULATORS = TILE_J // 2  # of a thread


def make_kernel(layout: str):
    """Make the kernel of one layout."""
    a_k_contiguous, b_k_contiguous = LAYOUTS[layout]
    load_stage_device, store_rows_device = make_loader(layout, TILE_I, TILE_J), make_storer(layout, TILE_J)
    describe_a_device, describe_b_device = make_describer(a_k_contiguous), make_describer(b_k_contiguous)
    zeros = zero_accumulators(ACCUMULATORS)
    multiply = wgmma_ss(TILE_J, TERMS // 16, not a_k_contiguous, not b_k_contiguous)
    finished = wgmma_wait_for(ACCUMULATORS)

    @kernel(SIGNATURE.format(out=OUTPUTS[layout]), name=f"{layout}_kernel", architectures=("sm_90a",),
            launch_bounds=BLOCK)  # fmt: skip
    def matmul_kernel(out, bias, map_a, map_b, I, J, K, has_bias, accumulate, whole):  # noqa: E741
        """A block owns 128 x 128 outputs at a time, a warp group 64 rows of them."""
        memory = cuda.shared.array(0, uint8, 1024)
        barrier_bytes = cuda.shared.array(BARRIER_BYTES, uint8, 8)
        stages, arrived = (shared_address(memory, 0) + 1023) & 0xFFFFFC00, shared_address(barrier_bytes, 0)
        own_rows = warp_uniform(cuda.threadIdx.x // WARP_GROUP)
        if cuda.threadIdx.x == 0:
            for stage in range(STAGES):
                mbarrier_init(arrived + 8 * stage, 1)
            mbarrier_init_fence()
        cuda.syncthreads()  # the barriers are there
        n_columns = (J + TILE_J - 1) // TILE_J
        n_steps = (K + TERMS - 1) // TERMS
        used = 0  # stages so far; the place in the ring and the phase follow from it
        item = cuda.blockIdx.x
        while item < (I + TILE_I - 1) // TILE_I * n_columns:
            first_i, first_j = item // n_columns * TILE_I, item % n_columns * TILE_J
            if cuda.threadIdx.x == 0:
                for ahead in range(STAGES - 1):
                    if ahead < n_steps:
                        stage = (used + ahead) % STAGES
                        load_stage_device(stages + stage * STAGE_BYTES, arrived + 8 * stage, map_a, map_b,
                                          first_i, first_j, ahead * TERMS)  # fmt: skip
            acc = zeros()
            step = 0
            while step < n_steps:
                stage = used % STAGES
                mbarrier_wait(arrived + 8 * stage, used // STAGES & 1)
                a = stages + stage * STAGE_BYTES
                acc = multiply(acc, describe_a_device(a + own_rows * BOX_BYTES), describe_b_device(a + A_BYTES), step)
                wgmma_wait(1)
                cuda.syncthreads()  # all warps' products of the stage before this one are over: it may be copied into
                if cuda.threadIdx.x == 0 and step + STAGES - 1 < n_steps:
                    stage = (used + STAGES - 1) % STAGES
                    load_stage_device(stages + stage * STAGE_BYTES, arrived + 8 * stage, map_a, map_b,
                                      first_i, first_j, (step + STAGES - 1) * TERMS)  # fmt: skip
                used += 1
                step += 1
            acc = finished(acc)
            cuda.syncthreads()  # the last stage has been read, too
            box, first_i = stages + own_rows * BOX_BYTES, first_i + own_rows * 64
            store_rows_device(acc, box, out, bias, first_i, first_j, I, J, has_bias, accumulate, whole)
            cuda.syncthreads()  # all have read their boxes, in the first stage's memory
            item += cuda.gridDim.x

    return matmul_kernel


KERNELS = {layout: make_kernel(layout) for layout in LAYOUTS}


def step(product: Product, stream: object) -> list[Launch]:
    """Launch a block for each tile of the output, or use the portable step where TMA cannot read the operands."""
    if not takes_tma(product):
        return portable_step(product, stream)
    grid = ceil_div(product.I, TILE_I) * ceil_div(product.J, TILE_J)
    launch_arguments = arguments(product, TILE_I, TILE_J)
    return [Launch(KERNELS[layout_of(product)], grid, BLOCK, launch_arguments, stream, SHARED_BYTES)]


matmul_forward = forward_launcher(step)
matmul_grad_input = grad_input_launcher(step)
matmul_grad_weight = grad_weight_launcher(step)
