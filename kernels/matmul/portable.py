"""What does a product on any GPU since the A100: step 7, or for a small product the step that has least to set up."""

from __future__ import annotations

from kernels.launch import Launch
from kernels.matmul import step3_shared_tiles, step5_tensor_cores, step7_multistage
from kernels.matmul.common import Product, unfused

SMALL_I, SMALL_J = step7_multistage.TILE_I, step7_multistage.TILE_J
SMALL_K = 256
"""A product of one tile and four stages is over before the ring of step 7 has gone round."""


def step(product: Product, stream: object) -> list[Launch]:
    """Launch the kernels of the step that suits the product."""
    if product.I > SMALL_I or product.J > SMALL_J or product.K > SMALL_K:
        return step7_multistage.step(product, stream)
    small = step5_tensor_cores if str(product.a.dtype) == "uint16" else step3_shared_tiles
    return unfused(small.step, product, stream)
