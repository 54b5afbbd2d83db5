"""What a timing is made of; on a GPU also that a burst is captured and what happens when it cannot be."""

import pytest
import torch

from gpt2edu import bench_timing
from gpt2edu.bench_timing import Plan, Timing, n_rotating, time_calls, time_interleaved

CPU = torch.device("cpu")


def test_time_interleaved_takes_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = time_interleaved(functions, n_blocks=2, block_steps=2, warmup=1, sync=lambda: None)
    assert "".join(calls) == "ab" + 2 * ("aaa" + "bbb")
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}


def test_calls_take_turns_in_a_shuffled_order_that_the_seed_repeats():
    def order(seed):
        calls = []
        functions = {name: [lambda name=name: calls.append(name)] for name in "abc"}
        timings = time_calls(functions, CPU, Plan(n_bursts=4, seed=seed))
        assert {name: len(timing.bursts_ms) for name, timing in timings.items()} == dict.fromkeys("abc", 4)
        turns = ["".join(calls[i : i + 3]) for i in range(0, 12, 3)]
        assert all(sorted(turn) == list("abc") for turn in turns)
        return turns

    assert order(0) == order(0)
    assert len(set(order(0))) > 1


def test_a_burst_goes_through_all_sets_and_returns_the_time_of_one_call(monkeypatch):
    clock = iter([10.0, 10.006])
    monkeypatch.setattr(bench_timing.time, "perf_counter", lambda: next(clock))
    calls = []
    burst = bench_timing.CpuBurst([lambda: calls.append(0), lambda: calls.append(1)])
    assert burst.run(repeats=3) == pytest.approx(1.0)
    assert calls == [0, 1, 0, 1, 0, 1]


def test_the_median_is_over_the_bursts():
    assert Timing([3.0, 1.0, 9.0]).median_ms == 3.0


def test_buffers_rotate_until_they_are_four_times_the_cache(monkeypatch):
    properties = type("Properties", (), {"L2_cache_size": 50 * 2**20})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    cuda = torch.device("cuda")
    assert [n_rotating(size, cuda) for size in (2**30, 200 * 2**20, 100 * 2**20, 60 * 2**20)] == [1, 1, 2, 4]
    assert n_rotating(1, CPU) == 1


@pytest.mark.gpu
def test_a_burst_is_captured_and_one_that_cannot_be_is_launched():
    device = torch.device("cuda")
    with torch.cuda.stream(torch.cuda.Stream(device)):
        x = torch.zeros(2**20, device=device)
        functions = {"captured": [lambda: x.add_(1)], "waits": [lambda: x.add_(1).sum().item()]}
        timings = time_calls(functions, device, Plan(n_bursts=2, sustained_s=0.01), frozenset({"captured"}))
    assert (timings["captured"].captured, timings["waits"].captured) == (True, False)
    assert timings["captured"].sustained_ms > 0 and timings["waits"].sustained_ms is None
