"""The products of a linear layer: forward, and the gradients of its input, weight and bias.

The production kernels are those imported here: on Hopper those of step 11, on other GPUs, and where TMA cannot move a
matrix, those that step 11 falls back on.
"""

from kernels.matmul import (
    step1_naive,
    step2_coalesced,
    step3_shared_tiles,
    step4_register_tiles,
    step5_tensor_cores,
    step6_swizzle,
    step7_multistage,
    step8_wgmma,
    step9_tma_ring,
    step10_warp_specialization,
    step11_hidden_epilogue,
)
from kernels.matmul.bias import bias_scratch_size, matmul_grad_bias
from kernels.matmul.step11_hidden_epilogue import matmul_forward, matmul_grad_input, matmul_grad_weight

LADDER = [
    step1_naive,
    step2_coalesced,
    step3_shared_tiles,
    step4_register_tiles,
    step5_tensor_cores,
    step6_swizzle,
    step7_multistage,
    step8_wgmma,
    step9_tma_ring,
    step10_warp_specialization,
    step11_hidden_epilogue,
]
"""The steps of one signature: each has `matmul_forward`, `matmul_grad_input` and `matmul_grad_weight`."""

__all__ = [
    "LADDER",
    "bias_scratch_size",
    "matmul_forward",
    "matmul_grad_bias",
    "matmul_grad_input",
    "matmul_grad_weight",
]
