import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.training.mixing import create_mix, cutmix, draw_box, mixup

# A time limit per example fails on a busy machine.
relaxed = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**32 - 1)


def coloured(count, height=8, width=8):
    """Images of one number each, its place in the batch, and targets that say the same."""
    places = torch.arange(count, dtype=torch.float32)
    return places.view(-1, 1, 1, 1).expand(count, 3, height, width).clone(), torch.eye(count)


def mix_of(mixup_alpha, cutmix_alpha, num_classes):
    mix = create_mix(mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, num_classes=num_classes)
    assert mix is not None
    return mix


def test_without_either_there_is_nothing_to_call():
    assert create_mix(mixup_alpha=0, cutmix_alpha=0, num_classes=3) is None


@given(st.integers(1, 6), st.floats(0, 1))
def test_mixup_blends_labels_as_it_blends_pixels(count, share):
    images, targets = coloured(count)
    mixed, shares = mixup(images, targets, share)
    places = torch.arange(count, dtype=torch.float32)
    expected = (shares * places).sum(1).view(-1, 1, 1, 1).expand_as(mixed)
    assert torch.allclose(mixed, expected, atol=1e-5)
    assert torch.allclose(shares.sum(1), torch.ones(count))
    if count > 1:
        assert torch.allclose(shares.diagonal(), torch.full((count,), share), atol=1e-6)


@relaxed
@given(st.integers(2, 6), st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), seeds)
def test_cutmix_shares_labels_as_it_shares_pixels(count, height, width, share, seed):
    images, targets = coloured(count, height, width)
    box = draw_box(height, width, share, np.random.default_rng(seed))
    mixed, shares = cutmix(images, targets, box)
    for index in range(count):
        for place in range(count):
            seen = (mixed[index] == place).float().mean().item()
            assert shares[index, place].item() == pytest.approx(seen, abs=1e-6)
    assert torch.equal(images, coloured(count, height, width)[0])  # the batch itself stays


@given(st.integers(2, 300), st.integers(2, 300), st.floats(0, 1), seeds)
def test_a_box_lies_in_the_image_and_is_not_too_large(height, width, share, seed):
    top, bottom, left, right = draw_box(height, width, share, np.random.default_rng(seed))
    assert 0 <= top <= bottom <= height
    assert 0 <= left <= right <= width
    assert (bottom - top) * (right - left) <= (1 - share) * height * width + 1e-6


def test_both_are_taken_by_chance():
    images, targets = coloured(4)
    mix = mix_of(0.5, 0.5, 4)
    kinds = set()
    for seed in range(40):
        mixed, _ = mix(images, targets, np.random.default_rng(seed))
        # Only mixup makes numbers that no image has.
        kinds.add(bool((mixed != mixed.round()).any()))
    assert kinds == {True, False}


@pytest.mark.parametrize(("alphas", "is_mixup"), [((1.0, 0), True), ((0, 1.0), False)])
def test_one_alone_is_taken_always(alphas, is_mixup):
    images, targets = coloured(4)
    mix = mix_of(*alphas, 4)
    for seed in range(20):
        mixed, _ = mix(images, targets, np.random.default_rng(seed))
        assert bool((mixed != mixed.round()).any()) == is_mixup


@pytest.mark.parametrize("alphas", [(0.4, 0), (0, 0.4), (0.4, 0.4)])
def test_draws_depend_on_the_generator_alone(alphas):
    images, targets = coloured(6, 32, 32)
    mix = mix_of(*alphas, 6)
    results = []
    for torch_seed in (1, 2):
        torch.manual_seed(torch_seed)
        before = torch.get_rng_state()
        results.append(mix(images, targets, np.random.default_rng([0, 1, 2, 3])))
        assert torch.equal(torch.get_rng_state(), before)  # dropout draws as without mixing
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    others = [mix(images, targets, np.random.default_rng([0, 1, 2, i]))[1] for i in range(20)]
    assert len({tuple(other.flatten().tolist()) for other in others}) > 10


@pytest.mark.parametrize("alphas", [(1.0, 0), (0, 1.0)])
def test_bytes_become_floats_and_labels_become_shares(alphas):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 16, 16), generator=generator, dtype=torch.uint8)
    mix = mix_of(*alphas, 3)
    mixed, shares = mix(images, torch.tensor([0, 1, 2, 0, 1]), np.random.default_rng(3))
    assert mixed.dtype == shares.dtype == torch.float32
    assert mixed.min() >= 0
    assert mixed.max() <= 255
    assert shares.shape == (5, 3)
    assert torch.allclose(shares.sum(1), torch.ones(5))


def test_several_labels_keep_their_shares():
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    _, shares = mixup(torch.zeros(2, 3, 4, 4), targets, 0.75)
    assert shares.tolist() == [[0.75, 1.0, 0.0], [0.25, 1.0, 0.0]]
    _, mixed = mix_of(1.0, 0, 3)(torch.zeros(2, 3, 4, 4), targets, np.random.default_rng(0))
    assert torch.allclose(mixed[:, 1], torch.ones(2))
    assert mixed[:, 2].tolist() == [0, 0]
