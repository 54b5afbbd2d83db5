"""The backward pass of step 7: two kernels of warp groups, one for the queries, one for the keys and values.

Both compute the weights again from the log-sum-exp. Two kernels do one product more than one would (seven, not five),
but each sum is made by one warp group, in one order, without atomic additions. Other GPUs, dtypes and head sizes go to
step 5.
"""

from __future__ import annotations

from kernels.attention import step4_backward as fallback
from kernels.attention import step7_grad_key_value, step7_grad_query
from kernels.attention.common import take_backward
from kernels.attention.hopper import QUERIES, ROWS, persistent_grid, takes, tile_map
from kernels.attention.step7_grad_key_value import grad_key_value_kernel
from kernels.attention.step7_grad_query import grad_query_kernel
from kernels.launch import Launch, address, ceil_div, launcher


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
    B, T, H = sizes.B, sizes.T, sizes.H
    if not takes(sizes.C // H, a.qkv_NE, a.grad_out_NC, a.out_NC, a.grad_qkv_NE) or address(a.scratch_S) % 16:
        return fallback.attention_backward.prepare(*arrays, stream)
    grad_map, qkv_map, grad_out_map = (tile_map(x, B, T).array for x in (a.grad_qkv_NE, a.qkv_NE, a.grad_out_NC))
    out, grad_out = a.out_NC.reshape(a.out_NC.size), a.grad_out_NC.reshape(a.out_NC.size)
    of_queries, of_keys = step7_grad_query, step7_grad_key_value
    return [
        Launch(
            grad_query_kernel,
            persistent_grid(B * H * ceil_div(T, QUERIES)),
            of_queries.BLOCK,
            (grad_map, a.scratch_S, qkv_map, grad_out_map, out, grad_out, a.logsumexp_I, T, H),
            stream,
            of_queries.SHARED_BYTES,
        ),
        Launch(
            grad_key_value_kernel,
            persistent_grid(B * H * ceil_div(T, of_keys.KEYS)),
            of_keys.BLOCK,
            (grad_map, a.scratch_S, qkv_map, grad_out_map, T, H, B * H),
            stream,
            of_keys.SHARED_BYTES,
        ),
    ]
