"""The bench of several ranks, at toy size through MPI on a CPU, and what is predicted beside it."""

import numpy as np
import pytest

from gpt2edu import bench
from gpt2edu.bench_ranks import add_prediction
from gpt2edu.communication import NVLINK_4
from gpt2edu.config import ModelConfig
from gpt2edu.errors import Gpt2EduError
from gpt2edu.results import load_results
from gpt2edu.shards import write_shard

TOY = "ranks --device cpu -e d2,h2,c32,t32,v256 -b 2 -t 16 -d 64 --engines torch --blocks 1 --block-steps 2 --warmup 0"


def test_ranks_are_started_and_their_rows_kept(tmp_path, capfd):
    write_shard(tmp_path / "text.bin", np.random.default_rng(0).zipf(1.5, 4097) % 256)
    text = f"-i {tmp_path}/text.bin -j {tmp_path}/text.bin -x 6 --text-batch 128 -v 6 --text-engine torch"
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert bench.main([*TOY.split(), *text.split(), "-n", "1", "--output", str(alone)]) == 0
    earlier = ["--earlier", str(alone / "ranks.cpu.json")]
    assert bench.main([*TOY.split(), *text.split(), "-n", "2", *earlier, "--output", str(both)]) == 0
    (found,) = load_results("ranks", both)
    steps = [row for row in found.rows if row["op"] == "step"]
    assert [(row["shape"]["ranks"], row["shape"]["z"]) for row in steps] == [(1, 0), (2, 0), (2, 1)]
    for row in steps[1:]:
        assert row["efficiency"] == pytest.approx(steps[0]["median_ms"] / 2 / row["median_ms"], rel=1e-5)
        assert row["predicted_ms"] > steps[0]["median_ms"] / 2
    sending = {row["variant"]: row for row in found.rows if row["op"] == "sending"}
    assert list(sending)[:2] == ["all-reduce", "reduce-scatter"] and len(sending) == 7
    one, half, two = (row for row in found.rows if row["op"] == "text_run")
    assert (one["shape"]["B"], half["shape"]["B"], two["shape"]["ranks"]) == (8, 4, 2)
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
    assert "2 GPUs from one: 0.0000" in capfd.readouterr().out


@pytest.mark.slow
def test_ranks_that_fail_are_reported(tmp_path):
    with pytest.raises(Gpt2EduError, match="2 ranks failed"):
        bench.main([*TOY.replace("-b 2", "-b 3").split(), "-n", "2", "--output", str(tmp_path)])


def test_predictions_by_hand():
    config = ModelConfig.from_descriptor("d12")
    one = {"op": "step", "variant": "numba", "median_ms": 800.0, "shape": {"ranks": 1, "z": 0}}
    sizes = {"ranks": 2, "z": 1, "T": 1024, "tokens": 524_288}
    two = {"op": "step", "variant": "numba", "median_ms": 410.0, "exposed_ms": 1.0, "shape": sizes}
    sending = [
        {"op": "sending", "variant": name, "median_ms": ms, "shape": {"ranks": 2}}
        for name, ms in (("overlapped", 1.5), ("all-gather, bf16", 0.5), ("all-gather, fp32", 1.0))
    ]
    rows = [one, two, *sending]
    found = add_prediction(two, rows, config, "NVIDIA H100 80GB HBM3")
    assert found["efficiency"] == pytest.approx(800 / 820)
    assert found["exposed_share"] == pytest.approx(0.5)
    rate = 0.8 * NVLINK_4.bytes_per_s
    last_bucket, gather = (11.8e-6 + n * bytes_ / 2 / rate for n, bytes_ in ((39_421_440, 4), (124_475_904, 2)))
    assert found["predicted_ms"] == pytest.approx(400 + 1e3 * (last_bucket + gather), rel=1e-5)
    all_reduce = {"op": "sending", "variant": "all-reduce", "shape": {"ranks": 2}}
    predicted = add_prediction(all_reduce, rows, config, "NVIDIA H100 80GB HBM3")["predicted_ms"]
    assert predicted == pytest.approx(2 * 11.8e-3 + 124_475_904 * 4 / rate * 1e3)
    assert add_prediction(one, rows, config, "cpu") == one
