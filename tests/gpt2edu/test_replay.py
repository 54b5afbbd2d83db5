"""Uploads and replays, in the simulator and on a GPU."""

import numpy as np
import pytest
import torch

import kernels
from gpt2edu.replay import Replay, Uploader
from kernels.launch import Prepared
from kernels.memory import cast

DEVICE = torch.device("cpu" if kernels.SIMULATED else "cuda")
pytestmark = [] if kernels.SIMULATED else pytest.mark.gpu


def test_launches_are_repeated_in_order():
    source, between, target = (torch.zeros(40, device=DEVICE) for _ in range(3))
    stream = None if kernels.SIMULATED else torch.cuda.Stream()
    pointer = stream.cuda_stream if stream else 0
    first, second = cast.prepare(between, source, stream=pointer), cast.prepare(target, between, stream=pointer)
    replay = Replay(Prepared([*first, *second]), stream)
    for value in range(1, 5):  # one by one, captured, and twice out of the graph
        source.fill_(value)
        replay()
        assert target.tolist() == 40 * [value]


def test_uploads_of_any_shape_and_type():
    upload = Uploader(DEVICE)
    generator = np.random.default_rng(0)
    for rows in (2, 5, 3, 1):
        a, b = generator.integers(0, 50257, (2, rows, 7))
        flat = generator.integers(0, 50257, rows * 7 + 1, dtype=np.int32)
        targets = [torch.zeros(x.shape, dtype=torch.int32, device=DEVICE) for x in (a, b, flat)]
        upload(*zip(targets, (a[:, ::-1], b, flat), strict=True))
        for target, values in zip(targets, (a[:, ::-1], b, flat), strict=True):
            assert np.array_equal(target.cpu().numpy(), values)
