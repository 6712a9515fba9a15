import pytest

from finetune.errors import ConfigError
from finetune.training import loggers
from finetune.training.loggers import create_logger


class Recorder:
    def __init__(self, **arguments):
        self.arguments = arguments


def test_csv_is_no_further_logger(tmp_path):
    assert create_logger("csv", folder=tmp_path, run_name="first") is None


def test_tensorboard_writes_into_the_run_directory(tmp_path):
    logger = create_logger("tensorboard", folder=tmp_path, run_name="first")
    logger.log_metrics({"val_accuracy": 0.5}, step=3)
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == [tmp_path / "tensorboard"]
    (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    assert b"val_accuracy" in events.read_bytes()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_logger_whose_library_is_missing_says_how_to_get_it(monkeypatch, tmp_path, name):
    monkeypatch.setattr(loggers, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=rf'logger={name}.*pip install "finetune\[{name}\]"'):
        create_logger(name, folder=tmp_path, run_name="first")


def test_mlflow_stays_in_the_run_directory_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setattr(loggers, "find_spec", lambda module: module)
    monkeypatch.setattr(loggers, "MLFlowLogger", Recorder)
    settings = {"folder": tmp_path, "run_name": "first", "project": "moths"}
    here = create_logger("mlflow", **settings)
    assert here.arguments["experiment_name"] == "moths"
    assert here.arguments["run_name"] == "first"
    assert str(tmp_path) in here.arguments["tracking_uri"]
    there = create_logger("mlflow", **settings, tracking_uri="https://mlflow.example")
    assert there.arguments["tracking_uri"] == "https://mlflow.example"


@pytest.mark.parametrize("offline", [True, False])
def test_wandb_writes_into_the_run_directory(monkeypatch, tmp_path, offline):
    monkeypatch.setattr(loggers, "find_spec", lambda module: module)
    monkeypatch.setattr(loggers, "WandbLogger", Recorder)
    logger = create_logger(
        "wandb", folder=tmp_path, run_name="first", project="moths", offline=offline
    )
    assert logger.arguments == {
        "name": "first",
        "save_dir": tmp_path,
        "project": "moths",
        "offline": offline,
    }
