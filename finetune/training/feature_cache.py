"""Features of images, kept between runs: the backbone runs only over images that are new.

A file holds the rows of one run, by the digest of each image's content; no file is ever changed.
So processes that store at the same time do not meet, and a run that was stopped keeps what it
had stored.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune.cache import is_own_file, open_cache_folder
from finetune.errors import RunError
from finetune.run import replacing

VERSION = 1
"""To be raised when the same backbone and image would get other features."""
SUFFIX = ".safetensors"
DIGEST_BYTES = 32
CHUNK_IMAGES = 20_000
"""Features are stored whenever so many are computed."""


@dataclass(frozen=True)
class Features:
    """The features of some images.

    Attributes:
        rows: ``[N, F]`` float32.
        from_cache: how many of them were not computed now.
    """

    rows: Tensor
    from_cache: int


def features_key(
    backbone: nn.Module, *, name: str, preprocessing: Mapping[str, Any], precision: str
) -> str:
    """Name what decides a feature, but for the image: 64 hexadecimal digits.

    Args:
        backbone: its weights count, wherever and in whatever order of memory they lie.
        name: of its architecture.
        preprocessing: plain values: everything that changes the pixels after decoding.
        precision: of the computation.
    """
    known = {
        "version": VERSION,
        "versions": [PIL.__version__, timm.__version__, torch.__version__],
        "name": name,
        "preprocessing": preprocessing,
        "precision": precision,
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for entry, tensor in sorted(backbone.state_dict().items()):
        digest.update(repr((entry, tuple(tensor.shape), str(tensor.dtype))).encode())
        content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(memoryview(content.numpy()))
    return digest.hexdigest()


class FeatureCache:
    """Rows of features by digest. Made by `open_feature_cache`.

    Attributes:
        notes: what went wrong with the cache itself; the run goes on without it.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.notes: list[str] = []
        self._folder = folder
        self._key = key

    def get(self, digests: Sequence[str]) -> dict[str, Tensor]:
        """Return the rows ``[F]`` that are stored, from every file that can be trusted.

        A damaged or foreign file is removed, where that is possible.

        Args:
            digests: SHA-256 of the images' content, in hexadecimal.
        """
        wanted = {bytes.fromhex(digest): digest for digest in digests}
        found: dict[str, Tensor] = {}
        for file in self._files():
            try:
                stored = _read(file, wanted)
            except OSError:
                continue
            except (SafetensorError, ValueError):
                with suppress(OSError):  # gone already, or not ours to remove
                    file.unlink()
                continue
            if found and stored and _width(found) != _width(stored):
                continue
            found.update(stored)
        return found

    def add(self, digests: Sequence[str], features: Tensor) -> None:
        """Store rows; never raises for a disk that does not take them.

        Args:
            digests: ``N``, each once.
            features: ``[N, F]`` float32, finite.
        """
        if self._folder is None or not digests:
            return
        joined = bytes.fromhex("".join(digests))
        keys = torch.frombuffer(bytearray(joined), dtype=torch.uint8).view(-1, DIGEST_BYTES)
        rows = features.contiguous()
        name = f"{self._key}-{hashlib.sha256(joined).hexdigest()[:16]}{SUFFIX}"
        file = self._folder / name
        tensors = {"digests": keys, "features": rows, "checksums": _checksums(keys, rows)}
        try:
            with replacing(file) as temporary:
                save_file(tensors, temporary)
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self.notes.append(f"Nothing is kept for the next time: {file}: {reason}.")

    def _files(self) -> Iterator[Path]:
        if self._folder is not None:
            yield from sorted(self._folder.glob(f"{self._key}-*{SUFFIX}"))


def open_feature_cache(folder: Path | None, *, key: str) -> FeatureCache:
    """Open the features of one backbone, as other runs left them.

    Args:
        folder: where features lie; made where there is none. None keeps nothing, and so does a
            folder that cannot be had, which is noted.
        key: from `features_key`.
    """
    if folder is None:
        return FeatureCache(None, key)
    try:
        return FeatureCache(open_cache_folder(folder), key)
    except RunError as error:
        cache = FeatureCache(None, key)
        cache.notes.append(f"Nothing is kept for the next time: {error}")
        return cache


def cached_features(
    cache: FeatureCache,
    digests: Sequence[str | None],
    *,
    compute: Callable[[Sequence[int]], Tensor],
    on_progress: Callable[[int], None] | None = None,
) -> Features:
    """Take the features that are known, compute and store the others.

    Images of equal content are computed once.

    Args:
        cache: of the backbone.
        digests: of ``N`` >= 1 images; one without a digest is computed in any case, and not kept.
        compute: places in ``digests``, of n images, to their features ``[n, F]`` float32: what
            `finetune.training.features.compute_features` gives for these ``indices``.
        on_progress: called with the number of images that are known, first and after each
            ``CHUNK_IMAGES``.
    """
    known = cache.get([digest for digest in digests if digest is not None])
    from_cache = sum(digest in known for digest in digests)
    places_of: dict[str | int, list[int]] = {}
    for place, digest in enumerate(digests):
        places_of.setdefault(place if digest is None else digest, []).append(place)
    new = [places[0] for name, places in places_of.items() if name not in known]
    rows = torch.empty(len(digests), _width(known) if known else 0)
    for digest, row in known.items():
        rows[places_of[digest]] = row
    for start in range(0, len(new), CHUNK_IMAGES):
        if on_progress is not None:
            on_progress(from_cache + start)
        chunk = new[start : start + CHUNK_IMAGES]
        computed = compute(chunk)
        if not known and start == 0:
            rows = torch.empty(len(digests), computed.shape[1])
        named = [(index, digest) for index, place in enumerate(chunk) if (digest := digests[place])]
        cache.add([digest for _, digest in named], computed[[index for index, _ in named]])
        for row, place in zip(computed, chunk, strict=True):
            rows[places_of[digests[place] or place]] = row
    if on_progress is not None:
        on_progress(len(digests))
    return Features(rows, from_cache)


def _read(file: Path, wanted: Mapping[bytes, str]) -> dict[str, Tensor]:
    """Read those rows of a file that are wanted.

    Raises:
        ValueError: it is not what `FeatureCache.add` wrote for this user.
        SafetensorError: likewise.
        OSError: it cannot be read.
    """
    if not is_own_file(file):
        raise ValueError("another user's, or no file")
    with safe_open(file, framework="pt") as stored:
        if set(stored.keys()) != {"checksums", "digests", "features"}:
            raise ValueError("other contents")
        keys, rows, checksums = (
            stored.get_tensor(name) for name in ("digests", "features", "checksums")
        )
    shapes = (tuple(keys.shape), tuple(checksums.shape))
    if rows.ndim != 2 or shapes != ((len(rows), DIGEST_BYTES), (len(rows),)):
        raise ValueError("other shapes")
    if (keys.dtype, rows.dtype, checksums.dtype) != (torch.uint8, torch.float32, torch.int64):
        raise ValueError("other types")
    joined = keys.numpy().tobytes()
    places = [
        place
        for place in range(len(rows))
        if joined[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES] in wanted
    ]
    # Only what is wanted is read from the disk, so that a small run may follow a large one.
    chosen = rows[places]
    if not torch.equal(_checksums(keys[places], chosen), checksums[places]):
        raise ValueError("damaged")
    if not bool(chosen.isfinite().all()):
        raise ValueError("not finite")
    return {
        wanted[joined[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES]]: row
        for place, row in zip(places, chosen, strict=True)
    }


def _checksums(keys: Tensor, rows: Tensor) -> Tensor:
    """Give a number for each digest with its row, ``[N]`` int64."""
    pairs = zip(keys.numpy(), rows.numpy(), strict=True)
    return torch.tensor(
        [zlib.crc32(row.data, zlib.crc32(key.data)) for key, row in pairs], dtype=torch.int64
    )


def _width(rows: Mapping[str, Tensor]) -> int:
    return len(next(iter(rows.values())))
