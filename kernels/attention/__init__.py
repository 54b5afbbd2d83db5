"""Causal self-attention on the fused queries, keys and values, forward and backward.

The production kernels are those imported here. Step 7 takes what the warp groups of a Hopper GPU can do and hands
everything else to the step that every GPU can do.
"""

from kernels.attention import (
    step1_three_kernels,
    step2_online_softmax,
    step3_flash,
    step4_tensor_cores,
    step5_swizzled,
    step6_wgmma,
    step7_pipelined,
)
from kernels.attention.decode import attention_decode, attention_decode_scratch_size
from kernels.attention.step7_pipelined import attention_backward, attention_forward, attention_scratch_size

LADDER = [
    step1_three_kernels,
    step2_online_softmax,
    step3_flash,
    step4_tensor_cores,
    step5_swizzled,
    step6_wgmma,
    step7_pipelined,
]
"""The steps of one signature: each has `attention_forward`, `attention_backward` and `attention_scratch_size`."""

__all__ = [
    "LADDER",
    "attention_backward",
    "attention_decode",
    "attention_decode_scratch_size",
    "attention_forward",
    "attention_scratch_size",
]
