"""SIGTERM to mpiexec: all ranks finish the same step, and write one checkpoint that one rank can go on from."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from gpt2edu.checkpoint import find_checkpoint, load_checkpoint
from gpt2edu.shards import write_shard


def test_two_ranks_stop_together(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 120, size=4_000)
    write_shard(tmp_path / "toy_train_000001.bin", tokens)
    write_shard(tmp_path / "toy_val_000000.bin", tokens[:600])
    flags = f"-i {tmp_path}/toy_train_*.bin -j {tmp_path}/toy_val_*.bin -e d1,h2,c32,t16,v120 -t 16 -b 4 -d 128"
    flags += f" -x 100000 -v 0 -s 0 -z 1 -o {tmp_path}/run --device cpu"
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    process = subprocess.Popen(
        [mpiexec, "-n", "2", sys.executable, "-m", "gpt2edu.train", *flags.split()],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GPT2EDU_DATA": str(tmp_path / "data")},
    )
    try:
        for line in process.stdout:
            if line.startswith("step    3/"):
                break
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    stopped = re.search(r"stopped by SIGTERM after step (\d+); go on with the same command and -y 1", rest)
    checkpoint = find_checkpoint(tmp_path / "run")
    assert checkpoint.step == int(stopped[1])
    restored = load_checkpoint(checkpoint)
    assert restored.saved_ranks == 2
    assert restored.state_arrays["m"].numel() == restored.flat_parameters.numel()
