"""The HTTP interface: ``/predict``, ``/explain``, ``/health``, ``/openapi.json`` and a page.

Errors are ``{"error": "…"}`` with one line. No model, path or address is taken from a request.
"""

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect

from finetune.models.answers import SEPARATOR
from finetune.serving.answering import Answering, Reply, Served
from finetune.serving.guard import Guard, security_headers
from finetune.serving.uploads import FIELD, MAX_IMAGES, MULTIPART, RAW, Room, read_images

UPLOAD_SECONDS = 60.0
"""What a request may take to arrive."""
ANSWER_SECONDS = 60.0
"""What an answer may take, waiting included."""


class Prediction(BaseModel):
    """What the model says about an image; ``label`` is the labels joined by ``|``.

    Attributes:
        abstained: the answer is so improbable that a person should be asked; null where the model
            has no threshold for that.
        prediction_set: the classes that may be true, the most probable first; null where the
            model has no sets.
    """

    label: str
    labels: list[str]
    probability: float
    probabilities: dict[str, float]
    abstained: bool | None
    prediction_set: list[str] | None


class Failure(BaseModel):
    """Why there is no answer, in one line."""

    error: str


class Predictions(BaseModel):
    """One entry per image, in the order in which they were sent."""

    predictions: list[Prediction | Failure]


class Explained(BaseModel):
    """What the model saw, and where it found what speaks for ``label``, as PNG ``data:`` URLs."""

    label: str
    crop: str
    heat: str | None
    reason: str | None


class Calibrated(BaseModel):
    """What the model was calibrated to on its validation images.

    Attributes:
        temperature: that the logits are divided by; 1 leaves them as they are.
        coverage: share of images whose prediction set should hold the true class; null without
            sets.
        abstain_below: less probable answers are abstained; null for none.
    """

    temperature: float
    coverage: float | None
    abstain_below: float | None


class Health(BaseModel):
    """The model that answers."""

    status: str
    task: str
    class_names: list[str]
    calibrated: Calibrated
    model_sha256: str
    versions: dict[str, str]


def create_app(
    served: Served,
    *,
    version: str,
    max_megabytes: float = 20,
    max_queue: int = 64,
    batch_size: int = 16,
    report: Callable[[str], None],
) -> FastAPI:
    """Build the application; its threads run inside its lifespan.

    Args:
        served: the model.
        version: of this interface.
        max_megabytes: larger uploads are refused, as soon as they are known to be.
        max_queue: requests that are held at a time; further ones get status 503.
        batch_size: most images of one forward pass.
        report: told in a line about each failure that is not the sender's.
    """
    answering = Answering(served, batch_size=batch_size)
    room = Room(max_queue, int(max_megabytes * 1e6))
    page = files("finetune.serving").joinpath("page.html").read_text(encoding="utf-8")
    headers = security_headers(_hashes(page, "script"), _hashes(page, "style"))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with answering.running():
            yield

    app = FastAPI(
        title="finetune",
        description="A trained image classifier.",
        version=version,
        lifespan=lifespan,
        docs_url=None,  # it and redoc load scripts from another site
        redoc_url=None,
        middleware=[Middleware(Guard, headers=headers, report=report)],
    )
    _add_errors(app)
    _add_answers(app, answering, room)
    _add_page(app, page)
    _add_health(app, served)
    return app


def _add_page(app: FastAPI, page: str) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> str:
        return page


def _add_health(app: FastAPI, served: Served) -> None:
    @app.get("/health")
    async def health() -> Health:
        return Health(
            status="ok",
            task=served.task,
            class_names=list(served.class_names),
            calibrated=Calibrated(
                temperature=served.temperature,
                coverage=served.coverage,
                abstain_below=served.abstain_below,
            ),
            model_sha256=served.model_sha256,
            versions=dict(served.versions),
        )


def _add_answers(app: FastAPI, answering: Answering, room: Room) -> None:
    class_names = answering.served.class_names
    failures: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure} for status in (400, 408, 413, 415, 422, 503, 504)
    }

    @app.post("/predict", responses=failures, openapi_extra=_body(many=True))
    async def predict(request: Request) -> Predictions:
        """Label one or more images."""
        async with _received(request, room) as contents:
            answers = await answering.predict(contents)
        if len(answers) == 1 and isinstance(answers[0], str):
            raise HTTPException(422, answers[0])
        return Predictions(predictions=[_as_row(answer, class_names) for answer in answers])

    @app.post("/explain", responses=failures, openapi_extra=_body(many=False))
    async def explain(request: Request) -> Explained:
        """Show what the model looked at in one image: Grad-CAM of the most probable class."""
        async with _received(request, room) as contents:
            if len(contents) != 1:
                raise HTTPException(400, f"got {len(contents)} images, expected one")
            found = await answering.explain(contents[0])
        if isinstance(found, str):
            raise HTTPException(422, found)
        return Explained(**vars(found))


@asynccontextmanager
async def _received(request: Request, room: Room) -> AsyncIterator[list[bytes]]:
    """Give the images of a request; hold its place, and its time, until they are answered."""
    with room.place(request.headers) as max_bytes:
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                contents = await read_images(request.headers, request.stream(), max_bytes=max_bytes)
        except TimeoutError:
            raise HTTPException(408, "the upload took too long") from None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                yield contents
        except TimeoutError:
            raise HTTPException(504, "the answer took too long", {"Retry-After": "1"}) from None


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(AnyHTTPException)
    async def refuse(_: Request, error: AnyHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> JSONResponse:
        return JSONResponse({"error": "the connection was closed"}, 400)  # to nobody


def _as_row(reply: Reply | str, class_names: Sequence[str]) -> Prediction | Failure:
    if isinstance(reply, str):
        return Failure(error=reply)
    answer, names = reply.answer, reply.prediction_set
    return Prediction(
        label=SEPARATOR.join(answer.labels),
        labels=list(answer.labels),
        probability=answer.probability,
        probabilities=dict(zip(class_names, answer.probabilities, strict=True)),
        abstained=reply.abstained,
        prediction_set=None if names is None else list(names),
    )


def _body(*, many: bool) -> dict[str, Any]:
    """Describe the body for OpenAPI, which FastAPI cannot do for one that is read by hand."""
    file = {"type": "string", "format": "binary"}
    files_ = {"type": "array", "items": file, "minItems": 1, "maxItems": MAX_IMAGES}
    form = {"type": "object", "required": [FIELD], "properties": {FIELD: files_ if many else file}}
    content = {MULTIPART: {"schema": form}, "image/*": {"schema": file}, RAW: {"schema": file}}
    return {"requestBody": {"required": True, "content": content}}


def _hashes(page: str, element: str) -> list[str]:
    """Hash the content of each inline element, as Content-Security-Policy wants it."""
    contents = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    digests = [hashlib.sha256(content.encode()).digest() for content in contents]
    return [f"sha256-{base64.b64encode(digest).decode('ascii')}" for digest in digests]
