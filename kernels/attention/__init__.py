"""Causal self-attention on the fused queries, keys and values, forward and backward.

The production kernels are those imported here.
"""

from kernels.attention import step1_three_kernels, step2_online_softmax, step3_flash
from kernels.attention.common import attention_scratch_size
from kernels.attention.step3_flash import attention_backward, attention_forward

LADDER = [step1_three_kernels, step2_online_softmax, step3_flash]
"""The steps of one signature: each has `attention_forward` and `attention_backward`."""

__all__ = ["LADDER", "attention_backward", "attention_forward", "attention_scratch_size"]
