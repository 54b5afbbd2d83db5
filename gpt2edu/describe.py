"""What a run prints before its first step: llm.c's table of settings, and what was decided and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gpt2edu.flops import MFU_FORMULA
from gpt2edu.parameters import n_parameters

if TYPE_CHECKING:
    from gpt2edu.run import Run


def describe_run(run: Run) -> str:
    """Return the table of settings, and below it what was decided and why."""
    settings, config, loader, device = run.settings, run.engine.config, run.train_loader, run.device_name
    peak = f"{run.peak_flop_per_s / 1e12:.1f}" if run.peak_flop_per_s else "n/a"
    assumed = f"{peak} TFLOP/s of {device}, a data sheet's figure" if run.peak_flop_per_s else "not known here, so n/a"
    lines = [
        settings_table(_sections(run, peak)),
        *run.engine.notes,
        f"MFU: {MFU_FORMULA}; peak: {assumed}",
        f"data: {loader.n_tokens:,} training tokens; {loader.dropped_tokens:,} of them, at the ends of shards, are "
        "never used",
        f"batch_size B={settings.micro_batch} * seq_len T={settings.seq_len} * num_processes="
        f"{run.communicator.world_size} and total_batch_size={settings.total_batch}",
        f"=> setting grad_accum_steps={run.n_micro_steps}",
    ]
    if settings.seq_len < config.max_seq_len:
        lines.append(
            f"WARNING: -t {settings.seq_len} is shorter than the model's context of {config.max_seq_len}: the position "
            "embeddings beyond it are not trained"
        )
    if settings.checkpoint_every and settings.output_dir is None:
        lines.append("WARNING: -n without -o: no checkpoint is written")
    return "\n".join(lines)


def _sections(run: Run, peak: str) -> list[list[tuple[str, Any]]]:
    settings, config = run.settings, run.engine.config
    return [
        [
            ("train data pattern", settings.train_pattern),
            ("val data pattern", settings.val_pattern),
            ("output log dir", settings.output_dir),
            ("checkpoint_every", settings.checkpoint_every),
            ("resume", settings.resume),
            ("micro batch size B", settings.micro_batch),
            ("sequence length T", settings.seq_len),
            ("total batch size", settings.total_batch),
            ("data order", f"{settings.order_ranks} ranks x {settings.order_batch} sequences"),
            ("LR scheduler", settings.scheduler),
            ("learning rate (LR)", settings.learning_rate),
            ("warmup iterations", settings.warmup_steps),
            ("final LR fraction", settings.final_lr_fraction),
            ("weight decay", settings.weight_decay),
            ("skip update lossz", settings.skip_loss_z),
            ("skip update gradz", settings.skip_grad_z),
            ("max_steps", settings.max_steps),
            ("val_loss_every", settings.val_every),
            ("sample_every", settings.sample_every),
            ("genT", settings.sample_length),
            ("overfit_single_batch", settings.overfit_one_batch),
            ("recompute", settings.recompute),
        ],
        [("device", run.device_name), ("peak TFlops", peak), ("precision", run.engine.dtype)],
        [
            ("weight init method", f"checkpoint of step {run.first_step}" if run.first_step else settings.model),
            ("max_sequence_length T", config.max_seq_len),
            ("vocab_size V", config.vocab_size),
            ("padded_vocab_size Vp", config.padded_vocab_size),
            ("num_layers L", config.n_layers),
            ("num_heads NH", config.n_heads),
            ("channels C", config.channels),
            ("num_parameters", n_parameters(config)),
        ],
        [("train_num_batches", run.n_steps), ("val tokens", run.val_loader.n_tokens)],
        [("run hellaswag", "yes" if run.hellaswag_path else "no")],
        [("num_processes", run.communicator.world_size), ("zero_stage", settings.zero_stage)],
    ]


def settings_table(sections: Iterable[Iterable[tuple[str, Any]]]) -> str:
    """Return a table in llm.c's form; a rule separates the sections."""
    rule = f"+-{'-' * 21}-+-{'-' * 50}-+"
    lines = [rule, f"| {'Parameter':21} | {'Value':50} |", rule]
    for rows in sections:
        lines += [f"| {name:21} | {_shown(value):50} |" for name, value in rows]
        lines.append(rule)
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:e}" if isinstance(value, float) else str(value)
