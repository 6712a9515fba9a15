"""Where in an image a shape is drawn."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Place:
    """A circle in a square image, which a shape fills more or less.

    Attributes:
        side_px: of the image.
        centre_px: ``[2]``, x and y.
        radius_px: of the circle.
    """

    side_px: int
    centre_px: npt.NDArray[np.float64]
    radius_px: float
