"""What an epilogue does to a rounded product: to one word of two bfloat16, or to two such words number by number.

Functions for `tuples.each`, which hands in the place of the word first.
"""

from __future__ import annotations

from numba import cuda

from kernels.gelu import gelu_device, gelu_grad_device
from kernels.ptx import pack_bf16x2, unpack_bf16x2


@cuda.jit(device=True)
def gelu_word_device(place, word):
    """Apply GELU to both numbers of a word."""
    left, right = unpack_bf16x2(word)
    return pack_bf16x2(gelu_device(left), gelu_device(right))


@cuda.jit(device=True)
def add_word_device(place, word, other):
    """Add two words number by number."""
    left, right = unpack_bf16x2(word)
    other_left, other_right = unpack_bf16x2(other)
    return pack_bf16x2(left + other_left, right + other_right)


@cuda.jit(device=True)
def gelu_grad_word_device(place, word, activated):
    """Multiply by the derivative of GELU number by number."""
    left, right = unpack_bf16x2(word)
    activated_left, activated_right = unpack_bf16x2(activated)
    return pack_bf16x2(left * gelu_grad_device(activated_left), right * gelu_grad_device(activated_right))
