"""A small untrained model whose class names are hostile, and ways to talk to it."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
import torch
from fastapi import FastAPI

from finetune.commands.serve import as_served
from finetune.data.preprocess import Preprocess
from finetune.exports.bundle import Model, load_model, save_bundle
from finetune.exports.description import PredictionSets
from finetune.models.backbones import create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head
from finetune.serving.answering import Served
from finetune.serving.app import create_app

CLASS_NAMES = [
    "ant",
    "<script>document.title='hacked'</script>",
    "<img src=x onerror=\"document.title='hacked'\">",
]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body = create_backbone("nano", image_size_px=64)
    info = describe_backbone(body)
    head = create_head("linear", in_features=info.num_features, num_classes=3)
    classifier = Classifier(body, head)
    torch.manual_seed(3)
    torch.nn.init.normal_(head.linear.weight, std=0.2)
    folder = tmp_path_factory.mktemp("bundle")
    save_bundle(
        folder,
        classifier=classifier,
        preprocess=Preprocess(64, "crop", 0.875, "bilinear", info.mean, info.std),
        backbone_name="nano",
        head_name="linear",
        head_arguments={},
        class_names=CLASS_NAMES,
        task="multiclass",
        max_megapixels=2,
        versions={},
        command="finetune train",
    )
    return folder


@pytest.fixture(scope="session")
def model(bundle: Path) -> Model:
    return load_model(bundle)


@pytest.fixture(scope="session")
def doubtful(model: Model) -> Served:
    """Give the model as if it had been found to be never sure, and every class possible."""
    sets = PredictionSets(coverage=0.95, limit=1, penalty=0, free_ranks=1, images=100)
    return replace(as_served(model), abstain_below=1.0, coverage=0.95, read_sets=sets.read)


@pytest.fixture
def failures() -> list[str]:
    """Collect what the server reports on its terminal."""
    return []


@pytest.fixture
def make_app(model: Model, failures: list[str]) -> Callable[..., FastAPI]:
    def make(served: Any = None, **settings: Any) -> FastAPI:
        return create_app(
            served or as_served(model), version="1", report=failures.append, **settings
        )

    return make


@pytest.fixture
def talk() -> Callable[[FastAPI, Callable[[httpx.AsyncClient], Awaitable[Any]]], Any]:
    """Run a conversation with an application, without a network."""

    def run(app: FastAPI, conversation: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            transport = httpx.ASGITransport(app)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client,
            ):
                return await conversation(client)

        return asyncio.run(main())

    return run


@pytest.fixture
def ask(make_app: Callable[..., FastAPI], talk: Any) -> Callable[..., httpx.Response]:
    """Send one request to a new application."""

    def send(method: str, path: str, **request: Any) -> httpx.Response:
        return talk(make_app(), lambda client: client.request(method, path, **request))

    return send


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Forty small images, no two alike, as PNG."""
    return [_png(index) for index in range(40)]


def _png(seed: int) -> bytes:
    smooth = np.random.default_rng(seed).random((5, 6, 3))
    image = PIL.Image.fromarray((smooth * 255).astype(np.uint8))
    file = io.BytesIO()
    size = (60 + seed, 90 - seed)
    image.resize(size, PIL.Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()
