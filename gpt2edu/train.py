"""Train GPT-2: `python -m gpt2edu.train`. `run_steps` is the whole loop, in llm.c's order."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from gpt2edu.checkpoint import prune, save_checkpoint
from gpt2edu.cli import check_settings, parse_settings
from gpt2edu.config import TrainConfig
from gpt2edu.distributed import make_communicator
from gpt2edu.errors import Gpt2EduError, run_main
from gpt2edu.evaluate import hellaswag_accuracy, validation_loss
from gpt2edu.flops import mfu
from gpt2edu.gpu_status import gpu_status
from gpt2edu.logger import step_line
from gpt2edu.outliers import is_outlier
from gpt2edu.run import Run, prepare_run
from gpt2edu.run_inputs import out_of_memory
from gpt2edu.sample import generate
from gpt2edu.schedule import learning_rate_at
from gpt2edu.stopping import StopRequest, agree, farewell
from gpt2edu.torch_engine import choose_device

GRAD_CLIP = 1.0
SAMPLE_SEED = 1337


@dataclass
class TrainResult:
    """What came of a run (of this process's part of it, where it was resumed)."""

    steps: int = 0  # done in all
    tokens: int = 0  # seen by this process and its fellow ranks
    seconds: float = 0.0
    step_ms: float = math.nan  # average, the first step left out
    train_loss: float = math.nan  # of the last step
    val_loss: float = math.nan  # nats a token, the last one measured
    val_bits_per_byte: float = math.nan
    hellaswag: float | None = None  # accuracy
    stopped_by: int | None = None  # the signal that ended it early


@dataclass(frozen=True)
class StepOutcome:
    """What a training step found."""

    loss: float
    grad_norm: float
    loss_z: float
    grad_norm_z: float
    learning_rate: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 128 + the signal's number when one stopped the run."""
    result = train(parse_settings(argv))
    return 128 + result.stopped_by if result.stopped_by else 0


def train(settings: TrainConfig) -> TrainResult:
    """Train as the settings say, alone or as one of the ranks that MPI started.

    Raises:
        UsageError: a setting asks for what is not possible here.
        Gpt2EduError: a file is missing or damaged, memory or disk is short, or the loss is not finite.
    """
    check_settings(settings)
    device = choose_device(settings.device)
    with make_communicator(device.type, settings.hang_timeout) as communicator, StopRequest() as stop:
        if device.type == "cuda":
            device = torch.device("cuda", device.index or torch.cuda.current_device())
            torch.cuda.set_device(device)
        say = _say if communicator.rank == 0 else _say_nothing
        for name in communicator.names:
            say(name)
        run = prepare_run(settings, device, communicator, say)
        try:
            return run_steps(run, stop)
        except torch.OutOfMemoryError as problem:
            problem.__traceback__ = None  # it holds the tensors that filled the memory
            raise out_of_memory(run.settings, run.engine, run.train_loader.n_local) from None


def run_steps(run: Run, stop: StopRequest) -> TrainResult:
    """Take the steps from `run.first_step` to the last; evaluate, sample and save between them."""
    settings, result = run.settings, TrainResult(steps=run.first_step)
    batches = BatchStream(run)
    started = time.perf_counter()
    with progress_bar(run) as bar:
        for step in range(run.first_step, run.n_steps + 1):
            last = step == run.n_steps
            if not result.stopped_by:
                evaluate(run, step, last, result)
            if checkpoint_is_due(run, step, last, stopped=result.stopped_by is not None):
                save(run, step)
            if last or result.stopped_by:
                break
            step_started = time.perf_counter()
            outcome = train_step(run, step, batches)
            report_step(run, step, outcome, time.perf_counter() - step_started)
            bar.update()
            result.steps, result.train_loss = step + 1, outcome.loss
            result.tokens += settings.total_batch
            result.stopped_by = agree(run.communicator, stop.signal)
    result.seconds = time.perf_counter() - started
    result.step_ms = run.throughput.mean_step_ms
    if run.throughput.n_steps:
        run.say(f"total average iteration time: {result.step_ms:f} ms")
    if result.stopped_by:
        run.say(farewell(result.stopped_by, result.steps, settings.output_dir))
    return result


def train_step(run: Run, step: int, batches: BatchStream) -> StepOutcome:
    """Take one optimizer step; a bad step or an outlier leaves the weights alone."""
    settings, engine = run.settings, run.engine
    for _ in range(run.n_micro_steps):
        engine.accumulate(*batches.current, run.n_micro_steps)
        batches.advance()  # read the next micro-batch while the device works
    loss, grad_norm = engine.reduce()
    learning_rate = learning_rate_at(
        step,
        scheduler=settings.scheduler,
        peak=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        n_steps=run.n_steps,
        final_fraction=settings.final_lr_fraction,
    )
    loss_z = run.loss_outliers.update(loss)
    grad_norm_z = run.grad_outliers.update(grad_norm)
    outcome = StepOutcome(loss, grad_norm, loss_z, grad_norm_z, learning_rate)
    reason = reason_to_skip(run, outcome)
    if reason:
        run.say(f"skipping update due to {reason}")
    else:
        grad_scale = GRAD_CLIP / grad_norm if grad_norm > GRAD_CLIP else 1.0
        engine.update(learning_rate, settings.weight_decay, grad_scale, step + 1)
    refuse_bad_steps(run, step, outcome)
    return outcome


def reason_to_skip(run: Run, outcome: StepOutcome) -> str | None:
    """Return why a step's gradients are not to be used, None when they are good."""
    if run.engine.overflowed:
        return "an fp16 overflow; the loss scale is halved"
    if not (math.isfinite(outcome.loss) and math.isfinite(outcome.grad_norm)):
        return f"loss {outcome.loss} and gradient norm {outcome.grad_norm}"
    if is_outlier(outcome.loss_z, run.settings.skip_loss_z):
        return f"loss z-score of {outcome.loss_z:f}"
    if is_outlier(outcome.grad_norm_z, run.settings.skip_grad_z):
        return f"grad z-score of {outcome.grad_norm_z:f}"
    return None


def refuse_bad_steps(run: Run, step: int, outcome: StepOutcome) -> None:
    """Count losses and norms that are not finite, one after another, and give up at `--max-bad-steps`.

    Raises:
        Gpt2EduError: there were that many; no checkpoint is written.
    """
    if run.engine.overflowed:
        return
    finite = math.isfinite(outcome.loss) and math.isfinite(outcome.grad_norm)
    run.bad_steps = 0 if finite else run.bad_steps + 1
    if run.bad_steps >= run.settings.max_bad_steps:
        folder = run.settings.output_dir
        way_on = f"go on from the last good checkpoint in {folder} with -y 1 and" if folder else "begin again with"
        raise Gpt2EduError(
            f"the loss or the gradient was not finite in {run.bad_steps} steps in a row, the last of them step "
            f"{step + 1} (--max-bad-steps); {way_on} a smaller -l or a longer warm-up -u"
        )


def report_step(run: Run, step: int, outcome: StepOutcome, seconds: float) -> None:
    """Print the step's line, add it to `main.log`, and say now and then how the GPU feels."""
    settings = run.settings
    run.log.log_train(step, outcome.loss, outcome.learning_rate, outcome.grad_norm)
    tokens_per_s = settings.total_batch / seconds / run.communicator.world_size
    run.say(
        step_line(
            step=step + 1,
            n_steps=run.n_steps,
            ms=1000 * seconds,
            mfu=mfu(run.engine.config, settings.seq_len, tokens_per_s, run.peak_flop_per_s),
            dtype=run.engine.dtype,
            tokens_per_s=run.throughput.update(settings.total_batch, seconds),
            **dataclasses.asdict(outcome),
        )
    )
    if step == run.first_step:
        for note in run.engine.memory_notes():
            run.say(note)
    if settings.log_gpu_every > 0 and (step + 1) % settings.log_gpu_every == 0:
        run.say(gpu_status())


# --------------------------------------------------------------------------------------------------
# between the steps


def is_due(step: int, every: int) -> bool:
    """Say whether something that happens every `every` steps happens before this one; never for 0."""
    return every > 0 and step % every == 0


def evaluate(run: Run, step: int, last: bool, result: TrainResult) -> None:
    """Do what is due of validation (at step 0 too), HellaSwag and sample."""
    settings = run.settings
    if last or is_due(step, settings.val_every):
        validate(run, step, result)
    if run.hellaswag_path and (last or (step > 0 and is_due(step, settings.val_every))):
        evaluate_hellaswag(run, step, result)
    if settings.sample_every and (last or (step > 0 and is_due(step, settings.sample_every))):
        print_sample(run)


def validate(run: Run, step: int, result: TrainResult) -> None:
    """Print and log the validation loss; all ranks take part."""
    byte_lengths = run.tokenizer.token_byte_lengths if run.tokenizer else None
    nats, bits = validation_loss(run.engine, run.val_loader, run.settings.micro_batch, run.communicator, byte_lengths)
    result.val_loss, result.val_bits_per_byte = nats, bits
    run.say(f"val loss {nats:f}")
    if byte_lengths is not None:
        run.say(f"val bits per byte {bits:f}")
    run.log.log_validation(step, nats)


def evaluate_hellaswag(run: Run, step: int, result: TrainResult) -> None:
    """Print and log the accuracy on HellaSwag; all ranks take part."""
    settings = run.settings
    correct, total = hellaswag_accuracy(
        run.engine, run.hellaswag_path, settings.micro_batch, settings.seq_len, run.communicator
    )
    result.hellaswag = correct / total
    run.say(f"HellaSwag: {correct}/{total} = {result.hellaswag:f}")
    run.log.log_hellaswag(step, result.hellaswag)


def print_sample(run: Run) -> None:
    """Let the model write from nothing; rank 0 alone does it."""
    if run.communicator.rank:
        return
    config = run.engine.config
    n_tokens = min(run.settings.sample_length, config.max_seq_len) - 1
    start = run.tokenizer.eot if run.tokenizer else config.vocab_size - 1
    ids = list(generate(run.engine.model, [start], n_tokens, seed=SAMPLE_SEED)) if n_tokens else []
    text = run.tokenizer.decode(ids) if run.tokenizer else " ".join(map(str, ids))
    run.say(f"generating:\n---\n{text}\n---")


def checkpoint_is_due(run: Run, step: int, last: bool, stopped: bool) -> bool:
    """Say whether to write a checkpoint before `step`: by -n, or because the run was stopped.

    The one that was just loaded is not written again, and none while steps are bad.
    """
    settings = run.settings
    if settings.output_dir is None or run.bad_steps or step == run.first_step > 0:
        return False
    by_count = settings.checkpoint_every > 0 and (last or (step > 0 and is_due(step, settings.checkpoint_every)))
    return stopped or by_count


def save(run: Run, step: int) -> None:
    """Write the checkpoint before `step`, and remove those that -nk does not keep."""
    settings = run.settings
    run.say(f"Writing checkpoint at step {step}")
    save_checkpoint(
        settings.output_dir,
        step,
        config=run.engine.config,
        flat_parameters=run.engine.whole_parameters(),
        state_arrays=run.engine.state_arrays(),
        settings=settings,
        loader=run.train_loader,
        extra=run.extra_state(),
        communicator=run.communicator,
    )
    if run.communicator.rank == 0:
        prune(settings.output_dir, settings.checkpoints_keep, settings.checkpoint_major_every)


class BatchStream:
    """This rank's micro-batches, step after step without end; the current one is always read already."""

    def __init__(self, run: Run) -> None:
        self._batches = self._all(run)
        self.current: tuple[np.ndarray, np.ndarray] = next(self._batches)

    @staticmethod
    def _all(run: Run) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for step in itertools.count(run.first_step):
            yield from run.train_loader.step_batches(
                0 if run.settings.overfit_one_batch else step, run.settings.micro_batch
            )

    def advance(self) -> None:
        """Make the next micro-batch the current one."""
        self.current = next(self._batches)


# --------------------------------------------------------------------------------------------------
# the terminal


def progress_bar(run: Run) -> tqdm:
    """Return a bar over the steps; it shows on a terminal only, and on rank 0."""
    hidden = run.communicator.rank != 0 or not sys.stderr.isatty()
    return tqdm(total=run.n_steps, initial=run.first_step, unit="step", disable=hidden, leave=False)


def _say(text: str) -> None:
    tqdm.write(text)  # above the bar
    sys.stdout.flush()


def _say_nothing(_text: str) -> None:
    return None


if __name__ == "__main__":
    run_main(main)
