"""Causal self-attention on the fused queries, keys and values, forward and backward.

The production kernels are those imported here.
"""

from kernels.attention import step1_three_kernels, step2_online_softmax, step3_flash, step4_tensor_cores
from kernels.attention.step4_tensor_cores import attention_backward, attention_forward, attention_scratch_size

LADDER = [step1_three_kernels, step2_online_softmax, step3_flash, step4_tensor_cores]
"""The steps of one signature: each has `attention_forward`, `attention_backward` and `attention_scratch_size`."""

__all__ = ["LADDER", "attention_backward", "attention_forward", "attention_scratch_size"]
