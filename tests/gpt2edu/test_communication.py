"""The communication model against sums by hand and against a ring that is played through."""

import dataclasses

import numpy as np
import pytest

from gpt2edu.communication import (
    ETHERNET,
    INFINIBAND,
    NVLINK_4,
    Cluster,
    Link,
    Prediction,
    predict,
    ring_seconds,
    scaling_table,
    step_traffic,
)
from gpt2edu.config import ModelConfig

GPT2 = ModelConfig.from_descriptor("d12")
HGX = Cluster(NVLINK_4, INFINIBAND)


def test_bytes_of_gpt2_on_8_gpus():
    plain, zero1 = step_traffic(GPT2, 8, 0), step_traffic(GPT2, 8, 1)
    assert plain.reduce_bytes == zero1.reduce_bytes == 124_475_904 * 4 * 7 / 8  # 436 MB
    assert plain.gather_bytes == plain.reduce_bytes
    assert zero1.gather_bytes == 124_475_904 * 2 * 7 / 8  # bf16 weights
    assert step_traffic(GPT2, 8, 1, weight_bytes=4) == plain
    assert plain.last_bucket_bytes == (50_304 * 768 + 1024 * 768 + 2 * 768) * 4 * 7 / 8  # 138 MB
    assert plain.n_buckets == 13
    assert set(dataclasses.astuple(step_traffic(GPT2, 1, 0))) == {0}


def play_ring(n_ranks, size):
    """Add up the buffers of `n_ranks` on a ring; return the results, the rounds, and the bytes that a rank sent."""
    generator = np.random.default_rng(n_ranks)
    buffers = generator.integers(0, 100, (n_ranks, n_ranks, size // n_ranks)).astype(np.float32)
    total, sent = buffers.sum(axis=0), np.zeros(n_ranks)
    for n_round in range(n_ranks - 1):
        moving = [(rank, (rank - n_round) % n_ranks) for rank in range(n_ranks)]
        parts = [buffers[rank, part].copy() for rank, part in moving]
        for (rank, part), values in zip(moving, parts, strict=True):
            buffers[(rank + 1) % n_ranks, part] += values
            sent[rank] += values.nbytes
    for rank in range(n_ranks):  # each has the whole sum of one part
        assert np.array_equal(buffers[rank, (rank + 1) % n_ranks], total[(rank + 1) % n_ranks])
    return n_ranks - 1, sent


@pytest.mark.parametrize("n_ranks", [2, 3, 8])
def test_a_ring_sends_what_the_model_says(n_ranks):
    size = 24 * 7
    rounds, sent = play_ring(n_ranks, size)
    assert (sent == 4 * size * (n_ranks - 1) / n_ranks).all()
    only_latency = Cluster(Link("slow", 1e30, 1.0), INFINIBAND)
    assert only_latency.ring_latency_s(n_ranks) == rounds


def test_times_by_hand():
    # 1 GB in one message: 8.4 us + 7 x 3.4 us + 1e9 / (0.8 x 450e9) s
    assert ring_seconds(1e9, 1, 8, HGX) == pytest.approx(32.2e-6 + 2.7777778e-3)
    # two machines: 14 rounds inside, one across, and the network's 400 GB/s; by Ethernet 12.5
    assert ring_seconds(1e9, 1, 16, HGX) == pytest.approx(8.4e-6 + 14 * 3.4e-6 + 14e-6 + 3.125e-3)
    assert ring_seconds(1e9, 1, 16, Cluster(NVLINK_4, ETHERNET)) == pytest.approx(70e-6 + 0.1)
    assert ring_seconds(0, 0, 1, HGX) == 0


def test_a_step_by_hand():
    step = predict(GPT2, 1024, 524_288, 400e12, 8, HGX)
    assert step.compute_s == pytest.approx(524_288 * (6 * 124_475_904 + 6 * 12 * 768 * 1024) / 3.2e15)  # 132 ms
    assert step.backward_s == pytest.approx(step.compute_s * 2 / 3)  # one micro-step
    assert step.reduce_s == pytest.approx(13 * 32.2e-6 + 435_665_664 / 360e9)  # 1.6 ms
    assert step.last_bucket_s == pytest.approx(32.2e-6 + 137_978_624 / 360e9, rel=1e-3)  # 0.4 ms
    assert step.gather_s == pytest.approx(32.2e-6 + 217_832_832 / 360e9)  # 0.6 ms
    assert step.exposed_s == pytest.approx(step.last_bucket_s + step.gather_s)
    assert step.efficiency == pytest.approx(0.992, abs=0.001)
    assert predict(GPT2, 1024, 524_288, 400e12, 2, HGX).backward_s == pytest.approx(step.compute_s * 2 / 3)  # of four
    assert predict(GPT2, 1024, 524_288, 400e12, 1024, HGX).compute_s == predict(GPT2, 1024, 0, 400e12, 1, HGX).compute_s
    assert predict(GPT2, 1024, 0, 1e12, 1, HGX).efficiency == 1


def test_what_is_hidden_behind_backward():
    hidden = Prediction(8, compute_s=0.3, backward_s=0.2, reduce_s=0.1, last_bucket_s=0.02, gather_s=0.1)
    assert hidden.exposed_s == pytest.approx(0.12)
    assert hidden.efficiency_after_backward == pytest.approx(0.6)
    assert hidden.efficiency == pytest.approx(0.3 / 0.42)
    slow = dataclasses.replace(hidden, reduce_s=0.5)
    assert slow.efficiency == pytest.approx(0.3 / 0.7)  # 0.3 of the 0.5 do not fit behind backward


def test_more_gpus_are_used_less_well():
    for cluster in (HGX, Cluster(NVLINK_4, ETHERNET)):
        steps = [predict(GPT2, 1024, 524_288, 400e12, n, cluster) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)]
        shares = [step.efficiency for step in steps]
        assert shares[0] == 1 and shares == sorted(shares, reverse=True)
    lines = scaling_table(GPT2, 1024, 524_288, 400e12, "H100")
    assert [int(line.split()[0]) for line in lines[3:14]] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert "joined by NVLink 4" in lines[0]
    assert "joined by PCIe" in scaling_table(GPT2, 1024, 524_288, 50e12, "T4")[0]
    assert all(len(line) <= 120 for line in lines)
    assert "653" in lines[6] and "99 %" in lines[6]  # 8 GPUs: 654 MB
