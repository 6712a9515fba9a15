"""Whole trainings, as a user starts them."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import load_file

import finetune.commands.components
from finetune.cli import main
from finetune.training.checkpoints import load_checkpoint, newest_valid

Hash = Callable[[Path], str]


def finetune_process(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "finetune", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_directory_holds_everything_that_is_promised(trained: Path) -> None:
    expected = {
        "config.yaml", "run.json",
        "audit.json", "split.csv", "contact_sheet.png", "metrics.csv", "metrics.json", "curves.png",
        "confusion_matrix.png", "predictions_val.csv", "predictions_test.csv", "model.json",
        "model.safetensors", "model.ts", "model.ts.check.json", "checkpoints", "README.md",
        "report.html", "label_issues.csv", "images.csv",
    }  # fmt: skip
    assert {path.name for path in trained.iterdir()} == expected
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (trained.parent.parent / "latest").resolve() == trained.resolve()
    for picture in trained.glob("*.png"):
        with PIL.Image.open(picture) as image:
            image.verify()


def test_the_stripes_are_learned(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["val"]["accuracy"] >= 0.9
    assert metrics["val"]["n"] == metrics["test"]["n"] == 16
    with (trained / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    # Of equal ones, that with the smaller loss.
    best = max(rows, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    assert metrics["best_epoch"] == int(best["epoch"])


def test_equal_commands_give_equal_metrics_and_weights_and_touch_no_image(
    trained: Path, stripes: Path, tmp_path: Path, quick: tuple[str, ...], hash_tree: Hash
) -> None:
    before = hash_tree(stripes)
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=again", *quick]
    more = ["dataset.test_fraction=0.2", "evidence=full", "dataset.workers=2"]
    assert main([*words, *more]) == 0
    again = tmp_path / "stripes" / "again"
    figures = [json.loads((run / "metrics.json").read_text()) for run in (again, trained)]
    assert all(run.pop("seconds") > 0 for run in figures)
    assert figures[0] == figures[1]
    assert (again / "model.safetensors").read_bytes() == (
        trained / "model.safetensors"
    ).read_bytes()
    assert hash_tree(stripes) == before


@pytest.mark.parametrize("head", ["linear", "mlp"])  # fitted, and trained by steps
def test_a_frozen_backbone_is_bitwise_unchanged(
    head: str, stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick]
    assert main([*words, "freeze=backbone", f"head={head}", "trainer.epochs=2"]) == 0
    torch.manual_seed(0)
    initial = finetune.commands.components.create_backbone("nano", image_size_px=32).state_dict()
    after = load_file(tmp_path / "stripes" / "a" / "model.safetensors")
    backbone = {k.removeprefix("backbone."): v for k, v in after.items() if "backbone." in k}
    assert backbone.keys() == initial.keys()
    assert any("running_mean" in name for name in initial)
    for name, value in initial.items():
        assert torch.equal(backbone[name], value), name
    assert after["head.linear.weight"].abs().sum() > 0


def test_secrets_of_the_environment_are_not_written(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "s3cr3t-canary")
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick]
    words += ["logger=wandb", "logger.project=${oc.env:CANARY}"]
    # Without the package this ends before the run directory is made; a csv logger shows the rest.
    monkeypatch.setattr(finetune.commands.components, "create_logger", lambda *a, **k: None)
    monkeypatch.setattr("finetune.training.loggers.find_spec", lambda name: name)
    assert main([*words, "trainer.epochs=1"]) == 0
    run = tmp_path / "stripes" / "a"
    assert "${oc.env:CANARY}" in (run / "config.yaml").read_text()
    for path in run.rglob("*"):
        if path.is_file():
            assert b"s3cr3t-canary" not in path.read_bytes(), path


def images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        PIL.Image.new("RGB", (20, 20), (index, ord(folder.name[0]), 0)).save(
            folder / f"{index}.png"
        )


def make_root(root: Path, kind: str) -> list[str]:
    """Lay out a folder that no training should accept; return what the message must say."""
    match kind:
        case "missing":
            return ["missing", "no such"]
        case "empty":
            root.mkdir()
            return ["image"]
        case "one class":
            images(root / "cat", 4)
            return ["at least two"]
        case "empty class in train":
            images(root / "train" / "cat", 4)
            (root / "train" / "dog").mkdir()
            return ["dog"]
        case "unknown class in val":
            images(root / "train" / "cat", 4)
            images(root / "train" / "dog", 4)
            images(root / "val" / "dgo", 4)
            return ["dgo", "dog"]
        case "too small for a batch":
            images(root / "cat", 4)
            images(root / "dog", 4)
            return ["trainer.batch_size: got 16", "at most 7 images to train on"]
        case _:
            raise AssertionError(kind)


KINDS = (
    "missing", "empty", "one class", "empty class in train", "unknown class in val",
    "too small for a batch",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_bad_folders_are_refused_before_any_weight_is_loaded(
    kind: str,
    tmp_path: Path,
    quick: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loads(*args: object, **kwargs: object) -> None:
        raise AssertionError("a backbone was made")

    monkeypatch.setattr(finetune.commands.components, "create_backbone", loads)
    root = tmp_path / "root"
    expected = make_root(root, kind)
    assert main(["train", f"dataset.root={root}", f"runs={tmp_path / 'runs'}", *quick]) == 2
    message = capsys.readouterr().err
    assert any(word in message for word in expected), message
    assert all(word in message for word in expected[1:]) or kind == "missing", message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optimizer.name=adamww"], "adamw"),
        (["trainer.batch_size=1"], "BatchNorm"),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=3"], "multiple of the 3"),
        (["model.weights=nowhere.safetensors"], "nowhere.safetensors"),
        (["model.backbone=resnet19"], "resnet18"),
        (["resume=."], "config.yaml"),
        (["trainer.epochs=0"], "trainer.epochs"),
        (["trainer=gpu"], "trainer=cpu"),
    ],
)
def test_bad_settings_are_one_message_and_status_2(
    words: list[str],
    expected: str,
    stripes: Path,
    tmp_path: Path,
    quick: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    first = ["train", f"dataset.root={stripes}", f"runs={tmp_path}"]
    settings = [
        word for word in quick if word.split("=")[0] not in {w.split("=")[0] for w in words}
    ]
    assert main([*first, *settings, *words]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert "Traceback" not in message


def test_a_runs_folder_that_cannot_be_written_is_refused_first(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    runs = tmp_path / "file" / "runs"
    assert main(["train", f"dataset.root={stripes}", f"runs={runs}", *quick]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_taken_name_is_refused(
    trained: Path, stripes: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = trained.parent.parent
    assert main(["train", f"dataset.root={stripes}", f"runs={runs}", "name=first", *quick]) == 2
    assert "resume=" in capsys.readouterr().err


def test_unreadable_images_and_copies_are_handled_and_told(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "mixed"
    shutil.copytree(stripes, root)
    (root / "lying" / "bad.png").write_bytes(b"no image")
    for index in range(10):
        shutil.copy(root / "standing" / f"{index:03d}.png", root / "standing" / f"copy{index}.png")
    words = ["train", f"dataset.root={root}", f"runs={tmp_path / 'runs'}", "name=a", *quick]
    assert main([*words, "trainer.epochs=1"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "lying/bad.png: not an image" in output
    run = tmp_path / "runs" / "mixed" / "a"
    assert list(json.loads((run / "audit.json").read_text())["unreadable"]) == ["lying/bad.png"]
    with (run / "split.csv").open() as file:
        split = {row["path"]: row["split"] for row in csv.DictReader(file)}
    assert len(split) == 90
    copied = [f"standing/copy{index}.png" for index in range(10)]
    assert all(split[path] == split[path.replace("copy", "00")] for path in copied)


def test_ctrl_c_keeps_the_last_epoch_and_resume_goes_on(
    trained: Path, stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick]
    words += ["trainer.epochs=200", "scheduler=constant"]
    process = finetune_process(*words)
    last = tmp_path / "stripes" / "a" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"finetune train resume={last.parent.parent}" in output
    assert "Traceback" not in output
    finished = load_checkpoint(last)["epoch"] + 1
    # The rest of 200 epochs would take minutes: shorten what remains, as only a test may.
    config = last.parent.parent / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["trainer"]["epochs"] = finished + 1
    config.write_text(yaml.safe_dump(settings))
    assert main(["train", f"resume={last.parent.parent}"]) == 0
    with (last.parent.parent / "metrics.csv").open() as file:
        epochs = [int(row["epoch"]) for row in csv.DictReader(file)]
    assert epochs == list(range(1, finished + 2))
    assert (last.parent.parent / "model.ts").is_file()


def test_resume_of_a_run_whose_last_checkpoint_is_gone_or_damaged(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    last, best = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt"
    last.unlink()
    assert main(["train", f"resume={run}"]) == 2
    assert "has finished; there is nothing to go on with" in capsys.readouterr().err
    before = (run / "metrics.json").read_bytes()
    (run / "metrics.json").unlink()
    last.write_bytes(b"no checkpoint")
    assert main(["train", f"resume={run}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Damaged, and not used: " in said
    assert "Going on from best.ckpt: epoch" in said
    assert json.loads((run / "metrics.json").read_bytes())["val"] == json.loads(before)["val"]
    assert newest_valid([last, best])[1] == []


@pytest.fixture
def moved(trained: Path, stripes: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return an unfinished run, and its images, which a test may change."""
    root, run = tmp_path / "stripes", tmp_path / "run"
    shutil.copytree(stripes, root)
    shutil.copytree(trained, run)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "data": str(root)}))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["trainer"]["epochs"] += 1
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return run, root


def test_resume_names_an_image_that_is_gone(
    moved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, root = moved
    (root / "lying" / "003.png").unlink()
    assert main(["train", f"resume={run}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("RunError: resume: 1 of the 80 images that the run began with")
    assert "the first: `lying/003.png`. Put them back" in message


def test_resume_names_an_image_that_has_changed_since(
    moved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, root = moved
    for path in root.rglob("*.png"):
        path.write_bytes(b"no image")
    assert main(["train", f"resume={run}"]) == 2
    message = capsys.readouterr().err
    assert "80 of the 80 images that the run began with have changed" in message
    assert message.count(".png") == 1


def test_resume_does_not_see_what_is_new(moved: tuple[Path, Path]) -> None:
    run, root = moved
    shutil.copytree(root / "lying", root / "a new class")
    assert main(["train", f"resume={run}"]) == 0
    assert json.loads((run / "model.json").read_text())["class_names"] == ["lying", "standing"]


def test_two_processes_on_one_cpu_make_one_run_with_the_metrics_of_one(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    """Only the head learns: with BatchNorm in training, each process has statistics of its own."""
    common = ["train", f"dataset.root={stripes}", "name=a", *quick, "freeze=backbone", "head=mlp"]
    # A linear head would be fitted without steps; dropout draws in each process anew.
    common += ["trainer.epochs=2", "trainer.precision=32", "augmentation=none", "head.dropout=0"]
    assert main([*common, f"runs={tmp_path / 'one'}"]) == 0
    two = [word for word in common if word != "trainer=cpu"]
    process = finetune_process(
        *two,
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        f"runs={tmp_path / 'two'}",
    )
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert [path.name for path in (tmp_path / "two" / "stripes").iterdir()] == ["a"]
    assert output.count("Plan") == 1
    rows = []
    for folder in ("one", "two"):
        with (tmp_path / folder / "stripes" / "a" / "metrics.csv").open() as file:
            rows.append([{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)])
    for one, both in zip(*rows, strict=True):
        assert both == pytest.approx(one, rel=1e-4)
    metrics = [
        json.loads((tmp_path / folder / "stripes" / "a" / "metrics.json").read_text())["val"]
        for folder in ("one", "two")
    ]
    assert metrics[0]["confusion_matrix"] == metrics[1]["confusion_matrix"]


def test_stages_open_one_by_one_over_two_processes_too(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick]
    words = [word for word in words if word != "trainer=cpu"]
    words += ["freeze=gradual", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    output, _ = (process := finetune_process(*words)).communicate(timeout=240)
    assert process.returncode == 0, output
    torch.manual_seed(0)
    initial = finetune.commands.components.create_backbone("nano", image_size_px=32).state_dict()
    last = load_checkpoint(tmp_path / "stripes" / "a" / "checkpoints" / "last.ckpt")["state_dict"]
    moved = {
        name.split(".")[0]
        for name, value in initial.items()
        if not torch.equal(last[f"classifier.backbone.{name}"], value)
    }
    # Three epochs: the head alone, then layer4, then layer3.
    assert moved == {"layer3", "layer4"}


def test_the_embedded_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the main job, shortened: real digits, written once, learned from random weights."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", "name=a", "trainer.epochs=4", "scheduler.warmup_epochs=0.5"]) == 0
    assert len(list((tmp_path / "data" / "digits").rglob("*.png"))) == 1797
    metrics = json.loads((tmp_path / "runs" / "digits" / "a" / "metrics.json").read_text())
    assert metrics["val"]["accuracy"] >= 0.93


@pytest.fixture(scope="module")
def ants_and_bees(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on the images of PyTorch's own tutorial, with real ImageNet weights."""
    runs = tmp_path_factory.mktemp("real")
    status = main(
        [
            "train",
            f"dataset.root={real_data / 'data' / 'hymenoptera'}",
            "model=resnet18",
            f"model.weights={real_data / 'weights' / 'resnet18_imagenet.safetensors'}",
            f"runs={runs}",
            "name=a",
            "freeze=backbone",  # a minute less on one thread
        ]
    )
    assert status == 0
    return runs / "hymenoptera" / "a"


def test_real_images_at_least_93_percent(ants_and_bees: Path) -> None:
    metrics = json.loads((ants_and_bees / "metrics.json").read_text())
    assert metrics["val"]["n"] == 153
    assert metrics["val"]["accuracy"] >= 0.93


def test_torchscript_alone_answers_like_predict_on_all_real_images(
    ants_and_bees: Path, real_data: Path, tmp_path: Path
) -> None:
    folder = real_data / "data" / "hymenoptera" / "val"
    table = tmp_path / "labels.csv"
    assert main(["predict", f"run={ants_and_bees}", f"input={folder}", f"output={table}"]) == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 153
    script = tmp_path / "deployed.py"
    script.write_text(
        "import json, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "import numpy, PIL.Image, torch\n"
        "model = torch.jit.load(sys.argv[1])\n"
        "for line in sys.stdin:\n"
        "    image = PIL.Image.open(line.rstrip('\\n')).convert('RGB')\n"
        "    pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None]\n"
        "    with torch.inference_mode():\n"
        "        print(json.dumps(model(pixels)[0].tolist()))\n"
        "assert not {'finetune', 'timm', 'torchvision', 'lightning'} & set(sys.modules)\n"
    )
    answers = subprocess.run(
        [sys.executable, str(script), str(ants_and_bees / "model.ts")],
        input="\n".join(row["path"] for row in rows),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for row, answer in zip(rows, answers, strict=True):
        ants, bees = json.loads(answer)
        assert ants == pytest.approx(float(row["p_ants"]), abs=1e-4)
        assert row["label"] == ("ants" if ants > bees else "bees")
