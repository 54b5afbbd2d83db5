"""Matrix product, step 1: one thread an output, straight from global memory.

Neighbouring threads take outputs below one another, as one would count down a column. So a warp reads and writes where
each thread is a whole row apart from the next. Flat arrays: I rows, J columns, K terms.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.elements import load, store
from kernels.launch import Launch, ceil_div
from kernels.matmul.common import SIGNATURES, Product, forward_launcher, grad_input_launcher, grad_weight_launcher
from kernels.registry import kernel

BLOCK = 256


@kernel(*SIGNATURES, launch_bounds=BLOCK)
def matmul_kernel(out, a, b, bias, I, J, K, a_k_contiguous, b_k_contiguous, has_bias, accumulate):  # noqa: E741
    """A thread owns outputs."""
    a_row, a_column = (K, 1) if a_k_contiguous else (1, I)
    b_row, b_column = (1, K) if b_k_contiguous else (J, 1)
    index = cuda.grid(1)
    while index < I * J:
        i, j = index % I, index // I
        total = float32(0)
        for k in range(K):
            total += load(a, i * a_row + k * a_column) * load(b, k * b_row + j * b_column)
        if has_bias:
            total += load(bias, j)
        if accumulate:
            total += load(out, i * J + j)
        store(out, i * J + j, total)
        index += cuda.gridsize(1)


def step(product: Product, stream: object) -> list[Launch]:
    """Launch a thread for each output."""
    return [Launch(matmul_kernel, ceil_div(product.I * product.J, BLOCK), BLOCK, product.arguments(), stream)]


matmul_forward = forward_launcher(step)
matmul_grad_input = grad_input_launcher(step)
matmul_grad_weight = grad_weight_launcher(step)
