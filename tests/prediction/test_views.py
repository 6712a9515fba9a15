import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from finetune.prediction.views import NUM_VIEWS, Augment, average_views, make_views


def images(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count * 100 + size)
    return 255 * torch.rand(count, 3, size, size, generator=generator)


@pytest.mark.parametrize("augment", ["none", "flip", "crops"])
@given(count=st.integers(1, 3), size=st.integers(1, 40))
def test_views_have_the_shape_of_the_images(augment: Augment, count: int, size: int) -> None:
    batch = images(count, size)
    views = list(make_views(batch, augment))
    assert len(views) == NUM_VIEWS[augment]
    for view in views:
        assert view.shape == batch.shape
        assert view.min() >= batch.min() - 1e-3
        assert view.max() <= batch.max() + 1e-3


def test_flip_is_the_image_and_its_mirror_image() -> None:
    batch = images(2, 8)
    image, mirrored = make_views(batch, "flip")
    assert torch.equal(image, batch)
    assert torch.equal(mirrored, batch[:, :, :, range(7, -1, -1)])


def test_crops_are_the_corners_and_the_centre_of_the_enlarged_image() -> None:
    batch = images(2, 28)
    large = functional.interpolate(batch, size=(32, 32), mode="bilinear", align_corners=False)
    views = list(make_views(batch, "crops"))
    for index, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]):
        crop = large[:, :, top : top + 28, left : left + 28]
        assert torch.equal(views[2 * index], crop)
        assert torch.equal(views[2 * index + 1], crop.flip(3))


@pytest.mark.parametrize("augment", ["flip", "crops"])
def test_a_mirror_image_has_the_same_mean(augment: Augment) -> None:
    batch = images(2, 14)
    weights = torch.rand(3 * 14 * 14, 2)

    def answer(view: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ((view.flatten(1) @ weights).softmax(1),)

    (mean,) = average_views(answer, batch, augment)
    (mirrored,) = average_views(answer, batch.flip(3), augment)
    expected = torch.stack([answer(view)[0] for view in make_views(batch, augment)]).mean(0)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(mean, mirrored)


def test_everything_that_is_answered_is_averaged() -> None:
    batch = images(2, 4)
    left, twice = average_views(lambda v: (v[:, 0, 0, 0], 2 * v[:, 0, 0, 0]), batch, "flip")
    torch.testing.assert_close(left, (batch[:, 0, 0, 0] + batch[:, 0, 0, -1]) / 2)
    torch.testing.assert_close(twice, 2 * left)


def test_one_view_changes_nothing() -> None:
    batch = images(2, 4)
    (same,) = average_views(lambda view: (view,), batch, "none")
    assert torch.equal(same, batch)
