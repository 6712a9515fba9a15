"""``finetune predict``: images in, one row per image out."""

from pathlib import Path

from rich.console import Console
from rich.progress import track

from finetune.config import PredictConfig
from finetune.data.discover import discover_inputs
from finetune.errors import ConfigError
from finetune.exports.bundle import load_model
from finetune.prediction.predict import predict_images
from finetune.prediction.writers import open_writer
from finetune.training.hardware import choose_workers


def run(config: PredictConfig, as_yaml: str) -> Path | None:
    """Predict every image of ``input`` in order; one that cannot be read has its error as a row.

    Returns:
        The table, or None if it went to the terminal.

    Raises:
        FinetuneError: no input, no model, or an output that cannot be written.
    """
    del as_yaml
    if config.input is None:
        raise ConfigError("input: missing; give an image, a folder or a glob: input=PATH.")
    console = Console(stderr=True)
    paths = discover_inputs(str(config.input))
    model = load_model(config.run)
    predictions = predict_images(
        paths,
        model=model.probabilities,
        preprocess_resize=model.preprocess.resize,
        class_names=model.class_names,
        task=model.description.task,
        batch_size=config.batch_size,
        workers=min(choose_workers(config.workers), -(-len(paths) // config.batch_size)),
        max_megapixels=model.description.max_megapixels,
    )
    errors = 0
    with open_writer(config.output, model.class_names) as writer:
        for prediction in track(
            predictions,
            "Predicting",
            total=len(paths),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ):
            writer.write(prediction)
            errors += prediction.error is not None
    where = f" to {config.output}" if config.output else ""
    failed = f", {errors} of them unreadable (see the column `error`)" if errors else ""
    noun = "row" if len(paths) == 1 else "rows"
    console.print(f"{len(paths)} {noun}{where}{failed}.", markup=False, soft_wrap=True)
    return config.output
