"""AdamW with float32 weights and moments and a stochastically rounded bfloat16 copy of the weights.

The production kernel is the one imported here.
"""

from kernels.adamw import step1_plain, step2_fused, step3_vectorized
from kernels.adamw.rounding import round_weights
from kernels.adamw.step3_vectorized import adamw_update

LADDER = [step1_plain, step2_fused, step3_vectorized]
"""The steps, each with an `adamw_update` of one signature. All give the same bits."""

__all__ = ["LADDER", "adamw_update", "round_weights"]
