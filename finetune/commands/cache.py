"""``finetune cache``: show what is kept between runs, and remove it."""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from finetune.cache import find_cache
from finetune.config import CacheConfig
from finetune.data import image_cache
from finetune.errors import RunError
from finetune.run import typed
from finetune.terminal import open_console

SUFFIXES = {
    "audits": (".parquet",),
    "downloads": (".npz", ".part"),
    "features": (".safetensors",),
    "images": (image_cache.SUFFIX,),
}


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file of the cache.

    Attributes:
        path: in one of its folders.
        bytes: that it takes on the disk.
        modified: seconds since 1970.
    """

    path: Path
    bytes: int
    modified: float


def run(config: CacheConfig, as_yaml: str) -> dict[str, list[KeptFile]]:
    """Print what is kept, after removing what shall go.

    Returns:
        What is kept now, by kind.

    Raises:
        RunError: a folder cannot be listed, or a file not removed.
    """
    del as_yaml
    console = open_console()
    cache = find_cache(config.cache_folder)
    folders = {kind: getattr(cache, kind) for kind in SUFFIXES}
    if config.clear is not None:
        for kind in folders if config.clear == "all" else [config.clear]:
            files = list_kept(folders[kind], SUFFIXES[kind])
            _remove(files)
            console.print(f"Removed from {kind}: {_summarise(files)}.")
        console.print()
    kept = {kind: list_kept(folder, SUFFIXES[kind]) for kind, folder in folders.items()}
    console.print(_table(kept, folders))
    if any(kept.values()):
        command = typed("cache", clear="all")
        console.print(f"\nRemove it: {command}", markup=False, highlight=False, soft_wrap=True)
    return kept


def list_kept(folder: Path, suffixes: tuple[str, ...]) -> list[KeptFile]:
    """List the files with one of these suffixes directly in a folder; links are left out.

    Raises:
        RunError: the folder cannot be listed, or is a link.
    """
    if folder.is_symlink():
        raise RunError(
            f"the cache {folder} is a link, which is not followed; name the folder that holds the "
            "one it points to: cache_folder=FOLDER."
        )
    try:
        found = [
            (path, path.lstat())
            for path in sorted(folder.iterdir())
            if path.suffix in suffixes and path.is_file() and not path.is_symlink()
        ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"the cache {folder} cannot be listed: {error.strerror}.") from None
    return [KeptFile(path, status.st_blocks * 512, status.st_mtime) for path, status in found]


def _remove(files: list[KeptFile]) -> None:
    for file in files:
        try:
            file.path.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{file.path} cannot be removed: {error.strerror}.") from None


def _table(kept: dict[str, list[KeptFile]], folders: dict[str, Path]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("kept")
    table.add_column("files", justify="right")
    table.add_column("size", justify="right")
    table.add_column("last written")
    table.add_column("folder", overflow="fold")
    for kind, files in kept.items():
        newest = max((file.modified for file in files), default=None)
        age = "never" if newest is None else _age(time.time() - newest)
        size = _size(sum(file.bytes for file in files))
        table.add_row(kind, str(len(files)), size, age, Text(str(folders[kind])))
    return table


def _summarise(files: list[KeptFile]) -> str:
    noun = "file" if len(files) == 1 else "files"
    return f"{len(files)} {noun}, {_size(sum(file.bytes for file in files))}"


def _size(count: int) -> str:
    value, units = float(count), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}" if value < 1000 else f"{value:.0f} {units[0]}"


def _age(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
