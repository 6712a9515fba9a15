import os

import pytest
import torch

from finetune.errors import ConfigError
from finetune.training import hardware
from finetune.training.hardware import (
    choose_hardware,
    choose_precision,
    choose_workers,
    has_native_bfloat16,
)

AUTO = {
    "accelerator": "auto",
    "strategy": "auto",
    "devices": "auto",
    "num_nodes": 1,
    "precision": "auto",
}


@pytest.fixture
def machine(monkeypatch):
    def pretend(*, gpus=0, bfloat16=False, capability=(7, 0), cpu_bfloat16=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
        monkeypatch.setattr(hardware, "has_native_bfloat16", lambda: cpu_bfloat16)

    return pretend


def test_a_machine_without_a_gpu_trains_in_one_process_on_the_cpu(machine):
    machine()
    chosen = choose_hardware(**AUTO)
    assert (chosen.accelerator, chosen.devices, chosen.strategy) == ("cpu", 1, "auto")
    assert chosen.precision == "32-true"
    assert chosen.world_size == 1
    assert "CPU" in chosen.reasons["device"]
    assert "no native bfloat16" in chosen.reasons["precision"]
    assert chosen.reasons["strategy"] == "one process"


def test_auto_takes_every_gpu_and_ddp(machine):
    machine(gpus=4, bfloat16=True, capability=(8, 0))
    chosen = choose_hardware(**AUTO)
    assert (chosen.accelerator, chosen.devices, chosen.strategy) == ("gpu", 4, "ddp")
    assert chosen.world_size == 4
    assert chosen.reasons["device"] == "4 × Tesla T4"
    assert "4 processes" in chosen.reasons["strategy"]


def test_one_gpu_needs_no_strategy(machine):
    machine(gpus=1)
    chosen = choose_hardware(**AUTO)
    assert (chosen.accelerator, chosen.devices, chosen.strategy) == ("gpu", 1, "auto")


def test_what_is_asked_for_goes_before_what_is_there(machine):
    machine(gpus=4, bfloat16=True)
    chosen = choose_hardware(
        accelerator="cpu", strategy="ddp", devices=2, num_nodes=3, precision="32"
    )
    assert (chosen.accelerator, chosen.devices, chosen.strategy) == ("cpu", 2, "ddp")
    assert chosen.precision == "32-true"
    assert chosen.world_size == 6


def test_several_nodes_mean_ddp(machine):
    machine(gpus=1)
    chosen = choose_hardware(**{**AUTO, "num_nodes": 2})
    assert (chosen.strategy, chosen.world_size) == ("ddp", 2)


@pytest.mark.parametrize(
    ("there", "asked", "message"),
    [
        ({}, {"accelerator": "gpu"}, "trainer.accelerator: got gpu.*trainer=cpu"),
        ({"gpus": 2}, {"devices": 3}, r"trainer.devices: got 3, .* has 2 GPU"),
        ({}, {"strategy": "fsdp"}, "trainer.strategy: got fsdp.*trainer=ddp"),
        ({}, {"precision": "16-mixed"}, "trainer.precision: got 16-mixed.*bf16-mixed or 32"),
    ],
)
def test_what_is_not_there_is_refused(machine, there, asked, message):
    machine(**there)
    with pytest.raises(ConfigError, match=message):
        choose_hardware(**{**AUTO, **asked})


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"gpus": 1, "bfloat16": True, "capability": (9, 0)}, "bf16-mixed"),
        ({"gpus": 1, "bfloat16": False, "capability": (7, 5)}, "16-mixed"),
        ({"gpus": 1, "bfloat16": False, "capability": (6, 1)}, "32-true"),
        ({"cpu_bfloat16": True}, "bf16-mixed"),
        ({"cpu_bfloat16": False}, "32-true"),
    ],
)
def test_auto_precision_is_what_the_hardware_multiplies_natively(machine, there, expected):
    machine(**there)
    precision, reason = choose_precision("gpu" if there.get("gpus") else "cpu", "auto")
    assert precision == expected
    assert reason


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("32", "32-true"), ("bf16-mixed", "bf16-mixed"), ("16-mixed", "16-mixed")],
)
def test_a_precision_that_is_asked_for_is_kept(machine, asked, expected):
    machine(gpus=1, bfloat16=True)
    assert choose_precision("gpu", asked) == (expected, "as asked")


@pytest.mark.parametrize(
    ("capability", "avx512", "amx", "expected"),
    [
        ("AVX512", True, False, True),
        ("AVX512", False, True, True),
        ("AVX2", False, False, False),
        ("DEFAULT", True, True, False),  # torch was told not to use the extensions
    ],
)
def test_native_bfloat16_is_asked_of_the_cpu(monkeypatch, capability, avx512, amx, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_native_bfloat16() is expected


def test_a_torch_without_these_questions_has_no_native_bfloat16(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert has_native_bfloat16() is False


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(1, 1, 1), (4, 1, 4), (64, 1, 8), (16, 4, 4), (2, 4, 1)]
)
def test_workers_share_the_cores_that_this_process_may_use(monkeypatch, cores, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    assert choose_workers("auto", processes=processes) == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert choose_workers("auto", processes=processes) == expected


def test_a_number_of_workers_is_kept():
    assert choose_workers(0) == 0
    assert choose_workers(11, processes=4) == 11
