"""The flat buffer holds llm.c's 16 tensors in its order, and its shards cut every tensor evenly."""

import dataclasses

import numpy as np
import pytest

from gpt2edu.config import ModelConfig
from gpt2edu.errors import UsageError
from gpt2edu.parameters import n_parameters, parameter_layout, shards_of_rank

NAMES = "wte wpe ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb lnfw lnfb".split()
SMALL = ModelConfig.from_descriptor("d2,h2,c8,t6,v11")


def test_gpt2_124m_is_counted():
    config = ModelConfig()
    assert n_parameters(config) == 124_475_904
    assert n_parameters(dataclasses.replace(config, padded_vocab_size=config.vocab_size)) == 124_439_808


def test_the_16_tensors_follow_one_another_without_a_gap():
    layout = parameter_layout(SMALL)
    assert [tensor.name for tensor in layout] == NAMES
    assert [tensor.shape for tensor in layout[:6]] == [(128, 8), (6, 8), (2, 8), (2, 8), (2, 24, 8), (2, 24)]
    assert [tensor.shape for tensor in layout[6:14:2]] == [(2, 8, 8), (2, 8), (2, 32, 8), (2, 8, 32)]
    end = 0
    for tensor in layout:
        assert tensor.offset == end
        assert tensor.n_slices * tensor.slice_size == tensor.size
        end += tensor.size
    assert end == n_parameters(SMALL)


def test_a_view_is_the_tensor_s_own_memory():
    flat = np.arange(n_parameters(SMALL))
    for tensor in parameter_layout(SMALL):
        view = tensor.view(flat)
        assert view.shape == tensor.shape
        assert view.ravel()[0] == tensor.offset
        assert np.shares_memory(view, flat)


def test_matrices_are_decayed_and_nothing_else():
    decayed = {tensor.name for tensor in parameter_layout(SMALL) if tensor.decayed}
    assert decayed == {"wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw"}


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_shards_cover_the_buffer_once_in_equal_shares(world_size):
    covered = np.zeros(n_parameters(SMALL), dtype=int)
    for rank in range(world_size):
        state_offset = 0
        for shard in shards_of_rank(SMALL, rank, world_size):
            covered[shard.offset : shard.offset + shard.size] += 1
            assert shard.state_offset == state_offset
            assert shard.size * world_size == shard.tensor.slice_size
            layer, within = divmod(shard.offset - shard.tensor.offset, shard.tensor.slice_size)
            assert within == rank * shard.size
            assert layer < shard.tensor.n_slices
            state_offset += shard.size
        assert state_offset == n_parameters(SMALL) // world_size
    assert (covered == 1).all()


def test_ranks_that_cannot_share_evenly_are_refused():
    with pytest.raises(UsageError, match="5 ranks cannot share the 48 elements of wpe evenly"):
        list(shards_of_rank(dataclasses.replace(SMALL, padded_vocab_size=130), 0, 5))
