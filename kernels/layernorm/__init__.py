"""Layer normalisation, forward and backward. The production kernels are those imported here."""

from kernels.layernorm import step1_row_per_thread, step2_warp_per_row, step3_vectorized, step5_row_in_registers
from kernels.layernorm.arguments import layernorm_scratch_size
from kernels.layernorm.step5_row_in_registers import layernorm_backward, layernorm_forward, residual_layernorm_forward

LADDER = [step1_row_per_thread, step2_warp_per_row, step3_vectorized, step5_row_in_registers]
"""The steps of one signature: each has `layernorm_forward` and `layernorm_backward`."""

__all__ = [
    "LADDER",
    "layernorm_backward",
    "layernorm_forward",
    "layernorm_scratch_size",
    "residual_layernorm_forward",
]
