"""Layer normalisation, step 4: the residual sum before it in the same kernel, which saves a pass over memory.

Backward is that of step 3, called with the sum as its input. Letters: N rows, C channels.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.elements import load_pack, n_packs_of, store_pack
from kernels.launch import WARP_SIZE, Launch, ceil_div, launcher, n_packs
from kernels.layernorm.arguments import take_residual_forward
from kernels.layernorm.step3_vectorized import BLOCK, WARPS, normalize_row_device, row_statistics_device
from kernels.registry import kernel


@kernel(
    "void(real[:, ::1], real[:, ::1], float32[::1], float32[::1], real[:, ::1], real[:, ::1], real[::1], real[::1], "
    "float32, int64)",
    launch_bounds=BLOCK,
)
def residual_layernorm_forward_kernel(
    residual_NC, out_NC, mean_N, rstd_N, inp_NC, added_NC, weight_C, bias_C, eps, packs
):
    """A warp owns rows; a lane owns every 32nd pack of 8 channels."""
    x_8 = cuda.local.array(8, float32)
    added_8 = cuda.local.array(8, float32)
    lane = cuda.threadIdx.x & 31
    n = cuda.grid(1) >> 5
    while n < inp_NC.shape[0]:
        pack = lane
        while pack < n_packs_of(weight_C):
            load_pack(x_8, inp_NC[n], pack, packs)
            load_pack(added_8, added_NC[n], pack, packs)
            for j in range(8):
                x_8[j] += added_8[j]
            store_pack(residual_NC[n], pack, packs, x_8)
            pack += WARP_SIZE
        # the statistics are those of the sum as stored, so that backward finds the same; a lane reads what it wrote
        mean, rstd = row_statistics_device(x_8, residual_NC[n], eps, packs)
        normalize_row_device(out_NC[n], residual_NC[n], mean, rstd, weight_C, bias_C, packs)
        if lane == 0:
            mean_N[n] = mean
            rstd_N[n] = rstd
        n += cuda.gridsize(1) >> 5


@launcher
def residual_layernorm_forward(
    residual_NC, out_NC, mean_N, rstd_N, inp_NC, added_NC, weight_C, bias_C, eps=1e-5, stream=0
):
    """Add what a block gives to the residual stream, and normalise, scale and shift the sum.

    Reads    inp_NC, added_NC, weight_C, bias_C: float32 or bfloat16, C-contiguous, on the device.
    Writes   residual_NC (=), the sum, and out_NC (=), of the same dtype; mean_N and rstd_N float32 (=). `residual_NC`
             may be `inp_NC`.
    Work     about 9*N*C flop, 4*N*C*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_layernorm.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   Ba et al. 2016, eq. 3-4 (arXiv:1607.06450); compare llm.c fused_residual_forward5 @ f1e2ace.
    Book     Chapter 06, step 4.
    """
    a, sizes = take_residual_forward(residual_NC, out_NC, mean_N, rstd_N, inp_NC, added_NC, weight_C, bias_C)
    arrays = (a.residual_NC, a.out_NC, a.mean_N, a.rstd_N, a.inp_NC, a.added_NC, a.weight_C, a.bias_C)
    packs = n_packs(sizes.C, a.residual_NC, a.out_NC, a.inp_NC, a.added_NC, a.weight_C, a.bias_C)
    grid = ceil_div(sizes.N, WARPS)
    return [Launch(residual_layernorm_forward_kernel, grid, BLOCK, (*arrays, float(eps), packs), stream)]
