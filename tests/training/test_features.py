import pytest
import torch
from torch import nn

from finetune.data.discover import discover_folder
from finetune.data.labelled_images import LabelledImages, Resized, make_targets
from finetune.data.preprocess import Preprocess
from finetune.errors import TrainingError
from finetune.models.backbones import create_backbone
from finetune.training import features as module
from finetune.training.features import compute_features

PREPROCESS = Preprocess(32, "squash", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def images(stripes):
    folder = discover_folder(stripes)
    return LabelledImages(
        folder.root,
        folder.samples,
        make_targets(folder.samples, folder.class_names, is_multilabel=False),
        transform=Resized(PREPROCESS),
        seed=0,
        max_megapixels=1,
    )


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return create_backbone("nano")


def compute(backbone, images, **changes):
    settings = {"dtype": torch.float32, "batch_size": 7, "workers": 0, **changes}
    return compute_features(
        backbone,
        images,
        normalise=PREPROCESS.normalise,
        device=torch.device("cpu"),
        **settings,
    )


def test_features_are_those_of_eval_mode_in_the_order_asked_for(backbone, images):
    features = compute(backbone.train(), images, indices=[5, 70, 5, 0])
    pixels = torch.stack([images[0, index][0] for index in (5, 70, 5, 0)])
    with torch.no_grad():
        expected = backbone.eval()(PREPROCESS.normalise(pixels))
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-3)
    assert features.dtype == torch.float32
    assert torch.equal(features[0], features[2])


def test_no_flag_and_no_statistic_moves(backbone, images):
    backbone.train()
    backbone.layer2.eval()
    before = {name: part.training for name, part in backbone.named_modules()}
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    compute(backbone, images, indices=range(9))
    assert {name: part.training for name, part in backbone.named_modules()} == before
    assert all(torch.equal(state[name], value) for name, value in backbone.state_dict().items())
    assert set(before.values()) == {True, False}


class Failing(nn.Module):
    def forward(self, images):
        raise RuntimeError(f"no memory for {tuple(images.shape)}")


def test_flags_come_back_after_a_failure(images):
    backbone = Failing().train()
    with pytest.raises(RuntimeError, match="no memory"):
        compute(backbone, images, indices=[0])
    assert backbone.training


def test_gradients_may_pass_through_what_is_computed_from_them(backbone, images):
    features = compute(backbone, images, indices=range(3))
    head = nn.Linear(features.shape[1], 2)
    head(features).sum().backward()
    assert head.weight.grad is not None
    assert not features.requires_grad


def test_workers_change_nothing(backbone, images, monkeypatch):
    monkeypatch.setattr(module, "WORTH_WORKERS", 20)
    alone = compute(backbone, images, indices=range(20))
    assert torch.equal(compute(backbone, images, indices=range(20), workers=2), alone)


def test_progress_counts_images(backbone, images):
    seen = []
    features = compute(backbone, images, batch_size=32, on_progress=seen.append)
    assert seen == [32, 64, 80]
    assert len(features) == 80


def test_bfloat16_is_near_and_returned_as_float32(backbone, images):
    exact = compute(backbone, images, indices=range(4))
    rough = compute(backbone, images, indices=range(4), dtype=torch.bfloat16)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).norm() < 0.03 * exact.norm()


class _Infinite(nn.Module):
    def forward(self, images):
        pooled = images.mean((2, 3))
        pooled[-1] = float("inf")
        return pooled


@pytest.mark.parametrize(
    ("dtype", "hint"),
    [(torch.float32, "Are the weights damaged?"), (torch.bfloat16, "Use trainer.precision=32.")],
)
def test_what_is_not_finite_is_named(images, dtype, hint):
    with pytest.raises(TrainingError) as caught:
        compute(_Infinite(), images, indices=[4, 2], batch_size=2, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    assert str(caught.value) == (
        f"the backbone's features of {images.root / images.paths[2]} are not finite in {name}; "
        f"expected numbers. {hint}"
    )
