"""What the full run would take on one A100 and on eight: a projection from measurements on another GPU.

`python -m gpt2edu.projection` reads the profile of a step with the A100's kernels (`gpt2edu.profile --arch sm_80`),
measured on a newer GPU. Each kernel reaches a share of what that GPU can do at most: of the fastest large product of
the same instructions, or of a large copy. The projection gives it the same share of what an A100 can do at most, for
which there is a low and a high case. Nothing of it was run on an A100.

Ceilings are measured in short bursts, the profile in a long run, so the shares hold what the power limit costs here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2edu.communication import ETHERNET, NODE_GPUS, NVLINK_3, Cluster, predict
from gpt2edu.errors import Gpt2EduError, run_main
from gpt2edu.flops import flop_per_token, mfu, peak_flop_per_s
from gpt2edu.plan import GPU_KINDS
from gpt2edu.presets import PRESETS
from gpt2edu.published import LLMC_A100_STEP_MS
from gpt2edu.results import RESULTS_DIR, Results, Row, load_results
from gpt2edu.table import Table

RECIPE = PRESETS["gpt2-124m"]
TOKENS = RECIPE.settings.total_batch or 0
PROFILE = "profile_sm_80"
PROFILED = {"B": RECIPE.micro_batch, "T": RECIPE.settings.seq_len, "tokens": TOKENS}
LAST_STEP, SQUARE = "step7_multistage", {"M": 8192, "N": 8192, "K": 8192}  # the last step of products for the A100
IDLE, STEP = "idle", "step"
ON_EVERY_GPU = ("zero", "total")  # of all gradients, of all shards: more GPUs do not share it
LIMIT_MINUTES = 90  # of the original's title
DOLLARS_PER_HOUR = next(kind.dollars_per_hour for kind in GPU_KINDS if (kind.name, kind.memory_gb) == ("A100", 80))


@dataclass(frozen=True)
class Ceilings:
    """What a GPU reaches at most: large bf16 products, and a copy of a large array (bytes read plus written)."""

    tflop_per_s: float
    gb_per_s: float


# The A100 SXM 80GB. Its data sheet promises 312 TFLOP/s (dense bf16) and 2,039 GB/s.
# Products, with PyTorch and cuBLAS: low, 230 (fp16): README.md of mli/transformers-benchmarks @ 3370b2b. High, 271.2
# (bf16, the best of many shapes): table of maximum achievable FLOPS in compute/accelerator/README.md of
# stas00/ml-engineering @ 744d01e.
# Copy: high, 1,709: BabelStream 5.0 with CUDA on an A100-SXM4-80GB of Tursa, in EPCC's notes on that benchmark. Low,
# 1,600, is assumed.
A100 = {"low": Ceilings(230.0, 1600.0), "high": Ceilings(271.2, 1709.0)}


@dataclass(frozen=True)
class Measured:
    """What the projection begins with.

    Attributes:
        profile: of a whole step, on one GPU.
        product: the row of the fastest product with the same instructions; 8192 x 8192 x 8192 where that is measured.
        ceilings: of that GPU.
    """

    profile: Results
    product: Row
    ceilings: Ceilings

    @property
    def kernels(self) -> list[Row]:
        """The rows of all that the GPU does in a step."""
        return [row for row in self.profile.rows if row["op"] not in (IDLE, STEP)]

    @property
    def idle_ms(self) -> float:
        """Time of a step in which the GPU waits for the computer."""
        return sum(row["median_ms"] for row in self.profile.rows if row["op"] == IDLE)

    def ceiling(self, row: Row, ceilings: Ceilings | None = None) -> float:
        """Return which ceiling limits a row's operation, of this GPU or of another; what has no rate moves bytes."""
        of_gpu = ceilings or self.ceilings
        return of_gpu.tflop_per_s if "tflop_per_s" in row else of_gpu.gb_per_s


def find_measured(folder: Path = RESULTS_DIR) -> Measured:
    """Return the measurements of the first GPU that has all of them.

    Raises:
        Gpt2EduError: there is none.
    """
    products = {results.gpu: results.rows for results in load_results("matmul", folder)}
    for profile in load_results(PROFILE, folder):
        rows = [row for row in products.get(profile.gpu, []) if row["variant"] == LAST_STEP and "tflop_per_s" in row]
        if rows and PROFILED.items() <= profile.rows[-1]["shape"].items():
            product = max(rows, key=lambda row: (row["shape"] == SQUARE, row["tflop_per_s"]))
            return Measured(
                profile, product, Ceilings(round(product["tflop_per_s"], 1), profile.ceilings["copy_gb_per_s"])
            )
    raise Gpt2EduError(
        "projection to the A100: not measured yet: python -m gpt2edu.profile --arch sm_80 and python -m gpt2edu.bench "
        "matmul on one GPU measure what it is made of"
    )


@dataclass(frozen=True)
class Projection:
    """A step on `n_gpus` A100, in milliseconds.

    Attributes:
        shared_ms: of kernels whose work the GPUs share, as long as it would take one of them.
        own_ms: of kernels that each GPU runs for itself.
        idle_ms: as measured. It is the computer's time, so it is taken to be the same for each step.
        exposed_ms: of sending that nothing hides.
    """

    case: str
    n_gpus: int
    shared_ms: float
    own_ms: float
    idle_ms: float
    exposed_ms: float

    @property
    def step_ms(self) -> float:
        """The whole step."""
        return self.shared_ms / self.n_gpus + self.own_ms + self.idle_ms + self.exposed_ms


def minutes_of(step_ms: float) -> float:
    """Return the minutes of all steps of the recipe."""
    return step_ms * RECIPE.settings.max_steps / 60_000


def dollars_of(step_ms: float, n_gpus: int) -> float:
    """Return the rent for all steps of the recipe."""
    return minutes_of(step_ms) / 60 * n_gpus * DOLLARS_PER_HOUR


def mfu_of(step_ms: float, n_gpus: int) -> float:
    """Return the model FLOP utilization of A100s that take so long for a step."""
    tokens_per_s = 1000 * TOKENS / step_ms / n_gpus
    return mfu(RECIPE.model, PROFILED["T"], tokens_per_s, peak_flop_per_s("A100", "bf16")) or 0.0


def kernel_ms(measured: Measured, row: Row, case: str) -> float:
    """Return a row's milliseconds on one A100: at the same share of the ceiling they go with its reciprocal."""
    return row["median_ms"] * measured.ceiling(row) / measured.ceiling(row, A100[case])


def project(measured: Measured, case: str, n_gpus: int) -> Projection:
    """Return a step of the recipe on up to 8 A100 of one machine: micro-batches of 64 sequences, -r 0, -z 1."""
    ms = {row["op"]: kernel_ms(measured, row, case) for row in measured.kernels}
    own_ms = sum(ms[op] for op in ON_EVERY_GPU if op in ms)
    shared_ms = sum(ms.values()) - own_ms
    compute_s = (shared_ms / n_gpus + own_ms) / 1000
    flop_per_s = TOKENS * flop_per_token(RECIPE.model, PROFILED["T"]) / n_gpus / compute_s
    cluster = Cluster(NVLINK_3, ETHERNET)  # within one machine nothing goes through the latter
    sending = predict(RECIPE.model, PROFILED["T"], TOKENS, flop_per_s, n_gpus, cluster)
    return Projection(case, n_gpus, shared_ms, own_ms, measured.idle_ms, 1000 * sending.exposed_s)


# --------------------------------------------------------------------------------------------------
# in words


def kernel_table(measured: Measured) -> Table:
    """Return each operation's time and share of its ceiling here, and the arithmetic of its time on one A100."""
    rows = []
    for row in measured.kernels:
        here, ms = measured.ceiling(row), row["median_ms"]
        rate = row.get("tflop_per_s", row.get("gb_per_s"))
        share = f"{rate:,.0f} / {here:,.0f} = {rate / here:.0%}" if rate else ""
        there = ((measured.ceiling(row, ceilings), kernel_ms(measured, row, case)) for case, ceilings in A100.items())
        sums = [f"{ms:,.1f} x {here:,.1f} / {ceiling:,.1f} = {there_ms:,.1f}" for ceiling, there_ms in there]
        rows.append([row["op"], f"{ms:,.1f}", share, *sums])
    rows.append([IDLE, f"{measured.idle_ms:,.1f}", "", *[f"{measured.idle_ms:,.1f}"] * len(A100)])
    return Table(["operation", "ms here", "of its ceiling", *(f"ms on one A100, {case}" for case in A100)], rows)


def run_table(measured: Measured) -> Table:
    """Return the sum of a step, and minutes, dollars and MFU of the run, a row a projection; last llm.c's, published.

    The caption says what is measured, where and when, and what is assumed.
    """
    rows = []
    for found in (project(measured, case, n_gpus) for n_gpus in (1, NODE_GPUS) for case in A100):
        computing = f"{found.shared_ms:,.1f} / {found.n_gpus} + {found.own_ms:.1f} + {found.idle_ms:.1f}"
        arithmetic = f"{computing} + {found.exposed_ms:.1f} = {found.step_ms:,.1f}"
        rows.append([f"{found.n_gpus} x A100, {found.case}", arithmetic, *_run_cells(found.step_ms, found.n_gpus)])
    published = _run_cells(LLMC_A100_STEP_MS, NODE_GPUS)
    rows.append([f"{NODE_GPUS} x A100, llm.c, published", f"{LLMC_A100_STEP_MS:.0f}", *published])
    summands = "ms a step: kernels that GPUs share / GPUs + kernels that each runs itself + idle + sending."
    return Table(["", "ms a step", "minutes", "dollars", "MFU"], rows, f"{summands} {_sources(measured)}")


def _run_cells(step_ms: float, n_gpus: int) -> list[str]:
    return [
        f"x {RECIPE.settings.max_steps:,} / 60,000 = {minutes_of(step_ms):,.0f}",
        f"x {n_gpus} x {DOLLARS_PER_HOUR:.2f} / 60 = {dollars_of(step_ms, n_gpus):,.0f}",
        f"{mfu_of(step_ms, n_gpus):.0%}",
    ]


def _sources(measured: Measured) -> str:
    profile, product, here = measured.profile, measured.product, measured.ceilings
    shape = " x ".join(str(size) for size in product["shape"].values())
    low, high = A100.values()
    return (
        f"Projection, not run: no A100 was used. Measured: a step of {TOKENS:,} tokens with the A100's kernels on one "
        f"{profile.gpu}, {profile.date}, commit {profile.commit[:7]} (`{profile.command}`); its ceilings, "
        f"{here.tflop_per_s:,.1f} TFLOP/s ({product['op']} {shape}, {product['variant']}) and "
        f"{here.gb_per_s:,.1f} GB/s (copy). Others' figures: ceilings of an A100, low {low.tflop_per_s:,.1f} TFLOP/s, "
        f"high {high.tflop_per_s:,.1f} TFLOP/s and {high.gb_per_s:,.1f} GB/s. Assumed: low {low.gb_per_s:,.1f} GB/s; "
        "that our fastest product and copy reach these ceilings, and each kernel its share of them; the same idle "
        f"time; ${DOLLARS_PER_HOUR:.2f} an hour for a GPU; sending over {NVLINK_3.name} as gpt2edu.communication "
        "predicts it. Training alone, without validation."
    )


def verdict(measured: Measured) -> str:
    """Say whether eight A100 stay within the original's 90 minutes."""
    minutes = [minutes_of(project(measured, case, NODE_GPUS).step_ms) for case in A100]
    where = ("in neither case", "in the low case", "in both cases")[sum(found > LIMIT_MINUTES for found in minutes)]
    return (
        f"Projection to {NODE_GPUS} x A100, not run: {minutes[1]:,.0f} to {minutes[0]:,.0f} minutes, {where} more than "
        f"{LIMIT_MINUTES}; llm.c's author measured {minutes_of(LLMC_A100_STEP_MS):.0f}."
    )


def projection_line() -> str:
    """Return the verdict, or what is not measured yet."""
    try:
        return f"{verdict(find_measured())} Its arithmetic: python -m gpt2edu.projection"
    except Gpt2EduError as missing:
        return str(missing)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the projection with its arithmetic."""
    parser = argparse.ArgumentParser(prog="python -m gpt2edu.projection", description=__doc__, allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=RESULTS_DIR, help="folder of the results files")
    measured = find_measured(parser.parse_args(argv).results)
    print(kernel_table(measured), run_table(measured), verdict(measured), sep="\n\n")
    return 0


if __name__ == "__main__":
    run_main(main)
