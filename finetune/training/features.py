"""What a frozen backbone says of each image, computed once.

Shapes: ``N`` images, ``B`` of a batch, ``F`` features, ``S`` = side of the images in pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from finetune.data.labelled_images import LabelledImages, load_in_order
from finetune.errors import TrainingError

WORTH_WORKERS = 64
"""Images from which on starting processes that decode costs less than it saves."""


def compute_features(
    backbone: nn.Module,
    images: LabelledImages,
    *,
    normalise: Callable[[Tensor], Tensor],
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    workers: int,
    indices: Sequence[int] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Compute the pooled features of images, in eval mode and without gradients.

    Args:
        backbone: ``[B, 3, S, S]`` to ``[B, F]``. It is moved to ``device``, and its weights to
            channels_last, where they stay; each module's ``training`` is left as it was.
        images: with the transform of validation, which is never random: float32 in 0..255.
        normalise: ``[B, 3, S, S]`` in 0..255 to the backbone's input, on ``device``.
        device: what computes.
        dtype: float32, or bfloat16 or float16 by autocast.
        batch_size: images of one step, >= 1.
        workers: decoding processes; with fewer than ``WORTH_WORKERS`` images, none are started.
        indices: which images, in which order; None takes all.
        on_progress: called with the number of images done so far.

    Returns:
        ``[N, F]`` float32 on the CPU, in the order of ``indices``.

    Raises:
        DataError: a file cannot be read (any more).
        TrainingError: a feature is not finite; names the first such image.
    """
    chosen = range(len(images)) if indices is None else indices
    loader = load_in_order(
        images,
        batch_size,
        workers=workers if len(chosen) >= WORTH_WORKERS else 0,
        pin_memory=device.type == "cuda",
        indices=chosen,
    )
    features = torch.empty(0, 0)
    done = 0
    backbone.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with _in_eval_mode(backbone):
        for batch, _ in loader:
            with torch.inference_mode(), autocast:
                pixels = normalise(batch.to(device, non_blocking=True))
                pooled = backbone(pixels.contiguous(memory_format=torch.channels_last))
                rows = pooled.float().cpu()
            if not done:
                # Made outside of inference mode, or no gradient could ever pass through them.
                features = torch.empty(len(chosen), rows.shape[1])
            features[done : done + len(rows)] = rows
            _check_finite(rows, images, chosen[done : done + len(rows)], dtype)
            done += len(rows)
            if on_progress is not None:
                on_progress(done)
    return features


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Put every part into eval mode, and each back into its own: frozen norms stay frozen."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training


def _check_finite(
    rows: Tensor, images: LabelledImages, indices: Sequence[int], dtype: torch.dtype
) -> None:
    # A sum is finite only if all are, and needs no second array.
    finite = rows.sum(1).isfinite()
    if finite.all():
        return
    place = int(finite.logical_not().nonzero()[0, 0])
    path = images.root / images.paths[indices[place] % len(images)]
    name = str(dtype).removeprefix("torch.")
    hint = " Use trainer.precision=32." if dtype != torch.float32 else " Are the weights damaged?"
    raise TrainingError(
        f"the backbone's features of {path} are not finite in {name}; expected numbers.{hint}"
    )
