"""The sampler's promises, for any size, seed, number of ranks and place of a stop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gankern.data.sampler import EndlessSampler
from gankern.errors import InputError

FROZEN = [[1, 6, 0, 3, 7, 4, 2, 5], [3, 2, 4, 0, 7, 1, 5, 6], [1, 7, 6, 3, 4, 2, 0, 5]]

sizes, seeds, worlds, batches = st.integers(1, 60), st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 9)


@given(sizes, seeds)
def test_every_item_once_an_epoch(size, seed):
    drawn = EndlessSampler(size, seed=seed).take(3 * size).reshape(3, size)
    assert (np.sort(drawn) == np.arange(size)).all()


@given(sizes, seeds, worlds, batches)
def test_ranks_share_one_sequence(size, seed, world_size, batch):
    whole = EndlessSampler(size, seed=seed).take(3 * batch * world_size)
    for rank in range(world_size):
        sampler = EndlessSampler(size, seed=seed, rank=rank, world_size=world_size)
        part = np.concatenate([sampler.take(batch) for _ in range(3)])
        assert np.array_equal(part, whole[rank::world_size])


@given(sizes, seeds, worlds, worlds, st.lists(batches, max_size=4), batches)
def test_resume_anywhere_under_another_world_size(size, seed, before, after, steps, batch):
    first = EndlessSampler(size, seed=seed, rank=before - 1, world_size=before)
    for step in steps:
        first.take(step)
    consumed = before * sum(steps)
    assert first.state_dict()["position"] == consumed
    whole = EndlessSampler(size, seed=seed).take(consumed + batch * after)
    resumed = EndlessSampler(size, seed=seed, rank=after - 1, world_size=after)
    resumed.load_state_dict(first.state_dict())
    assert np.array_equal(resumed.take(batch), whole[consumed + after - 1 :: after])


def test_order_differs_by_epoch_and_seed_and_is_frozen():
    sampler = EndlessSampler(8, seed=1)
    epochs = [sampler.take(8).tolist(), sampler.take(8).tolist(), EndlessSampler(8, seed=2).take(8).tolist()]
    assert epochs == FROZEN  # a change here breaks the resume of every older run


def test_state_of_other_data_is_refused():
    state = EndlessSampler(8, seed=1).state_dict()
    with pytest.raises(InputError, match="size is 8, not 9"):
        EndlessSampler(9, seed=1).load_state_dict(state)
    with pytest.raises(InputError, match="seed is 1, not 2"):
        EndlessSampler(8, seed=2).load_state_dict(state)
