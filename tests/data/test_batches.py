"""Seeds, orders and batches: functions of numbers alone."""

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.batches import (
    TrainBatches,
    balanced_order,
    epoch_order,
    sample_seed,
    validation_batches,
)

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(0, 1000), st.integers(0, 10**7))
def test_a_sample_seed_is_a_function_of_all_three(seed, epoch, index):
    value = sample_seed(seed, epoch, index)
    assert value == sample_seed(seed, epoch, index)
    assert 0 <= value < 2**64
    others = {
        sample_seed(seed + 1, epoch, index),
        sample_seed(seed, epoch + 1, index),
        sample_seed(seed, epoch, index + 1),
    }
    assert len(others | {value}) == 4


def test_sample_seeds_are_the_same_on_every_machine():
    assert sample_seed(0, 0, 0) == 9617123944752223253
    assert sample_seed(1, 23, 456) == 1147992687511599121


@given(st.integers(1, 300), seeds, st.integers(0, 50))
def test_an_order_is_a_permutation_by_seed_and_epoch(count, seed, epoch):
    order = epoch_order(count, seed=seed, epoch=epoch)
    assert sorted(order) == list(range(count))
    assert order == epoch_order(count, seed=seed, epoch=epoch)
    if count >= 20:
        assert order != epoch_order(count, seed=seed, epoch=epoch + 1)
        assert order != epoch_order(count, seed=seed + 1, epoch=epoch)


def batches_of(count, size, *, seed, epoch, rank=0, world_size=1):
    def order(epoch):
        return epoch_order(count, seed=seed, epoch=epoch)

    batches = TrainBatches(count, size, order=order, rank=rank, world_size=world_size)
    batches.set_epoch(epoch)
    listed = list(batches)
    assert len(listed) == len(batches)
    return listed


@given(st.data(), st.integers(1, 5), st.integers(1, 6), seeds, st.integers(0, 9))
def test_the_batches_of_all_ranks_joined_are_those_of_one_process(
    data, world_size, share, seed, epoch
):
    size = world_size * share
    count = data.draw(st.integers(size, 10 * size))
    alone = batches_of(count, size, seed=seed, epoch=epoch)
    ranks = [
        batches_of(count, size, seed=seed, epoch=epoch, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    joined = [list(chain(*parts)) for parts in zip(*ranks, strict=True)]
    assert joined == alone
    assert all(len(batch) == size for batch in alone)
    keys = [key for batch in alone for key in batch]
    assert len(set(keys)) == len(keys) == count // size * size
    assert all(shown_in == epoch and 0 <= index < count for shown_in, index in keys)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), seeds, st.integers(0, 9))
def test_a_balanced_epoch_shows_each_class_equally_often(class_of, seed, epoch):
    draws = balanced_order(class_of, seed=seed, epoch=epoch)
    count = len(class_of)
    assert len(draws) == len(set(draws)) == count
    assert draws == balanced_order(class_of, seed=seed, epoch=epoch)
    shown = Counter(class_of[draw % count] for draw in draws)
    shares = [shown[name] for name in set(class_of)]
    assert max(shares) - min(shares) <= 1
    turns = Counter(draw % count for draw in draws)
    for name in set(class_of):
        of_class = [turns[index] for index in range(count) if class_of[index] == name]
        assert max(of_class) - min(of_class) <= 1


@given(st.integers(1, 4), st.integers(1, 4), seeds)
def test_balanced_ranks_joined_are_one_process(world_size, share, seed):
    class_of = [0] * 20 + [1] * 3
    size = world_size * share

    def batches_for(rank, world_size):
        batches = TrainBatches(
            len(class_of),
            size,
            order=lambda epoch: balanced_order(class_of, seed=seed, epoch=epoch),
            rank=rank,
            world_size=world_size,
        )
        return list(batches)

    ranks = [batches_for(rank, world_size) for rank in range(world_size)]
    joined = [list(chain(*parts)) for parts in zip(*ranks, strict=True)]
    assert joined == batches_for(0, 1)


def test_the_images_left_over_differ_from_epoch_to_epoch():
    left_over = {
        frozenset(range(10)).difference(i for b in batches_of(10, 4, seed=0, epoch=e) for _, i in b)
        for e in range(8)
    }
    assert len(left_over) > 4


def test_a_class_repeats_an_image_with_a_draw_of_its_own():
    """Three images of one class fill half of ten places: two rounds, the second numbered anew."""
    class_of = [0] * 7 + [1] * 3
    draws = balanced_order(class_of, seed=0, epoch=0)
    rare = sorted(draw for draw in draws if class_of[draw % 10] == 1)
    assert len(rare) == 5
    assert rare[:3] == [7, 8, 9]
    assert {draw - 10 for draw in rare[3:]} < {7, 8, 9}
    assert draws != balanced_order(class_of, seed=0, epoch=1)
    assert draws != balanced_order(class_of, seed=1, epoch=0)


@pytest.mark.parametrize(("count", "batches"), [(4, 1), (7, 1), (8, 2)])
def test_only_whole_batches_are_shown(count, batches):
    listed = batches_of(count, 4, seed=0, epoch=0)
    assert [len(batch) for batch in listed] == [4] * batches


def test_lightning_sets_the_epoch_of_the_sampler_within():
    batches = TrainBatches(4, 2, order=lambda epoch: [epoch] * 4, rank=0, world_size=1)
    batches.sampler.set_epoch(3)
    assert list(batches) == [[(3, 3), (3, 3)]] * 2


@given(num_samples=st.integers(0, 300), size=st.integers(1, 40), world_size=st.integers(1, 8))
def test_validation_shows_each_image_once_in_as_many_batches_to_each_process(
    num_samples, size, world_size
):
    shares = [
        validation_batches(num_samples, size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shown = sorted(chain.from_iterable(batch for share in shares for batch in share))
    assert shown == list(range(num_samples))
    most = size if world_size == 1 else max(2, size)
    assert all(0 < len(batch) <= most for share in shares for batch in share)
    if num_samples >= world_size:
        assert len({len(share) for share in shares}) == 1
