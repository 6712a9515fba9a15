import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from torch import nn

from finetune.training.averaging import MovingAverage, average_states, reestimate_batchnorm
from finetune.training.checkpoints import load_checkpoint
from finetune.training.trainer import fit


def copies(module):
    return {name: value.clone() for name, value in module.classifier.state_dict().items()}


class Recorder(Callback):
    """Keep the state at the start and after each batch."""

    def on_train_start(self, _, pl_module):
        self.states = [copies(pl_module)]
        self.steps = [0]

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.states.append(copies(pl_module))
        self.steps.append(trainer.global_step)


class Interrupt(Callback):
    """Press Ctrl-C as an epoch begins."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, _):
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


def average_by_hand(states, decay):
    """Average the first state and those after each update, in float64."""
    average = {name: value.double() for name, value in states[0].items()}
    for n, state in enumerate(states[1:], start=1):
        kept = min(decay, n / (9 + n))
        for name, value in state.items():
            average[name] = kept * average[name] + (1 - kept) * value.double()
    return average


def assert_is_average(found, states, decay):
    expected = average_by_hand(states, decay)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, states[-1][name]), name


# With 0.3 the decay of the warm-up ends after the fourth update of six; with 0.9999 it never does.
@pytest.mark.parametrize("decay", [0.3, 0.9999])
def test_it_is_the_average_of_all_steps_with_a_decay_that_warms_up(
    make_module, make_data, make_trainer, decay
):
    module = make_module("none")
    average, recorder = MovingAverage(decay), Recorder()
    fit(make_trainer(average, recorder), module, make_data(), resume_from=None)
    assert average.updates == 6
    assert len(recorder.states) == 7
    assert_is_average(average.weights, recorder.states, decay)
    # Training itself never sees it.
    assert all(torch.equal(value, recorder.states[-1][n]) for n, value in copies(module).items())


def test_weights_statistics_and_counters_are_all_in_it(make_module, make_data, make_trainer):
    module = make_module("none", optimizer="adamw", lr=0.01)
    before = copies(module)
    average = MovingAverage(0.9)
    fit(make_trainer(average, epochs=1), module, make_data(), resume_from=None)
    after = copies(module)
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    counters = [name for name in before if name.endswith("num_batches_tracked")]
    assert statistics
    assert counters
    for name in statistics:
        assert not torch.equal(average.weights[name], before[name]), name
        assert not torch.equal(average.weights[name], after[name]), name
    for name in counters:
        assert average.weights[name].item() == 3, name
    # It shares no memory with the network.
    ours = {value.data_ptr() for value in average.weights.values()}
    assert not ours & {value.data_ptr() for value in module.classifier.state_dict().values()}


def test_it_starts_from_a_copy_of_the_weights(make_module, make_data, make_trainer):
    module = make_module("backbone")
    before = copies(module)
    average = MovingAverage(0.9)
    fit(make_trainer(average, epochs=1), module, make_data(), resume_from=None)
    for name, value in average.weights.items():
        assert torch.equal(value, before[name]) is name.startswith("backbone."), name


def test_batches_without_a_step_are_not_counted(make_module, make_data, make_trainer):
    module = make_module("none")
    average, recorder = MovingAverage(0.9), Recorder()
    trainer = make_trainer(average, recorder, accumulate=2, epochs=3)
    fit(trainer, module, make_data(), resume_from=None)
    assert len(recorder.states) == 1 + 3 * 3  # batches
    assert average.updates == trainer.global_step == 3 * 2  # the last one of three is a step too
    after_steps = [
        state
        for state, step, before in zip(
            recorder.states[1:], recorder.steps[1:], recorder.steps, strict=False
        )
        if step != before
    ]
    assert_is_average(average.weights, [recorder.states[0], *after_steps], 0.9)


def test_a_resumed_training_has_the_same_average_to_the_last_bit(
    make_module, make_data, make_trainer, tmp_path
):
    whole = MovingAverage(0.7)
    fit(make_trainer(whole, folder="whole"), make_module("none"), make_data(), resume_from=None)

    first = MovingAverage(0.7)
    trainer = make_trainer(first, Interrupt(1), folder="half")
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, make_module("none"), make_data(), resume_from=None)
    last = tmp_path / "half" / "checkpoints" / "last.ckpt"
    kept = load_checkpoint(last)["callbacks"]["MovingAverage"]
    assert kept["updates"] == 3

    second = MovingAverage(0.7)
    trainer = make_trainer(second, folder="half")
    fit(trainer, make_module("none", seed=1), make_data(), resume_from=last)
    assert second.updates == whole.updates == 6
    for name, value in whole.weights.items():
        assert torch.equal(second.weights[name], value), name
    saved = load_checkpoint(last)["callbacks"]["MovingAverage"]["weights"]
    assert saved.keys() == whole.weights.keys()
    assert all(torch.equal(saved[name], value) for name, value in whole.weights.items())


values = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8)


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=8),
       st.floats(0, 1))  # fmt: skip
def test_an_average_lies_between_at_the_share_of_the_second(pairs, share):
    one = {"w": torch.tensor([a for a, _ in pairs]), "n": torch.tensor(3)}
    other = {"w": torch.tensor([b for _, b in pairs]), "n": torch.tensor(8)}
    before = copy.deepcopy((one, other))
    found = average_states(one, other, share=share)
    expected = (1 - share) * one["w"].double() + share * other["w"].double()
    torch.testing.assert_close(found["w"].double(), expected, rtol=1e-5, atol=1e-4)
    low, high = torch.minimum(one["w"], other["w"]), torch.maximum(one["w"], other["w"])
    assert ((found["w"] >= low - 1e-4) & (found["w"] <= high + 1e-4)).all()
    assert found["n"] == 8
    for state, kept in zip((one, other), before, strict=True):
        assert all(torch.equal(state[name], kept[name]) for name in kept)
        assert found["n"].data_ptr() != state["n"].data_ptr()


@given(values, st.floats(0, 1))
def test_equal_states_are_their_own_average(numbers, share):
    state = {"w": torch.tensor(numbers)}
    assert torch.equal(average_states(state, state, share=share)["w"], state["w"])


@given(values, values)
def test_the_ends_are_the_states_themselves(first, second):
    size = min(len(first), len(second))
    one, other = {"w": torch.tensor(first[:size])}, {"w": torch.tensor(second[:size])}
    assert torch.equal(average_states(one, other, share=0.0)["w"], one["w"])
    assert torch.equal(average_states(one, other, share=1.0)["w"], other["w"])
    half, reverse = average_states(one, other)["w"], average_states(other, one)["w"]
    torch.testing.assert_close(half, reverse, rtol=1e-6, atol=1e-5)


def test_an_average_keeps_names_types_and_order():
    one = {"b": torch.zeros(2, dtype=torch.bfloat16), "a": torch.zeros(3)}
    other = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bfloat16)}
    found = average_states(one, other, share=0.25)
    assert list(found) == ["a", "b"]
    assert found["b"].dtype == torch.bfloat16
    assert found["b"].tolist() == [0.25, 0.25]


class TwoNorms(nn.Module):
    """Two convolutions with a BatchNorm each, and dropout that would be seen in train mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.norm1 = nn.BatchNorm2d(4, momentum=0.3)
        self.dropout = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(4, 5, 3)
        self.norm2 = nn.BatchNorm2d(5)
        for norm in (self.norm1, self.norm2):
            nn.init.normal_(norm.weight)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, images):
        hidden = self.dropout(torch.relu(self.norm1(self.conv1(images))))
        return self.norm2(self.conv2(hidden))


@pytest.fixture
def network():
    return TwoNorms()


def make_batches(count=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 3, 8, 8, generator=generator) * (i + 1) + i for i in range(count)]


def mean_statistics(activations):
    """Average mean and unbiased variance of each batch ``[B, C, H, W]``, batches counted alike."""
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in activations]).mean(0)
    variances = [batch.transpose(0, 1).flatten(1).var(dim=1) for batch in activations]
    return means, torch.stack(variances).mean(0)


def test_statistics_are_the_plain_mean_over_batches(network):
    with torch.no_grad():
        first = [network.conv1(batch) for batch in make_batches()]
        hidden = [
            torch.relu(
                nn.functional.batch_norm(
                    batch, None, None, network.norm1.weight, network.norm1.bias, training=True
                )
            )
            for batch in first
        ]
        second = [network.conv2(batch) for batch in hidden]  # no dropout: it is in eval mode
    reestimate_batchnorm(network, [network.norm1, network.norm2], make_batches())
    for norm, activations in ((network.norm1, first), (network.norm2, second)):
        mean, variance = mean_statistics(activations)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)
        assert norm.num_batches_tracked == 3


def test_only_the_norms_that_were_given_move(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    reestimate_batchnorm(network, [network.norm2], make_batches())
    after = network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"norm2.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}
    # The first one normalised by its own statistics meanwhile.
    with torch.no_grad():
        network.eval()
        hidden = [network.norm1(network.conv1(batch)).relu() for batch in make_batches()]
        mean, _ = mean_statistics([network.conv2(batch) for batch in hidden])
    torch.testing.assert_close(after["norm2.running_mean"], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_modes_momentum_and_gradients_are_as_before(network, fails):
    network.train()
    network.norm1.eval()
    network.conv2.eval()
    modes = {name: module.training for name, module in network.named_modules()}
    batches = make_batches()
    if fails:
        batches.append(torch.zeros(2, 1, 8, 8))
        with pytest.raises(RuntimeError, match="channels"):
            reestimate_batchnorm(network, [network.norm1, network.norm2], batches)
    else:
        reestimate_batchnorm(network, [network.norm1, network.norm2], batches)
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert (network.norm1.momentum, network.norm2.momentum) == (0.3, 0.1)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_without_a_batch_or_a_norm_nothing_changes(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def never():
        raise AssertionError("a batch was asked for")
        yield

    reestimate_batchnorm(network, [network.norm1, network.norm2], [])
    reestimate_batchnorm(network, [], never())
    reestimate_batchnorm(network, [network.conv1, nn.BatchNorm2d(4, track_running_stats=False)],
                         never())  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
