from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from finetune.evaluation.finder_plot import plot_rate_curve

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB"))


def count_pixels(image: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    return int((image == np.array(colour, dtype=np.uint8)).all(axis=2).sum())


def curve(count: int = 60) -> tuple[list[float], list[float], list[float]]:
    rates = np.geomspace(1e-6, 1.0, count)
    smoothed = np.linspace(1, 0.2, count)
    return rates.tolist(), (smoothed + 0.05 * (-1) ** np.arange(count)).tolist(), smoothed.tolist()


def test_the_suggestion_is_marked(tmp_path: Path) -> None:
    plot_rate_curve(*curve(), tmp_path / "with.png", suggestion=1e-3)
    plot_rate_curve(*curve(), tmp_path / "without.png", suggestion=None)
    marked, plain = pixels(tmp_path / "with.png"), pixels(tmp_path / "without.png")
    assert count_pixels(marked, ORANGE) > 500
    assert count_pixels(plain, ORANGE) == 0
    assert min(count_pixels(marked, BLUE), count_pixels(plain, BLUE)) > 1000


def test_the_axis_of_rates_is_logarithmic(tmp_path: Path) -> None:
    places = []
    for rate in (1e-5, 1e-3, 1e-1):
        plot_rate_curve(*curve(), tmp_path / "c.png", suggestion=rate)
        columns = (pixels(tmp_path / "c.png") == np.array(ORANGE)).all(axis=2).sum(axis=0)
        places.append(int(columns.argmax()))
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], rel=0.05)
    assert places[1] - places[0] > 100


def test_one_wild_batch_does_not_flatten_the_curve(tmp_path: Path) -> None:
    rates, losses, smoothed = curve()
    plot_rate_curve(rates, losses, smoothed, tmp_path / "calm.png", suggestion=None)
    losses[40] = 1e6
    plot_rate_curve(rates, losses, smoothed, tmp_path / "wild.png", suggestion=None)
    calm, wild = (
        np.flatnonzero((pixels(tmp_path / f"{name}.png") == np.array(BLUE)).all(axis=2).any(axis=1))
        for name in ("calm", "wild")
    )
    assert np.ptp(wild) == pytest.approx(np.ptp(calm), rel=0.05)


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_curves_of_any_length(tmp_path: Path, count: int) -> None:
    plot_rate_curve(*curve(count), tmp_path / "c.png", suggestion=None)
    assert pixels(tmp_path / "c.png").shape[1] > 800


def test_a_flat_loss(tmp_path: Path) -> None:
    rates, _, _ = curve(20)
    plot_rate_curve(rates, [0.0] * 20, [0.0] * 20, tmp_path / "c.png", suggestion=None)
    assert count_pixels(pixels(tmp_path / "c.png"), BLUE) > 500


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 3 rates, 2 losses and 3 smoothed"):
        plot_rate_curve([1, 2, 3], [1, 2], [1, 2, 3], tmp_path / "c.png", suggestion=None)
    assert not list(tmp_path.iterdir())
