"""What an exported file takes and gives, and under which names. Imports nothing large."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""RGB ``[B, 3, H, W]``."""
Numbers = npt.NDArray[np.float32]
"""Probabilities ``[B, C]``; of a backbone, features ``[B, F]``."""
Answer = Callable[[Pixels], Numbers]

PROGRAMS = (".ts", ".pt2")
"""Can carry code."""
INPUT, OUTPUT = "images", "probabilities"
"""Of an ONNX graph."""
JSON_NAME = "model.json"
"""In a bundle, and within every exported file: what the model is."""
SUFFIXES = (*PROGRAMS, ".onnx", ".safetensors")
