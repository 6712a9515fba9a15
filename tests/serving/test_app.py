"""Requests and answers, good ones and hostile ones, without a network."""

import asyncio
import base64
import io
import struct
import threading
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

import finetune.serving.app
from finetune.commands.serve import as_served
from finetune.exports.bundle import Model
from finetune.serving.answering import Served


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def _huge_png(side: int) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(bytes(10**6)))


def _half_jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()[: len(file.getvalue()) // 2]


BAD = {
    "huge PNG": (_huge_png(30_000), "megapixels"),
    "half a JPEG": (_half_jpeg(), "damaged"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", "SVG"),
    "text": (b"/etc/passwd", "not an image"),
    "HTML": (b"<html><script>alert(1)</script>", "HTML"),
    "pickle": (b"\x80\x04\x95cposix\nsystem\n", "not an image"),
    "ZIP": (b"PK\x03\x04" + bytes(100), "ZIP"),
    "PNG of no pixels": (_huge_png(0), "damaged"),
    "zeros": (bytes(1000), "not an image"),
}


def test_one_image_in_every_way_gives_the_numbers_of_predict(
    ask: Any, model: Model, pictures: list[bytes]
) -> None:
    (expected,) = model.predict([PIL.Image.open(io.BytesIO(pictures[0]))])
    for request in (
        {"content": pictures[0]},
        {"content": pictures[0], "headers": {"Content-Type": "image/png"}},
        {"files": {"images": ("../../<b>.exe", pictures[0])}},
    ):
        response = ask("POST", "/predict", **request)
        assert response.status_code == 200
        (row,) = response.json()["predictions"]
        assert row["label"] == expected.label
        assert row["labels"] == list(expected.labels)
        assert list(row["probabilities"]) == model.class_names
        assert row["probability"] == pytest.approx(expected.probability, abs=1e-6)
        assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)


def test_turned_deep_and_indexed_images_are_answered_as_from_a_file(
    make_app: Any, talk: Any, model: Model, pictures: list[bytes], tmp_path: Path
) -> None:
    image = PIL.Image.open(io.BytesIO(pictures[0]))
    for orientation in range(1, 9):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"turned_{orientation}.jpg", exif=exif, quality=95)
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    image.convert("P").save(tmp_path / "indexed.gif")
    paths = sorted(tmp_path.iterdir())
    files = [("images", (path.name, path.read_bytes())) for path in paths]
    response = talk(make_app(), lambda client: client.post("/predict", files=files))
    rows = response.json()["predictions"]
    assert len(rows) == 10
    for row, expected in zip(rows, model.predict(paths), strict=True):
        assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("path", ["/predict", "/explain"])
def test_a_bad_image_is_refused_with_its_reason(ask: Any, name: str, path: str) -> None:
    content, reason = BAD[name]
    response = ask("POST", path, content=content)
    assert response.status_code == 422
    (error,) = response.json().values()
    assert reason in error
    assert "\n" not in error
    assert "Traceback" not in error


def test_a_bad_file_among_good_ones_is_an_error_in_its_place(
    ask: Any, pictures: list[bytes]
) -> None:
    contents = [pictures[0], BAD["SVG"][0], b"", pictures[1]]
    files = [("images", (f"{index}.png", content)) for index, content in enumerate(contents)]
    response = ask("POST", "/predict", files=files)
    assert response.status_code == 200
    rows = response.json()["predictions"]
    assert ["error" in row for row in rows] == [False, True, True, False]
    assert rows[0] != rows[3]


def test_a_huge_upload_is_refused_declared_and_in_chunks(make_app: Any, talk: Any) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 10_000
            yield bytes(10_000)

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.post("/predict", content=bytes(200_000)),
            await client.post("/predict", content=endless()),
            # A length that lies: no more is read than was announced.
            await client.post("/predict", content=endless(), headers={"Content-Length": "5"}),
        ]

    responses = talk(make_app(max_megabytes=0.1), conversation)
    assert [response.status_code for response in responses] == [413] * 3
    assert all("0.1 megabytes" in response.json()["error"] for response in responses[:2])
    assert sent <= 130_000


def test_a_full_queue_says_come_back_and_later_answers_again(
    make_app: Any, talk: Any, model: Model, pictures: list[bytes]
) -> None:
    go_on = threading.Event()

    def slow(images: Tensor) -> Tensor:
        assert go_on.wait(10)
        return model.probabilities(images)

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        first = [asyncio.create_task(client.post("/predict", content=pictures[0])) for _ in "ab"]
        await asyncio.sleep(0.05)
        refused = await client.post("/predict", content=pictures[0])
        health = await client.get("/health")
        go_on.set()
        answered = await asyncio.gather(*first)
        return [refused, health, *answered, await client.post("/predict", content=pictures[0])]

    app = make_app(replace(as_served(model), probabilities=slow), max_queue=2)
    refused, *answered = talk(app, conversation)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert [response.status_code for response in answered] == [200] * 4


def test_slow_uploads_and_slow_answers_end(
    make_app: Any,
    talk: Any,
    model: Model,
    pictures: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = threading.Event()

    def stuck(images: Tensor) -> Tensor:
        end.wait(10)
        return model.probabilities(images)

    async def drip() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b"x"

    async def conversation(client: httpx.AsyncClient) -> list[int]:
        statuses = [
            (await client.post("/predict", content=drip())).status_code,
            (await client.post("/predict", content=pictures[0])).status_code,
        ]
        end.set()
        return [*statuses, (await client.post("/predict", content=pictures[0])).status_code]

    monkeypatch.setattr(finetune.serving.app, "UPLOAD_SECONDS", 0.2)
    monkeypatch.setattr(finetune.serving.app, "ANSWER_SECONDS", 0.5)
    app = make_app(replace(as_served(model), probabilities=stuck), max_queue=1)
    assert talk(app, conversation) == [408, 504, 200]


def test_a_failing_model_is_500_without_a_word_about_it(
    make_app: Any, talk: Any, model: Model, pictures: list[bytes], failures: list[str]
) -> None:
    def broken(images: Tensor) -> Tensor:
        raise RuntimeError("/home/me/secret")

    app = make_app(replace(as_served(model), probabilities=broken))
    response = talk(app, lambda client: client.post("/predict", content=pictures[0]))
    assert response.status_code == 500
    assert "secret" not in response.text
    assert len(failures) == 1
    assert "/home/me/secret" in failures[0]


def test_an_explanation_shows_the_square_that_the_model_saw(
    ask: Any, model: Model, pictures: list[bytes]
) -> None:
    response = ask("POST", "/explain", content=pictures[0])
    assert response.status_code == 200
    answer = response.json()
    crop, heat = (
        np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(answer[key].split(",")[1]))))
        for key in ("crop", "heat")
    )
    pixels = torch.from_numpy(np.array(PIL.Image.open(io.BytesIO(pictures[0])))).permute(2, 0, 1)
    seen = model.preprocess.resize(pixels)[0].permute(1, 2, 0)
    assert np.abs(crop - seen.numpy()).max() <= 0.5
    assert heat.shape == (64, 64, 4)
    assert heat[..., 3].max() == 255
    (row,) = ask("POST", "/predict", content=pictures[0]).json()["predictions"]
    assert answer["label"] == row["label"]
    two = [("images", ("a", pictures[0]))] * 2
    assert ask("POST", "/explain", files=two).status_code == 400


def test_health_says_which_model_answers(ask: Any, model: Model) -> None:
    answer = ask("GET", "/health").json()
    assert answer["status"] == "ok"
    assert answer["class_names"] == model.class_names
    assert answer["model_sha256"] == model.description.weights_sha256
    assert answer["calibrated"] == {"temperature": 1, "coverage": None, "abstain_below": None}
    assert {"finetune", "torch", "timm"} <= set(answer["versions"])


def test_what_a_model_was_calibrated_to_is_told_and_used(
    make_app: Any, talk: Any, doubtful: Served, pictures: list[bytes]
) -> None:
    async def conversation(client: httpx.AsyncClient) -> list[Any]:
        files = [("images", (str(index), content)) for index, content in enumerate(pictures[:9])]
        answers = [await client.get("/health"), await client.post("/predict", files=files)]
        return [answer.json() for answer in answers]

    health, answer = talk(make_app(doubtful), conversation)
    assert health["calibrated"] == {"temperature": 1, "coverage": 0.95, "abstain_below": 1}
    assert len(answer["predictions"]) == 9
    for row in answer["predictions"]:
        assert row["abstained"] is True
        assert sorted(row["prediction_set"]) == sorted(row["probabilities"])
        shares = [row["probabilities"][name] for name in row["prediction_set"]]
        assert shares == sorted(shares, reverse=True)
        assert row["prediction_set"][0] == row["label"]


def test_a_model_of_before_says_that_it_knows_neither(ask: Any, pictures: list[bytes]) -> None:
    (row,) = ask("POST", "/predict", content=pictures[0]).json()["predictions"]
    assert (row["abstained"], row["prediction_set"]) == (None, None)


def test_openapi_describes_what_is_there_and_no_page_of_another_site_is(ask: Any) -> None:
    schema = ask("GET", "/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/explain", "/health"}
    body = schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "image/*", "application/octet-stream"}
    fields = schema["components"]["schemas"]
    assert set(fields["Prediction"]["required"]) == set(fields["Prediction"]["properties"])
    assert fields["Prediction"]["properties"]["abstained"]["anyOf"] == [
        {"type": "boolean"},
        {"type": "null"},
    ]
    assert fields["Prediction"]["properties"]["prediction_set"]["anyOf"] == [
        {"type": "array", "items": {"type": "string"}},
        {"type": "null"},
    ]
    assert set(fields["Calibrated"]["properties"]) == {"temperature", "coverage", "abstain_below"}
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect", "/../../etc/passwd", "/static"):
        response = ask("GET", path)
        assert response.status_code == 404
        assert set(response.json()) == {"error"}
    assert ask("GET", "/predict").status_code == 405
    assert "://" not in ask("GET", "/").text


def test_a_multilabel_model_may_give_no_label(
    make_app: Any, talk: Any, model: Model, pictures: list[bytes]
) -> None:
    few = replace(
        as_served(model), task="multilabel", probabilities=lambda images: torch.full((1, 3), 0.25)
    )
    response = talk(make_app(few), lambda client: client.post("/predict", content=pictures[0]))
    (row,) = response.json()["predictions"]
    assert (row["label"], row["labels"]) == ("", [])
    assert row["probability"] == pytest.approx(0.75**3)
