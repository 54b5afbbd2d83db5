"""What the launchers of all steps check alike, and the memory that backward needs for its partial sums."""

from __future__ import annotations

from kernels.launch import ceil_div, take

MAX_CHUNKS = 512  # of rows; 4 blocks on each of 128 multiprocessors. Step 5 takes fewer
MIN_ROWS = 8  # of a chunk


def rows_per_chunk(N: int, max_chunks: int) -> int:
    """Return how many rows share one partial sum. It depends on N alone, and so do the bits of the result."""
    return max(MIN_ROWS, ceil_div(N, max_chunks))


def layernorm_scratch_size(N: int, C: int) -> int:
    """Return the float32 elements that `layernorm_backward` of any step needs in `scratch_S`."""
    return ceil_div(N, rows_per_chunk(N, MAX_CHUNKS)) * 2 * padded(C)


def padded(C: int) -> int:
    """Round a number of channels up to whole packs of eight."""
    return ceil_div(C, 8) * 8


def take_forward(out_NC, mean_N, rstd_N, inp_NC, weight_C, bias_C):
    """Take the arrays of a forward pass, and their sizes."""
    return take(
        real={"out_NC": out_NC, "inp_NC": inp_NC, "weight_C": weight_C, "bias_C": bias_C},
        float32={"mean_N": mean_N, "rstd_N": rstd_N},
    )


def take_residual_forward(residual_NC, out_NC, mean_N, rstd_N, inp_NC, added_NC, weight_C, bias_C):
    """Take the arrays of a forward pass with the residual sum before it, and their sizes."""
    return take(
        real={
            "residual_NC": residual_NC,
            "out_NC": out_NC,
            "inp_NC": inp_NC,
            "added_NC": added_NC,
            "weight_C": weight_C,
            "bias_C": bias_C,
        },
        float32={"mean_N": mean_N, "rstd_N": rstd_N},
    )


def take_backward(grad_inp_NC, grad_weight_C, grad_bias_C, scratch_S, grad_out_NC, inp_NC, weight_C, mean_N, rstd_N):
    """Take the arrays of a backward pass, and their sizes.

    Raises:
        ValueError: an array does not fit; the message says how large `scratch_S` must be.
    """
    arrays, sizes = take(
        real={"grad_inp_NC": grad_inp_NC, "grad_out_NC": grad_out_NC, "inp_NC": inp_NC, "weight_C": weight_C},
        float32={
            "grad_weight_C": grad_weight_C,
            "grad_bias_C": grad_bias_C,
            "scratch_S": scratch_S,
            "mean_N": mean_N,
            "rstd_N": rstd_N,
        },
    )
    needed = layernorm_scratch_size(sizes.N, sizes.C)
    if sizes.S < needed:
        raise ValueError(f"scratch_S has {sizes.S} elements; {needed} are needed for N = {sizes.N}, C = {sizes.C}")
    return arrays, sizes
