"""The backward pass of step 7: two kernels of warp groups, one for the queries, one for the keys and values.

Both compute the weights again from the log-sum-exp. Two kernels do one product more than one would (seven, not five),
but each sum is made by one warp group, in one order, without atomic additions. Other GPUs, dtypes and head sizes go to
step 5.
"""

from __future__ import annotations

from kernels.attention import step5_backward as fallback
from kernels.attention.common import take_backward
from kernels.attention.hopper import ROWS, takes
from kernels.attention.step7_grad_key_value import grad_key_value_launch
from kernels.attention.step7_grad_query import grad_query_launch
from kernels.launch import address, ceil_div, launcher


def attention_scratch_size(B: int, T: int, H: int) -> int:
    """Return the float32 elements that `scratch_S` needs: two a query, of which each head has whole tiles."""
    return 2 * B * H * ceil_div(T, ROWS) * ROWS


@launcher
def attention_backward(grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT, stream=0):
    """Take the gradient of the queries, keys and values.

    Reads    grad_out_BTC, out_BTC, qkv_BTE: float32 or bfloat16; logsumexp_BHT float32; what forward read and
             wrote; all C-contiguous, on the device.
    Writes   grad_qkv_BTE (=), of the same dtype; scratch_S float32 (=), at least `attention_scratch_size(B, T, H)`.
    Work     7*B*T*T*C flop (half of the square; two products are made twice), a row read once for 128 or 192 others.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention.py).
    Raises   ValueError if a shape or dtype disagrees or D > 128; nothing is launched then.
    Source   Dao et al. 2022, appendix B.4 (arXiv:2205.14135); Shah et al. 2024, appendix B.1 (arXiv:2407.08608).
    Book     Chapter 07, step 7.
    """
    arrays = (grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT)
    a, sizes = take_backward(*arrays, attention_scratch_size)
    if not takes(sizes.C // sizes.H, a.qkv_NE, a.grad_out_NC, a.out_NC, a.grad_qkv_NE) or address(a.scratch_S) % 16:
        return fallback.attention_backward.prepare(*arrays, stream)
    return [grad_query_launch(a, sizes, stream), grad_key_value_launch(a, sizes, stream)]
