"""The five stages of a reproduction: data, training, evaluation, samples, report.

Each stage leaves a stamp in the run folder; one that is done with the same settings is not done again, and one that
was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2edu import data
from gpt2edu.baselines import measure_baselines
from gpt2edu.checkpoint import Checkpoint, find_checkpoint
from gpt2edu.cli import parse_settings
from gpt2edu.distributed import SingleProcess
from gpt2edu.errors import Gpt2EduError
from gpt2edu.evaluate import EvaluationModel, hellaswag_accuracy, validation_loss
from gpt2edu.files import sha256_file
from gpt2edu.launcher import launched_world
from gpt2edu.loader import ValLoader
from gpt2edu.machine import find_mpiexec
from gpt2edu.manifest import Manifest, load_manifest, verify
from gpt2edu.model import GPT2
from gpt2edu.plan import Plan, plan_text
from gpt2edu.report import write_report
from gpt2edu.sample import generate, model_on_device
from gpt2edu.shards import read_shard
from gpt2edu.stages import STAGES, RunFolder
from gpt2edu.supervisor import supervise
from gpt2edu.tokenizer import Tokenizer, load_tokenizer
from gpt2edu.torch_engine import choose_device, choose_dtype
from gpt2edu.train import train
from gpt2edu.weights import load_model

BASELINE_TRAIN_TOKENS = 10_000_000  # counting more of a large text changes little
EVALUATION_BATCH = 16  # sequences
SAMPLE_TOKENS = 200  # at most; a small context has room for fewer
SAMPLE_TEMPERATURE, SAMPLE_TOP_K, SAMPLE_SEED = 0.8, 50, 42


class Reproduction:
    """One preset on this machine, in one run folder: the five stages as methods.

    Args:
        plan: what to do.
        run: where the stamps, the training and the report go.
        data_folder: where token shards go.
        restarts: how often a training that broke is started again.
    """

    def __init__(self, plan: Plan, run: RunFolder, data_folder: Path, restarts: int = 0) -> None:
        self.plan, self.preset, self.run, self.restarts = plan, plan.preset, run, restarts
        self.shards = data_folder / self.preset.text.folder
        self.hellaswag_path = data_folder / "hellaswag" / "hellaswag_val.bin"

    # ---- data

    def data_command(self) -> list[str]:
        """Return the arguments of `gpt2edu.data` that make the preset's shards."""
        command = [*self.preset.text.command, "--out", str(self.shards)]
        return command if self.preset.text.own_vocabulary else [*command, "--shards", str(self.preset.train_shards)]

    def data_is_ready(self) -> bool:
        """Say whether enough shards are there, by their manifest; `verify` checks the bytes later."""
        manifest = load_manifest(self.shards)
        return bool(manifest and manifest.complete and manifest.n_shards("train") >= self.preset.train_shards)

    def prepare_data(self) -> None:
        """Make or download the shards, and HellaSwag where the preset evaluates it."""
        settings = {"command": self.data_command()}
        if not (self.data_is_ready() and self.run.is_done("data", settings)):
            with self.run.working_on("data", settings) as stamp:
                if not self.data_is_ready():
                    announce("data", f"python -m gpt2edu.data {' '.join(self.data_command())}")
                    data.main(self.data_command())
                manifest = self.manifest()
                stamp.result = {
                    "source": manifest.source,
                    "tokenizer": manifest.tokenizer,
                    "vocab_size": manifest.vocab_size,
                    "train_tokens": manifest.tokens("train"),
                    "val_tokens": manifest.tokens("val"),
                    "files": {name: entry["sha256"] for name, entry in manifest.files.items()},
                }
        else:
            announce("data", f"done already: {self.manifest().tokens():,} tokens in {self.shards}")
        if self.preset.settings.hellaswag and not self.hellaswag_path.exists():
            try:
                data.main(["hellaswag", "--out", str(self.hellaswag_path.parent)])
            except Gpt2EduError as problem:
                print(f"HellaSwag is left out: {problem}", flush=True)

    def manifest(self) -> Manifest:
        """Return the manifest of the shards, verified."""
        manifest = verify(self.shards)
        if manifest is None:
            raise Gpt2EduError(f"{self.shards} has no manifest; delete the folder and run the same command again")
        return manifest

    def tokenizer(self) -> Tokenizer:
        """Return the vocabulary of the shards."""
        name = self.manifest().tokenizer
        return load_tokenizer("gpt2" if name == "gpt2" else self.shards / name)

    # ---- training

    def record_plan(self) -> None:
        """Keep what was planned, and on which computer, for the report."""
        with self.run.working_on("plan", {"preset": self.preset.name}) as stamp:
            stamp.attempts = stamp.attempts[-1:]
            stamp.result = {
                "plan": plan_text(self.plan),
                "command": f"python -m gpt2edu.train {' '.join(self.train_command())}",
                "dollars_per_hour": self.plan.dollars_per_hour,
                "n_gpus": self.plan.n_gpus,
                "gpu": self.plan.machine.gpus[0].name if self.plan.n_gpus else None,
                "machine": machine_facts(self.plan),
            }

    def train_settings(self) -> dict[str, Any]:
        """Return what decides the outcome of training; the number of GPUs and the micro-batch do not."""
        checksums = {name: entry["sha256"] for name, entry in self.manifest().files.items()}
        return {"flags": self.preset.flags, "shards": checksums}

    def train_command(self) -> list[str]:
        """Return the arguments of `gpt2edu.train` for this machine, without -y and --overwrite."""
        manifest = self.manifest()
        files = ["-i", manifest.pattern(self.shards, "train"), "-j", manifest.pattern(self.shards, "val")]
        files += ["-o", str(self.run.train_folder)]
        if self.preset.settings.hellaswag and self.hellaswag_path.exists():
            files += ["--hellaswag", str(self.hellaswag_path)]
        return [*files, *self.plan.train_flags]

    def final_checkpoint(self) -> Checkpoint:
        """Return the checkpoint of the last step."""
        return Checkpoint(self.run.train_folder, self.preset.settings.max_steps)

    def training_is_done(self) -> bool:
        """Say whether the last checkpoint is there and was made with these settings."""
        return self.final_checkpoint().done_path.exists() and self.run.is_done("train", self.train_settings())

    def start_arguments(self) -> list[str]:
        """Return -y 1 to go on with this run (or begin it), --overwrite when the folder holds another one."""
        stamp = self.run.read("train")
        same = stamp is None or stamp.settings == self.train_settings()
        return ["-y", "1"] if same else ["--overwrite"]

    def train(self, command: list[str]) -> int:
        """Train in this process, or in processes of its own; return 128 + signal when it was stopped early.

        Args:
            command: `train_command` and `start_arguments`.
        """
        announce("train", f"python -m gpt2edu.train {' '.join(command)}")
        with self.run.working_on("train", self.train_settings()) as stamp:
            newest = find_checkpoint(self.run.train_folder) if "--overwrite" not in command else None
            stamp.attempts[-1]["first_step"] = newest.step if newest else 0
            code = self.train_processes(command) if self.starts_processes() else train_here(command)
            stamp.done = code == 0
            if stamp.done:
                model_path = self.final_checkpoint().model_path
                stamp.result = {"model": str(model_path), "sha256": sha256_file(model_path)}
        return code

    def starts_processes(self) -> bool:
        """Say whether training runs in other processes: one for each GPU, where nobody has started them.

        A process that may die and start again is another one too.
        """
        return launched_world()[1] == 1 and (self.plan.world_size > 1 or self.restarts > 0)

    def train_processes(self, command: list[str]) -> int:
        """Start one training process a GPU with MPI, pass SIGTERM and Ctrl-C on to them, return 128 + signal then.

        Raises:
            Gpt2EduError: they broke, more often than `restarts`.
        """
        ranks = [find_mpiexec(), "-n", str(self.plan.world_size)] if self.plan.world_size > 1 else []
        ended = supervise([*ranks, sys.executable, "-m", "gpt2edu.train"], command, self.restarts)
        if ended.stopped_by:
            return 128 + ended.stopped_by
        if ended.code:
            raise Gpt2EduError(
                f"{ended.what}, the lines above say why; after mending run the same command again, which goes on from "
                "the last complete checkpoint"
            )
        return 0

    # ---- after training

    def evaluate(self) -> None:
        """Measure validation loss and HellaSwag of the final model, and the baselines on the same text."""
        model_path = self.final_checkpoint().model_path
        with_hellaswag = bool(self.preset.settings.hellaswag) and self.hellaswag_path.exists()
        settings = {"model": self.model_sha256(), "hellaswag": with_hellaswag}
        if self.run.is_done("evaluate", settings):
            announce("evaluate", "done already")
            return
        announce("evaluate", str(model_path))
        with self.run.working_on("evaluate", settings) as stamp, SingleProcess() as alone:
            device = choose_device(self.plan.device)
            model = EvaluationModel(*load_model(model_path), device, choose_dtype(None, device)[0])
            tokenizer, manifest = self.tokenizer(), self.manifest()
            seq_len, pattern = self.preset.settings.seq_len, manifest.pattern(self.shards, "val")
            loader = ValLoader(pattern, seq_len, n_tokens=None, rank=0, world_size=1, vocab_size=manifest.vocab_size)
            nats, bits = validation_loss(model, loader, EVALUATION_BATCH, alone, tokenizer.token_byte_lengths)
            stamp.result = {"nats_per_token": nats, "bits_per_byte": bits, "val_tokens": loader.n_tokens}
            if with_hellaswag:
                correct, total = hellaswag_accuracy(model, self.hellaswag_path, EVALUATION_BATCH, seq_len, alone)
                stamp.result["hellaswag"] = {"correct": correct, "total": total}
            stamp.result["baselines"] = self.baselines(loader.n_tokens)

    def baselines(self, n_val_tokens: int) -> list[dict[str, Any]]:
        """Return the rows of unigram, bigram and gzip on the text that validation reads."""
        tokenizer, manifest = self.tokenizer(), self.manifest()
        train_N = first_tokens(manifest.pattern(self.shards, "train"), BASELINE_TRAIN_TOKENS)
        val_M = first_tokens(manifest.pattern(self.shards, "val"), n_val_tokens + 1)
        text = tokenizer.decode_bytes(val_M[val_M != tokenizer.eot].tolist())
        rows = measure_baselines(train_N, val_M, tokenizer.token_byte_lengths, text)
        return [dataclasses.asdict(row) for row in rows]

    def sample(self) -> None:
        """Let the final model continue the preset's prompts."""
        settings = {"model": self.model_sha256(), "prompts": self.preset.prompts, "tokens": SAMPLE_TOKENS}
        settings |= {"temperature": SAMPLE_TEMPERATURE, "top_k": SAMPLE_TOP_K, "seed": SAMPLE_SEED}
        if self.run.is_done("sample", settings):
            announce("sample", "done already")
            return
        announce("sample", f"temperature {SAMPLE_TEMPERATURE}, top-k {SAMPLE_TOP_K}, seed {SAMPLE_SEED}")
        with self.run.working_on("sample", settings) as stamp:
            config, flat = load_model(self.final_checkpoint().model_path)
            model, tokenizer = model_on_device(config, flat, self.plan.device), self.tokenizer()
            stamp.result["texts"] = [
                {"prompt": prompt, "text": continue_text(model, tokenizer, prompt, SAMPLE_SEED + number)}
                for number, prompt in enumerate(self.preset.prompts)
            ]

    def report(self) -> None:
        """Write report.html; that takes a second, so it is always done again."""
        with self.run.working_on("report", {"preset": self.preset.name}) as stamp:
            stamp.attempts = stamp.attempts[-1:]
            path = write_report(self.run, self.preset)
        announce("report", str(path))

    def model_sha256(self) -> str:
        """Return the checksum of the trained model, as its stamp has it."""
        stamp = self.run.read("train")
        return stamp.result["sha256"] if stamp else ""

    def print_results(self) -> None:
        """Print the samples, and the validation loss beside the baselines."""
        samples, evaluation = self.run.read("sample"), self.run.read("evaluate")
        for text in samples.result["texts"] if samples else []:
            print(f"\n--- {text['prompt'] or '(from nothing)'}\n{text['prompt']}{text['text']}")
        result = evaluation.result if evaluation else {}
        print(f"\n{'held-out text':16}{'bits a byte':>12}{'nats a token':>14}")
        for row in sorted(result["baselines"], key=lambda row: -row["bits_per_byte"]):
            nats = "" if row["nats_per_token"] is None else f"{row['nats_per_token']:.4f}"
            print(f"{row['name']:16}{row['bits_per_byte']:>12.4f}{nats:>14}")
        print(f"{'this model':16}{result['bits_per_byte']:>12.4f}{result['nats_per_token']:>14.4f}")
        if "hellaswag" in result:
            correct, total = result["hellaswag"]["correct"], result["hellaswag"]["total"]
            print(f"HellaSwag: {correct}/{total} = {correct / total:.4f}")


def train_here(command: list[str]) -> int:
    """Train in this process (one rank of several, where MPI started them)."""
    result = train(parse_settings(command))
    return 128 + result.stopped_by if result.stopped_by else 0


def continue_text(model: GPT2, tokenizer: Tokenizer, prompt: str, seed: int) -> str:
    """Return what the model writes behind the prompt, up to its <|endoftext|> or the end of its context."""
    ids = [tokenizer.eot, *tokenizer.encode(prompt)]
    n_tokens = min(SAMPLE_TOKENS, model.config.max_seq_len - len(ids))
    tokens = generate(model, ids, n_tokens, temperature=SAMPLE_TEMPERATURE, top_k=SAMPLE_TOP_K, seed=seed)
    return tokenizer.decode(itertools.takewhile(lambda token: token != tokenizer.eot, tokens))


def first_tokens(pattern: str, n: int) -> np.ndarray:
    """Return the first `n` tokens of the shards that a glob names, (at most n,) uint16."""
    parts: list[np.ndarray] = []
    for path in sorted(glob.glob(pattern)):
        parts.append(read_shard(path)[: n - sum(map(len, parts))])
        if sum(map(len, parts)) == n:
            break
    return np.concatenate(parts)


def machine_facts(plan: Plan) -> dict[str, str]:
    """Return what the report says about the computer."""
    machine = plan.machine
    return {
        "computer": machine.title,
        "processor": f"{machine.n_cores} cores of {machine.cpu_name}, {machine.memory_bytes / 1e9:.0f} GB",
        "driver": machine.driver or "none",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}",
    }


def announce(stage: str, text: str) -> None:
    """Print a stage's headline."""
    print(f"\n[{STAGES.index(stage) + 1}/{len(STAGES)} {stage}] {text}", flush=True)
