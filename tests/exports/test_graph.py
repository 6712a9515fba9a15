"""The model as one graph for any size of image and batch."""

import pytest
import torch
from torch import nn

from finetune.errors import ExportError
from finetune.exports.bundle import Model, load_model
from finetune.exports.graph import MAX_SIDE_PX, trace_graph
from finetune.models.classifier import Classifier


def test_batch_height_and_width_are_free(export_of):
    _, path = export_of(".pt2")
    program = torch.export.load(path)
    (images,) = (node for node in program.graph.nodes if node.name == "images")
    batch, channels, height, width = images.meta["val"].shape
    assert channels == 3
    free = {size.node.expr: program.range_constraints[size.node.expr] for size in (height, width)}
    assert len({*free, batch.node.expr}) == 3
    for sizes in free.values():
        assert (int(sizes.lower), int(sizes.upper)) == (1, MAX_SIDE_PX)
    of_batch = program.range_constraints[batch.node.expr]
    assert int(of_batch.lower) == 1
    assert of_batch.upper > 10**6


class Undecided(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def test_a_network_that_asks_for_values_is_refused_in_one_line(bundle_of):
    model = load_model(bundle_of("multiclass"))
    network = Classifier(Undecided(), nn.Linear(3, 5))
    other = Model(network, model.preprocess, model.description)
    with pytest.raises(ExportError, match=r"cannot be traced by torch\.export: ") as caught:
        trace_graph(other)
    assert "\n" not in str(caught.value)
