"""What there is to measure of the kernels: cases of one op at one shape, in groups that share a results file."""

from collections.abc import Callable

import torch

from gpt2edu.bench_ops.attention import attention_cases
from gpt2edu.bench_ops.case import Case, Sizes
from gpt2edu.bench_ops.elementwise import gelu_cases, memory_cases, residual_cases
from gpt2edu.bench_ops.encoder import encoder_cases
from gpt2edu.bench_ops.layernorm import layernorm_cases
from gpt2edu.bench_ops.loss import adamw_cases, classifier_cases, global_norm_cases
from gpt2edu.bench_ops.matmul import matmul_cases

GROUPS: dict[str, Callable[[torch.device, Sizes], list[Case]]] = {
    "memory": memory_cases,
    "residual": residual_cases,
    "gelu": gelu_cases,
    "encoder": encoder_cases,
    "layernorm": layernorm_cases,
    "classifier": classifier_cases,
    "global_norm": global_norm_cases,
    "adamw": adamw_cases,
    "matmul": matmul_cases,
    "attention": attention_cases,
}
"""The results files, and what makes the cases of each."""

OPS = {
    "zero": "memory", "copy": "memory", "cast": "memory",
    "gelu_forward": "gelu", "gelu_backward": "gelu",
    "encoder_forward": "encoder", "encoder_backward": "encoder",
    "layernorm_forward": "layernorm", "layernorm_backward": "layernorm", "residual_layernorm": "layernorm",
    "matmul_forward": "matmul", "matmul_grad_input": "matmul", "matmul_grad_weight": "matmul",
    "matmul_grad_bias": "matmul", "matmul_bias_gelu": "matmul", "matmul_grad_input_gelu": "matmul",
    "matmul_grad_weight_bias": "matmul",
    "attention_forward": "attention", "attention_backward": "attention",
    "attention_decode": "attention",
}  # fmt: skip
"""Single ops that can be asked for, and the group each belongs to."""
