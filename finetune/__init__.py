"""Fine-tune pretrained image classifiers: a folder of labelled images in, a classifier out.

    import finetune

    run = finetune.train("dataset.root=flowers", "model=resnet18")
    model = finetune.load_model("runs/latest")
    model.predict(["rose.jpg"])

The verbs take the words of the command line. Importing this is cheap and changes nothing.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "FinetuneError",
    "compare",
    "evaluate",
    "export",
    "inspect",
    "load_model",
    "predict",
    "train",
]

if TYPE_CHECKING:
    from finetune.cli import compare, evaluate, export, inspect, predict, train
    from finetune.errors import FinetuneError
    from finetune.exports.bundle import load_model


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    if name == "load_model":
        from finetune.exports.bundle import load_model

        return load_model
    if name == "FinetuneError":
        from finetune.errors import FinetuneError

        return FinetuneError
    from finetune import cli

    return getattr(cli, name)
