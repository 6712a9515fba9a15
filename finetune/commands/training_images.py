"""The training images as the pretrained backbone sees them: which look like another one.

Shapes: ``M`` images of ``S`` pixels a side among ``N`` training images, ``F`` features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.commands.candidates import probe_state
from finetune.commands.probe import train_features
from finetune.commands.setup import Setup
from finetune.data.discover import Sample
from finetune.evaluation.neighbours import nearest
from finetune.models.answers import SEPARATOR
from finetune.training.module import FineTuning

_BATCH = 16


@dataclass(frozen=True)
class TrainingImages:
    """The training images as the pretrained backbone sees them.

    Attributes:
        samples: ``N`` images.
        features: ``[N, F]`` float32.
        module: whose backbone gave them.
    """

    samples: Sequence[Sample]
    features: Tensor
    module: FineTuning

    @torch.inference_mode()
    def nearest(self, resized: Tensor, *, count: int) -> list[list[tuple[str, str, float]]]:
        """Find the training images that look most like others: path, label, cosine.

        Args:
            resized: ``[M, 3, S, S]`` in 0..255.
            count: of neighbours, at most.
        """
        device = next(self.module.classifier.parameters()).device
        backbone = self.module.classifier.backbone.eval()
        rows = []
        for start in range(0, len(resized), _BATCH):
            pixels = self.module.normalise(resized[start : start + _BATCH].to(device))
            rows.append(backbone(pixels.contiguous(memory_format=torch.channels_last)).float())
        indices, similarity = nearest(torch.cat(rows).cpu(), self.features, count=count)
        return [
            [
                (self.samples[i].path, SEPARATOR.join(self.samples[i].labels), value)
                for i, value in zip(places, values, strict=True)
            ]
            for places, values in zip(indices.tolist(), similarity.tolist(), strict=True)
        ]


def find_training_images(setup: Setup) -> TrainingImages | None:
    """Get the features of the probe back; None where there was no probe, or the run was resumed.

    The network of ``setup`` is the probe's afterwards.
    """
    probe = probe_state(setup.run)
    if probe is None or setup.audit is None:  # without digests, each image would be computed again
        return None
    setup.classifier.load_state_dict(probe)
    features = train_features(setup)
    return TrainingImages(setup.folder.of_split("train"), features, setup.module)
