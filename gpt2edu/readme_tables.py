"""The tables of measured numbers in README.md, made of the results files: `python -m gpt2edu.bench readme`."""

from __future__ import annotations

from pathlib import Path

from gpt2edu.errors import Gpt2EduError
from gpt2edu.projection import find_measured, run_table, verdict
from gpt2edu.results import Results, Row, load_results

MARKERS = (
    "<!-- results: begin, written by python -m gpt2edu.bench readme -->",
    "<!-- results: end -->",
)
KERNEL_FILES = ("matmul", "attention", "layernorm", "classifier", "adamw", "gelu", "residual", "encoder", "global_norm")


def steps_table() -> str:
    """Return the table of training steps, from all `step` and `train_loop` files."""
    lines = [
        "| GPU | program | size | ms a step | tokens/s | TFLOP/s | speed over PyTorch |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    found: list[Results] = load_results("step") + load_results("train_loop")
    for results in found:
        for row in results.rows:
            program = row["variant"] if results.name == "train_loop" else f"trainer, {row['variant']} engine"
            rate = f"{row['tokens_per_s']:,.0f} | {row['tflop_per_s']:,.0f} | {row['torch_ratio']:.3f}"
            shape = row["shape"]
            size = f"d{shape['L']}, B={shape['B']}, {shape['tokens']:,} tokens"
            lines.append(f"| {results.gpu} | {program} | {size} | {row['median_ms']:,.1f} | {rate} |")
    if not found:
        return "Not measured yet: `python -m gpt2edu.bench step` on a GPU writes the first row."
    lines += [
        "",
        "One GPU; d12 is GPT-2 124M, B sequences of 1,024 tokens run at once. PyTorch is that of the same run: "
        f"the trainer with its engine and `torch.compile`, or a bare loop. Measured: {_when(found)}.",
    ]
    return "\n".join(lines)


def kernels_table() -> str:
    """Return the table of the production kernels beside PyTorch's fastest, at each op's first shape."""
    lines = [
        "| kernel | shape | ms | rate | of the ceiling | speed over PyTorch |",
        "|---|---|---:|---:|---:|---:|",
    ]
    found = [results for name in KERNEL_FILES for results in load_results(name)]
    for results in found:
        first: dict[str, Row] = {}
        for row in results.rows:
            if row["variant"] == "production":
                first.setdefault(row["op"], row)
        lines += [_kernel_line(row) for row in first.values()]
    if not found:
        return "Kernels are not measured yet: `python -m gpt2edu.bench all` on a GPU writes their rows."
    lines += [
        "",
        "bf16 on random numbers; ceilings are a large copy and a large product, measured in the same run; PyTorch is "
        f"the fastest of cuBLAS, cuDNN or flash attention, eager and compiled. Measured: {_when(found)}.",
    ]
    return "\n".join(lines)


def _kernel_line(row: Row) -> str:
    shape = ", ".join(f"{letter}={size:,}" for letter, size in row["shape"].items())
    rate = f"{row['tflop_per_s']:,.0f} TFLOP/s" if "tflop_per_s" in row else f"{row['gb_per_s']:,.0f} GB/s"
    share = f"{row['ceiling_share']:.0%}" if "ceiling_share" in row else ""
    return f"| {row['op']} | {shape} | {row['median_ms']:,.3f} | {rate} | {share} | {row['torch_ratio']:.2f} |"


def _when(found: list[Results]) -> str:
    """Return where, when and at which commits files were measured, each once."""
    places = (f"{results.gpu} on {results.date} at commit {results.commit[:7]}" for results in found)
    return ", ".join(dict.fromkeys(places))


def ranks_table() -> str:
    """Return the table of steps on several GPUs, from all `ranks` files; nothing where there are none."""
    found = load_results("ranks")
    lines = [
        "| GPUs | engine | sharded | ms a step | predicted | tokens/s | MFU | efficiency |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for results in found:
        for row in results.rows:
            if row["op"] == "step":
                shape, sharded = row["shape"], "`-z 1`" if row["shape"]["z"] else "`-z 0`"
                predicted = f"{row['predicted_ms']:,.1f}" if "predicted_ms" in row else ""
                speed = f"{predicted} | {row['tokens_per_s']:,.0f} | {row['mfu']:.1%} | "
                speed += f"{row['efficiency']:.1%}" if "efficiency" in row else ""
                name = f"{shape['ranks']} x {results.gpu}"
                lines.append(f"| {name} | {row['variant']} | {sharded} | {row['median_ms']:,.1f} | {speed} |")
    if not found:
        return ""
    lines += ["", f"GPT-2 124M, B=64, 524,288 tokens a step over all GPUs, fp32 gradients. Measured: {_when(found)}."]
    return "\n".join(lines)


def projection_table() -> str:
    """Return the projection to the A100 with what it is made of; empty where that is not measured."""
    try:
        measured = find_measured()
    except Gpt2EduError:
        return ""
    return f"**{verdict(measured)}**\n\n{run_table(measured)._repr_markdown_()}"


def tables() -> str:
    """Return what stands between the markers."""
    return "\n\n".join(filter(None, (steps_table(), ranks_table(), kernels_table(), projection_table())))


def update_readme(path: Path) -> None:
    """Write the tables between their markers."""
    before, _, rest = path.read_text(encoding="utf-8").partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    begin, end = MARKERS
    path.write_text(f"{before}{begin}\n{tables()}\n{end}{after}", encoding="utf-8")
