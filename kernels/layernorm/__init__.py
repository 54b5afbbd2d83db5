"""Layer normalisation, forward and backward. The production kernels are those imported here."""

from kernels.layernorm import step1_row_per_thread, step2_warp_per_row, step3_vectorized
from kernels.layernorm.arguments import layernorm_scratch_size
from kernels.layernorm.step3_vectorized import layernorm_backward, layernorm_forward
from kernels.layernorm.step4_fused_residual import residual_layernorm_forward

LADDER = [step1_row_per_thread, step2_warp_per_row, step3_vectorized]
"""The steps of one signature: each has `layernorm_forward` and `layernorm_backward`."""

__all__ = [
    "LADDER",
    "layernorm_backward",
    "layernorm_forward",
    "layernorm_scratch_size",
    "residual_layernorm_forward",
]
