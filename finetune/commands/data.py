"""``finetune data``: fetch the public images of a data set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import assert_never

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from finetune.cache import find_cache, open_cache_folder
from finetune.config import DataConfig
from finetune.data.public.download import check_file, download
from finetune.data.public.medmnist import PNEUMONIA_MNIST, Collection, is_written, write_collection
from finetune.errors import ConfigError, DataError
from finetune.run import typed
from finetune.terminal import open_console


def run(config: DataConfig, as_yaml: str) -> Path:
    """Fetch the images of ``dataset.download`` into ``dataset.root``, unless they are there.

    Returns:
        The folder.

    Raises:
        DataError: they cannot be fetched, are others, or something else is at that place.
    """
    del as_yaml
    root = config.dataset.root
    if config.dataset.download is None or root is None:
        raise ConfigError(
            "dataset: there is nothing to download for it; expected "
            f"{typed('data', dataset='medical')}."
        )
    match config.dataset.download:
        case "pneumonia_mnist":
            fetch(
                PNEUMONIA_MNIST,
                root,
                config.source,
                cache_folder=config.cache_folder,
                console=open_console(),
            )
        case _:
            assert_never(config.dataset.download)
    return root


def fetch(
    collection: Collection,
    root: Path,
    source: Path | None,
    *,
    cache_folder: Path | None,
    console: Console,
) -> None:
    """Download a collection, or take it from ``source``, and write its images to ``root``.

    A downloaded file is kept until the images are complete; ``source`` is only read.

    Raises:
        DataError: see `run`.
    """
    if is_written(collection, root):
        _say(console, f"{root} holds all {collection.num_images:,} images already.")
        return
    if source is not None:
        check_file(collection.file, source)
    archive = source or _download(collection, cache_folder, console)
    with _progress(console, "Writing images", collection.num_images) as on_progress:
        write_collection(collection, archive, root, on_progress=on_progress)
    if source is None:
        archive.unlink()
    _say(console, f"{collection.num_images:,} images in {root}. {collection.terms}")
    _say(console, f"Next: {typed('inspect', **{'dataset': 'medical', 'dataset.root': root})}")


def _download(collection: Collection, cache_folder: Path | None, console: Console) -> Path:
    file = collection.file
    archive = open_cache_folder(find_cache(cache_folder).downloads) / f"{collection.name}.npz"
    _say(console, f"Downloading {file.url} ({file.size_bytes / 1e6:.0f} MB).")
    try:
        with _progress(console, "Downloading", file.size_bytes) as on_progress:
            download(file, archive, on_progress=on_progress)
    except DataError as error:
        by_hand = typed("data", dataset="medical", source="PATH")
        raise DataError(
            f"{error}\nBy hand: open the address in a browser, on another computer if need be, and "
            f"give the file: {by_hand}."
        ) from error
    return archive


@contextmanager
def _progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
