"""The report of a reproduction: one HTML file that needs nothing else, `report.html` in the run folder.

`python -m gpt2edu.report RUN_FOLDER` writes it again, also while the training goes on.
"""

from __future__ import annotations

import argparse
import html
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

from gpt2edu.errors import UsageError, run_main
from gpt2edu.files import atomic_write
from gpt2edu.flops import mfu, peak_flop_per_s
from gpt2edu.logger import History, read_log
from gpt2edu.parameters import n_parameters
from gpt2edu.presets import PRESETS, Preset
from gpt2edu.published import GPT2_FINEWEB_LOSS, GPT2_HELLASWAG, LLMC_124M_CURVE, LLMC_124M_STEPS
from gpt2edu.report_plots import hellaswag_plot, small_loss_plot, web_loss_plot
from gpt2edu.stages import STAGES, RunFolder, Stamp

PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --ink: #1c2330; --soft: #5b6575; --paper: #ffffff; --card: #f4f6f9; --line: #dde2ea; --accent: #2b6cb0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #9aa5b5; --paper: #14181f; --card: #1d232d; --line: #313a48; --accent: #7db4ec; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 56rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; }
p.lead, figcaption, .tile span, .tile small { color: var(--soft); }
p.lead { margin: 0 0 1.6rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.tile span, .tile small { display: block; font-size: .82rem; }
.tile b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .88rem; margin-top: .4rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 600; white-space: nowrap; width: 12rem; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.own td { color: var(--accent); font-weight: 600; }
blockquote { margin: 0 0 1rem; padding: .8rem 1.1rem; background: var(--card); border-left: 3px solid var(--accent);
  border-radius: 0 .5rem .5rem 0; white-space: pre-wrap; font: 1rem/1.55 Georgia, "Times New Roman", serif; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem;
  font-size: .82rem; white-space: pre-wrap; overflow-wrap: anywhere; }
td code { font-size: .8rem; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="lead">$lead</p>
<div class="tiles">
$tiles
</div>
$sections
</main>
</body>
</html>
""")


class Report:
    """A run folder's stamps and log, turned into sections of HTML; a stage that is missing leaves its section out."""

    def __init__(self, run: RunFolder, preset: Preset) -> None:
        self.run, self.preset = run, preset
        self.stamps: dict[str, Stamp | None] = {name: run.read(name) for name in ("plan", *STAGES)}
        for name in ("evaluate", "sample"):  # those of an earlier model say nothing about this one
            stamp = self.stamps[name]
            if stamp and stamp.settings["model"] != self.result("train").get("sha256"):
                self.stamps[name] = None
        log = run.train_folder / "main.log"
        self.history = read_log(log) if log.exists() else History()
        self.tokens_per_step = preset.settings.total_batch or 0
        self.n_steps = preset.settings.max_steps

    def result(self, stage: str) -> dict:
        """Return what came of a stage, empty when it is not done."""
        stamp = self.stamps[stage]
        return stamp.result if stamp else {}

    def html(self) -> str:
        """Return the whole page."""
        sections = [
            self.loss_section(),
            self.hellaswag_section(),
            self.baseline_section(),
            self.sample_section(),
            self.stage_section(),
            self.setting_section(),
            self.machine_section(),
            self.checksum_section(),
        ]
        model = self.preset.model
        lead = (
            f"{n_parameters(model):,} parameters: {model.n_layers} layers, {model.channels} channels, {model.n_heads} "
            f"heads, context {model.max_seq_len}. Trained on {self.preset.text.title} by gpt2edu."
        )
        return PAGE.substitute(
            title=escape(f"{self.preset.name}: {self.preset.title}"),
            lead=escape(lead),
            tiles="\n".join(self.tiles()),
            sections="\n".join(filter(None, sections)),
        )

    # ---- numbers

    def tiles(self) -> Iterable[str]:
        """Yield the headline numbers."""
        evaluation, done = self.result("evaluate"), max(self.history.train_loss, default=-1) + 1
        if evaluation:
            note = f"nats a token; {evaluation['bits_per_byte']:.4f} bits a byte"
            yield tile("validation loss", f"{evaluation['nats_per_token']:.4f}", note)
        elif self.history.validation_loss:
            yield tile(
                "validation loss so far", f"{list(self.history.validation_loss.values())[-1]:.4f}", "nats a token"
            )
        if "hellaswag" in evaluation:
            correct, total = evaluation["hellaswag"]["correct"], evaluation["hellaswag"]["total"]
            yield tile("HellaSwag", f"{correct / total:.4f}", f"{correct:,} of {total:,}")
        yield tile("training tokens", millions(done * self.tokens_per_step), f"{done:,} of {self.n_steps:,} steps")
        speed = self.tokens_per_s(done)
        if speed:
            yield tile("tokens a second", f"{speed:,.0f}", self.speed_note(speed))
        hours, price = self.train_hours(), self.result("plan").get("dollars_per_hour")
        if hours:
            yield tile("training time", duration(3600 * hours), "validation and checkpoints included")
        if hours and price:
            yield tile("cost so far", f"${hours * price:,.2f}", f"at ${price:,.2f} an hour")

    def train_hours(self) -> float:
        """Hours of all attempts at training."""
        stamp = self.stamps["train"]
        return stamp.seconds / 3600 if stamp else 0.0

    def tokens_per_s(self, done: int) -> float | None:
        """Tokens a second over the whole last attempt, None before it has taken time."""
        stamp = self.stamps["train"]
        attempt = stamp.attempts[-1] if stamp and stamp.attempts else {"seconds": 0.0}
        if not attempt["seconds"]:
            return None
        return (done - attempt.get("first_step", 0)) * self.tokens_per_step / attempt["seconds"] or None

    def speed_note(self, tokens_per_s: float) -> str:
        """Say which share of the GPUs' peak that is, or that no peak is known."""
        facts = self.result("plan")
        peak = peak_flop_per_s(facts.get("gpu"), "bf16")
        share = mfu(
            self.preset.model, self.preset.settings.seq_len, tokens_per_s / max(facts.get("n_gpus", 1), 1), peak
        )
        if share is None or peak is None:
            return "over the whole job, validation included"
        return f"MFU {share:.1%} of {peak / 1e12:.0f} TFLOP/s a GPU; over the whole job"

    # ---- sections

    def loss_section(self) -> str:
        """Draw the loss curve, with a caption that says what it is drawn over."""
        if not self.history.validation_loss:
            return ""
        if not self.preset.text.own_vocabulary:
            plot, caption = web_loss_plot(self.history, self.preset.name, self.tokens_per_step), self.web_caption()
            return figure("Loss", plot, caption)
        evaluation = self.result("evaluate")
        if not evaluation:
            return figure("Loss", small_loss_plot(self.history, self.tokens_per_step, 1.0, []), "Not evaluated yet.")
        ratio = evaluation["bits_per_byte"] / evaluation["nats_per_token"]
        plot = small_loss_plot(self.history, self.tokens_per_step, ratio, evaluation["baselines"])
        caption = (
            f"Bits that the model needs for a byte of text; a nat a token is {ratio:.4f} bits a byte of held-out text. "
            "The lines are what counting tokens, counting pairs of tokens, and gzip reach on the same held-out bytes."
        )
        return figure("Loss", plot, caption)

    def web_caption(self) -> str:
        """Say what is drawn, and where the schedules differ."""
        name, steps = self.preset.name, self.n_steps
        caption = (
            "Validation loss on the first 10,485,760 tokens of the validation shard, drawn against tokens; training "
            "loss is a running mean. "
        )
        if name in GPT2_FINEWEB_LOSS:
            caption += (
                f"OpenAI's GPT-2 of this size reaches {GPT2_FINEWEB_LOSS[name]:.4f} on FineWeb's validation text. "
            )
        else:
            caption += "No loss of OpenAI's GPT-2 of this size is published for this validation text. "
        if name != "gpt2-124m":
            return caption + "llm.c has published no curve of this size."
        return caption + (
            f"llm.c: the run of October 2024 on 8 H100, nine points of its log, at the end "
            f"{LLMC_124M_CURVE[LLMC_124M_STEPS]:.4f}. Both schedules warm up over 700 steps and fall as a cosine to 0, "
            f"but llm.c's ends after {LLMC_124M_STEPS:,} steps and this one after {steps:,}: at equal tokens this "
            "run's learning rate is a little lower, most of all near the end, so its loss falls slightly earlier."
        )

    def hellaswag_section(self) -> str:
        """Draw HellaSwag over the run, where it was evaluated."""
        if not self.history.hellaswag:
            return ""
        goal = GPT2_HELLASWAG.get(self.preset.name)
        caption = "Accuracy on HellaSwag's 10,042 validation questions (acc_norm), as llm.c measures it."
        if goal:
            caption += f" OpenAI's GPT-2 of this size reaches {goal:.4f}."
        return figure("HellaSwag", hellaswag_plot(self.history, self.preset.name, self.tokens_per_step), caption)

    def baseline_section(self) -> str:
        """List the validation loss beside the baselines."""
        evaluation = self.result("evaluate")
        if not evaluation:
            return ""
        own = {"name": "this model", **evaluation}
        rows = sorted([*evaluation["baselines"], own], key=lambda row: -row["bits_per_byte"])
        lines = []
        for row in rows:
            nats = "" if row["nats_per_token"] is None else f"{row['nats_per_token']:.4f}"
            style = ' class="own"' if row is own else ""
            cells = f'<td>{row["name"]}</td><td class="n">{row["bits_per_byte"]:.4f}</td><td class="n">{nats}</td>'
            lines.append(f"<tr{style}>{cells}</tr>")
        head = '<tr><th>predictor</th><th class="n">bits a byte</th><th class="n">nats a token</th></tr>'
        note = f"<p>On the same {evaluation['val_tokens']:,} tokens of held-out text.</p>"
        return f"<h2>Beside simple predictors</h2>{note}<table>{head}{''.join(lines)}</table>"

    def sample_section(self) -> str:
        """Show what the model writes."""
        texts, stamp = self.result("sample").get("texts", []), self.stamps["sample"]
        if not texts or stamp is None:
            return ""
        quotes = [
            f"<blockquote><b>{escape(text['prompt'])}</b>{escape(text['text'].rstrip())}</blockquote>" for text in texts
        ]
        settings = stamp.settings
        note = f"temperature {settings['temperature']}, top-k {settings['top_k']}, seed {settings['seed']}"
        return f"<h2>Samples</h2><p>Prompts in bold, the rest is the model's: {note}.</p>{''.join(quotes)}"

    def stage_section(self) -> str:
        """List how long each stage took."""
        rows = [(name, duration(stamp.seconds)) for name in STAGES if (stamp := self.stamps[name]) and stamp.seconds]
        total = sum(stamp.seconds for name in STAGES if (stamp := self.stamps[name]))
        return table("Time of the stages", [*rows, ("all", duration(total))]) if rows else ""

    def setting_section(self) -> str:
        """Show the command that trains this model, and the plan."""
        facts = self.result("plan")
        command = escape(facts.get("command", f"python -m gpt2edu.train {self.preset.flags}"))
        plan = f"<pre>{escape(facts['plan'])}</pre>" if "plan" in facts else ""
        return f"<h2>Settings</h2><pre>{command}</pre>{plan}"

    def machine_section(self) -> str:
        """Name the computer and the software."""
        return table("Machine", list(self.result("plan").get("machine", {}).items()))

    def checksum_section(self) -> str:
        """List the SHA-256 of the model and of the shards."""
        trained, prepared = self.result("train"), self.result("data")
        rows = [(Path(trained["model"]).name, trained["sha256"])] if "model" in trained else []
        rows += list(prepared.get("files", {}).items())
        return table("SHA-256", rows, code=True)


def tile(name: str, value: str, note: str) -> str:
    """Return a headline number."""
    return f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(note)}</small></div>'


def figure(title: str, plot: str, caption: str) -> str:
    """Return a section with a plot."""
    return f"<h2>{title}</h2><figure>{plot}<figcaption>{escape(caption)}</figcaption></figure>"


def table(title: str, rows: Sequence[tuple[str, str]], *, code: bool = False) -> str:
    """Return a section with a table of two columns, empty when there are no rows."""
    cells = [(escape(name), f"<code>{escape(value)}</code>" if code else escape(value)) for name, value in rows]
    body = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in cells)
    return f"<h2>{title}</h2><table>{body}</table>" if rows else ""


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def millions(n_tokens: float) -> str:
    """Return a number of tokens in millions or billions."""
    return f"{n_tokens / 1e9:,.2f}B" if n_tokens >= 1e9 else f"{n_tokens / 1e6:,.1f}M"


def escape(text: str) -> str:
    """Return text that HTML shows as it is."""
    return html.escape(text, quote=True)


def write_report(run: RunFolder, preset: Preset) -> Path:
    """Write `report.html` from the run folder's stamps and log; return its path."""
    path = run.path / "report.html"
    page = Report(run, preset).html()
    with atomic_write(path, "w") as file:
        file.write(page)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of a run folder again."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2edu.report",
        description="Write report.html of a reproduction again, finished or under way.",
        epilog="example:\n  python -m gpt2edu.report ~/.cache/gpt2edu/runs/gpt2-124m",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="run folder of gpt2edu.reproduce")
    folder = parser.parse_args(argv).folder
    plan = RunFolder(folder).read("plan") if (folder / "stages").is_dir() else None
    if plan is None:
        raise UsageError(
            f"{folder} is no run folder of gpt2edu.reproduce; the default is runs/<preset> in the data folder"
        )
    print(write_report(RunFolder(folder), PRESETS[plan.settings["preset"]]))
    return 0


if __name__ == "__main__":
    run_main(main)
