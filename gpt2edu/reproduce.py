"""The whole reproduction with one command: data, training, evaluation, samples, report. `python -m gpt2edu.reproduce`.

The same command, run again, does what is left.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence

from gpt2edu.distributed import make_communicator
from gpt2edu.errors import Gpt2EduError, UsageError, run_main
from gpt2edu.files import data_dir
from gpt2edu.launcher import launched_world
from gpt2edu.machine import describe_machine
from gpt2edu.plan import Plan, choice_lines, large_work, make_plan, plan_details, plan_text
from gpt2edu.presets import PRESETS
from gpt2edu.projection import RECIPE, projection_line
from gpt2edu.reproduction import Reproduction, announce, train_here
from gpt2edu.stages import RunFolder

SMALL_RUN = "python -m gpt2edu.reproduce --preset laptop"
EXAMPLES = f"""\
examples
  python -m gpt2edu.reproduce              what fits this machine: GPT-2 124M with a GPU, a small GPT-2 without
  python -m gpt2edu.reproduce --dry-run    only the plan: tokens, steps, FLOP, memory, disk, hours and dollars
  {SMALL_RUN}
                                           4 MB of English, 6 minutes on 2 processor cores
  python -m gpt2edu.reproduce --yes        start work of over 30 minutes, 10 GB or 1 dollar without asking
  mpirun -np 16 -hostfile hosts python -m gpt2edu.reproduce --yes
                                           several nodes with a common file system

On a node with several GPUs it starts mpiexec itself. The same command again goes on where it was stopped; with
--restarts 3 it does so by itself when a rank died or hung."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2edu.reproduce",
        description="Reproduce GPT-2 in the size that fits this machine: data, training, evaluation, samples, report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--preset", metavar="NAME", help=f"{', '.join(PRESETS)} (default: gpt2-124m with a GPU, laptop without)")
    add("--dry-run", action="store_true", help="print the plan and exit")
    add("--yes", action="store_true", help="start large work (30 minutes, 10 GB, 1 dollar) without asking")
    add("--gpus", type=int, metavar="N", help="use at most N GPUs (default: all)")
    add("--gpu-price", type=float, metavar="DOLLARS", help="what a GPU costs an hour (default: a common cloud price)")
    add("--restarts", type=int, default=0, metavar="N", help="start a training that broke again, up to N times")
    add("--data-dir", help="folder for data sets and runs (default: GPT2EDU_DATA, or the user's cache)")
    add("--out", help="folder of this run (default: runs/<preset> in the data folder)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 128 + the signal's number when one stopped the training."""
    options = build_parser().parse_args(argv)
    if options.gpus is not None and options.gpus < 0:
        raise UsageError(f"--gpus {options.gpus}: give the number of GPUs to use, or 0 for none")
    rank, launched = launched_world()
    if options.restarts < 0 or (options.restarts and launched > 1):
        raise UsageError(
            "--restarts N is at least 0, and needs this command to start the ranks: give it without mpirun"
        )
    plan = make_plan(describe_machine(), options.preset, options.gpus, options.gpu_price, launched)
    if options.dry_run:
        if rank == 0:
            print(plan_text(plan))
            if plan.preset is RECIPE:
                print(f"\n{projection_line()}")
        return 0
    folder = data_dir(options.data_dir)
    work = Reproduction(plan, RunFolder(options.out or folder / "runs" / plan.preset.name), folder, options.restarts)
    return reproduce(work, yes=options.yes)


def reproduce(work: Reproduction, *, yes: bool) -> int:
    """Do the stages that are not done; only training uses more than rank 0."""
    with make_communicator("cpu") as ranks:  # MPI alone: NCCL comes with training, when the data are there
        command = before_training(work, yes=yes) if ranks.rank == 0 else None
        ranks.barrier()  # sleeps, be it for hours
        command = ranks.broadcast(command)
    if command is not None:
        code = work.train(command) if ranks.rank == 0 else train_here(command)
        if code:
            return code
    with make_communicator("cpu") as ranks:
        if ranks.rank == 0:
            work.evaluate()
            work.sample()
            work.report()
            work.print_results()
        ranks.barrier()
    return 0


def before_training(work: Reproduction, *, yes: bool) -> list[str] | None:
    """Say what will be done, ask where it is large, prepare the data; return training's arguments, None if it is done.

    Raises:
        UsageError: large work was not agreed to.
        Gpt2EduError: the disk is too small, or the data cannot be had.
    """
    print("\n".join(choice_lines(work.plan)), flush=True)
    ready = work.data_is_ready()
    if not (ready and work.training_is_done()):
        require_disk(work, data_ready=ready)
        reasons = large_work(work.plan, data_ready=ready)
        if reasons and ready and "--overwrite" in work.start_arguments():
            reasons.append(f"and the removal of the training with other settings in {work.run.train_folder}")
        if reasons:
            ask_for_consent(work.plan, reasons, yes=yes)
    work.prepare_data()
    if work.training_is_done():
        announce("train", f"done already: {work.final_checkpoint().model_path}")
        return None
    work.record_plan()
    start = work.start_arguments()
    if "--overwrite" in start:
        print(f"\nThe settings have changed: the training in {work.run.train_folder} is removed and begun again.")
    return [*work.train_command(), *start]


def require_disk(work: Reproduction, *, data_ready: bool) -> None:
    """Refuse to begin what cannot end.

    Raises:
        Gpt2EduError: the shards or the checkpoints do not fit the disk.
    """
    for what, folder, n_bytes, flag in (
        ("token shards", work.shards.parent, 0 if data_ready else work.plan.data_bytes, "--data-dir"),
        ("checkpoints", work.run.path, work.plan.checkpoint_bytes, "--out"),
    ):
        free = shutil.disk_usage(folder).free
        if n_bytes > free:
            raise Gpt2EduError(
                f"{folder} has {free / 1e9:.1f} GB free and the {what} need {n_bytes / 1e9:.1f} GB; "
                f"free some space or choose another disk with {flag}"
            )


def ask_for_consent(plan: Plan, reasons: list[str], *, yes: bool) -> None:
    """Print the plan of large work, and go on only when the user agrees.

    Raises:
        UsageError: nobody is there to ask, or the answer is no.
    """
    print(f"\n{plan_details(plan)}\n", flush=True)
    if yes:
        return
    question = f"This takes {', '.join(reasons)}"
    if not sys.stdin.isatty():
        raise UsageError(f"{question}: add --yes to start it (make reproduce FULL=1), or run the small {SMALL_RUN}")
    if input(f"{question}. Start? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError(f"not started; a small run that needs no consent: {SMALL_RUN}")


if __name__ == "__main__":
    run_main(main)
