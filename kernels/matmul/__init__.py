"""The products of a linear layer: forward, and the gradients of its input, weight and bias.

The production kernels are those imported here.
"""

from kernels.matmul import step1_naive, step2_shared_tiles, step3_register_tiles, step4_tensor_cores
from kernels.matmul.bias import bias_scratch_size, matmul_grad_bias
from kernels.matmul.step4_tensor_cores import matmul_forward, matmul_grad_input, matmul_grad_weight

LADDER = [step1_naive, step2_shared_tiles, step3_register_tiles, step4_tensor_cores]
"""The steps of one signature: each has `matmul_forward`, `matmul_grad_input` and `matmul_grad_weight`."""

__all__ = [
    "LADDER",
    "bias_scratch_size",
    "matmul_forward",
    "matmul_grad_bias",
    "matmul_grad_input",
    "matmul_grad_weight",
]
