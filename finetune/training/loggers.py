"""Loggers beside ``metrics.csv``, which every run has."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, assert_never

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from finetune.errors import ConfigError

LoggerName = Literal["csv", "tensorboard", "mlflow", "wandb"]


def create_logger(
    name: LoggerName,
    *,
    folder: Path,
    run_name: str,
    project: str = "finetune",
    tracking_uri: str | None = None,
    offline: bool = True,
) -> Logger | None:
    """Make the logger ``name``; None for ``csv``.

    Args:
        name: which.
        folder: the run directory.
        run_name: how the run is called there.
        project: W&B project or MLflow experiment.
        tracking_uri: of MLflow; None for a database in the run directory.
        offline: write W&B's files without a network.

    Raises:
        ConfigError: the library of this logger is not installed.
    """
    check_logger(name)
    match name:
        case "csv":
            return None
        case "tensorboard":
            return TensorBoardLogger(folder, name="", version="tensorboard")
        case "mlflow":
            uri = tracking_uri or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
            return MLFlowLogger(experiment_name=project, run_name=run_name, tracking_uri=uri)
        case "wandb":
            return WandbLogger(name=run_name, save_dir=folder, project=project, offline=offline)
        case _:
            assert_never(name)


def check_logger(name: LoggerName) -> None:
    """Refuse a logger that cannot be made.

    Raises:
        ConfigError: its library is not installed.
    """
    if name in ("mlflow", "wandb") and find_spec(name) is None:
        raise ConfigError(f'logger={name} needs another package: pip install "finetune[{name}]".')
