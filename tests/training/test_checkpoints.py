import io
import os
import pickle
import random

import pytest
import torch

from finetune.errors import ModelError
from finetune.training.checkpoints import AtomicCheckpointIO, load_checkpoint
from finetune.training.trainer import fit

CONTENT = {
    "state_dict": {"weight": torch.arange(400.0).reshape(20, 20), "bias": torch.ones(3)},
    "epoch": 3,
    "callbacks": {"EpochTable": {"rows": [{"epoch": 1.0, "lr": 0.1}]}},
}


class RunsCode:
    """Would make a file when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "run" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    return path


def test_what_is_saved_comes_back(checkpoint):
    loaded = load_checkpoint(checkpoint)
    assert torch.equal(loaded["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    assert loaded["callbacks"] == CONTENT["callbacks"]
    through_lightning = AtomicCheckpointIO().load_checkpoint(checkpoint, weights_only=False)
    assert through_lightning["epoch"] == 3
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(checkpoint, monkeypatch):
    def full_disk(content, file):
        file.write(b"PK half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, checkpoint)
    assert load_checkpoint(checkpoint)["epoch"] == 3
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("forced", [False, True], ids=["", "forced"])
def test_code_in_a_checkpoint_never_runs(tmp_path, monkeypatch, legacy, forced):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "ran"
    path = tmp_path / "evil.ckpt"
    content = {"state_dict": {}, "hyper_parameters": RunsCode(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for load in (load_checkpoint, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(ModelError, match=r"evil\.ckpt is not a checkpoint of finetune"):
            load(path)
    with pytest.raises(ModelError):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the trap works


def as_bytes(content, **settings):
    buffer = io.BytesIO()
    torch.save(content, buffer, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"hello\n",
        random.Random(0).randbytes(5000),
        pickle.dumps(CONTENT["callbacks"]),
        as_bytes(CONTENT)[:-1],
        as_bytes(CONTENT)[: len(as_bytes(CONTENT)) // 2],
        as_bytes({"epoch": 3}),
        as_bytes([torch.zeros(3)]),
        as_bytes(torch.zeros(3)),
    ],
    ids=[
        "empty",
        "one byte",
        "text",
        "random",
        "pickle",
        "one byte short",
        "half",
        "no state_dict",
        "list",
        "tensor",
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "some.ckpt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"some\.ckpt is not a checkpoint of finetune") as caught:
        load_checkpoint(path)
    assert len(str(caught.value)) < 400 + len(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_damaged_file_raises_nothing_but_our_error(tmp_path, legacy):
    data = as_bytes(CONTENT, _use_new_zipfile_serialization=not legacy)
    path = tmp_path / "damaged.ckpt"
    draws = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(draws.choice([1, 3])):
            damaged[draws.randrange(min(len(data), 900))] = draws.randrange(256)
        path.write_bytes(damaged[: draws.choice([len(data), draws.randrange(len(data))])])
        try:
            load_checkpoint(path)
        except ModelError:
            refused += 1
    assert refused > 100


def test_a_missing_checkpoint_is_said_to_be_missing(tmp_path):
    with pytest.raises(ModelError, match="there is no such checkpoint"):
        load_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(ModelError, match="there is no such checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_a_trainer_writes_needs_no_unpickling(
    make_module, make_data, make_trainer, tmp_path, optimizer
):
    trainer = make_trainer(epochs=1, patience=3)
    fit(trainer, make_module(optimizer=optimizer), make_data(), resume_from=None)
    written = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in written] == ["best.ckpt", "last.ckpt"]
    for path in written:
        content = torch.load(path, weights_only=True)
        assert {"state_dict", "optimizer_states", "lr_schedulers", "callbacks"} <= content.keys()
        assert len(content["optimizer_states"][0]["state"]) > 10
