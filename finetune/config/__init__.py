"""The whole vocabulary of the tool: one model per config group, each field with unit and range.

The values live in ``conf/`` (YAML, composed by Hydra in ``cli``); the types, ranges and rules
live here. Nothing has a default in both places: a key that a YAML file forgets is an error.
"""

from finetune.config.data import FINDINGS, AugmentationConfig, DatasetConfig
from finetune.config.evidence import EvidenceConfig
from finetune.config.learning import ModelConfig
from finetune.config.types import (
    Balance,
    ExpandedPath,
    MetricName,
    Task,
    expand_home,
    settled,
)
from finetune.config.verbs import (
    VERBS,
    CacheConfig,
    CompareConfig,
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    ExportFormat,
    InspectConfig,
    PredictConfig,
    ServeConfig,
    TrainConfig,
)

__all__ = [
    "FINDINGS",
    "VERBS",
    "AugmentationConfig",
    "Balance",
    "CacheConfig",
    "CompareConfig",
    "DataConfig",
    "DatasetConfig",
    "EvaluateConfig",
    "EvidenceConfig",
    "ExpandedPath",
    "ExportConfig",
    "ExportFormat",
    "InspectConfig",
    "MetricName",
    "ModelConfig",
    "PredictConfig",
    "ServeConfig",
    "Task",
    "TrainConfig",
    "expand_home",
    "settled",
]
