"""What is taken from a request, and what is refused while it is read."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from finetune.serving.uploads import MAX_IMAGES, Room, read_images

LIMIT = 100_000


class _Body:
    """A body in pieces, which remembers how many bytes were taken."""

    def __init__(self, content: bytes, piece: int = 1000) -> None:
        self.content, self.piece, self.taken = content, piece, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.content), self.piece):
            chunk = self.content[start : start + self.piece]
            self.taken += len(chunk)
            yield chunk


def _read(kind: str | None, body: _Body, max_bytes: int = LIMIT) -> list[bytes]:
    headers = Headers({"content-type": kind} if kind else {})
    return asyncio.run(read_images(headers, body, max_bytes=max_bytes))


def _form(*parts: tuple[str, bytes], filename: str | None = "a.png") -> bytes:
    end = f'; filename="{filename}"' if filename is not None else ""
    return b"".join(
        b'--cut\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        % (name.encode(), end.encode(), content)
        for name, content in parts
    ) + (b"--cut--\r\n")


FORM = "multipart/form-data; boundary=cut"


@pytest.mark.parametrize("kind", [None, "image/jpeg", "IMAGE/png; a=b", "application/octet-stream"])
def test_a_raw_body_is_one_image(kind: str | None) -> None:
    assert _read(kind, _Body(b"abc" * 999)) == [b"abc" * 999]


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.integers(1, 400))
def test_files_come_out_as_they_went_in_however_they_are_cut(
    contents: list[bytes], piece: int
) -> None:
    if any(b"\r\n--cut" in content for content in contents):
        return
    body = _Body(_form(*(("images", content) for content in contents)), piece)
    assert _read(FORM, body) == contents


@given(st.integers(0, 3000), st.integers(1, 2000), st.integers(1, 500), st.booleans())
def test_no_more_is_read_than_the_limit_and_one_piece(
    size: int, limit: int, piece: int, is_form: bool
) -> None:
    content = _form(("images", b"x" * size)) if is_form else b"x" * (size + 1)
    body = _Body(content, piece)
    if len(content) <= limit:
        assert _read(FORM if is_form else None, body, limit)
        return
    with pytest.raises(HTTPException) as refusal:
        _read(FORM if is_form else None, body, limit)
    assert refusal.value.status_code == 413
    assert body.taken <= limit + piece


@pytest.mark.parametrize("filename", ["../../etc/passwd", "<img src=x>", "a\x00b", "ü" * 500, ""])
def test_the_name_of_a_file_does_not_matter(filename: str) -> None:
    assert _read(FORM, _Body(_form(("images", b"abc"), filename=filename))) == [b"abc"]


@pytest.mark.parametrize(
    ("kind", "content", "status"),
    [
        (None, b"", 400),
        ("text/html", b"abc", 415),
        ("application/x-www-form-urlencoded", b"images=abc", 415),
        ("multipart/form-data", b"abc", 400),
        (FORM, b"", 400),
        (FORM, b"garbage", 400),
        (FORM, b"--cut--\r\n", 400),
        (FORM, _form(("images", b"abc"))[:60], 400),
        (FORM, _form(("model", b"abc")), 400),
        (FORM, _form(("images", b"abc"), ("model", b"abc")), 400),
        (FORM, _form(("images", b"abc"), filename=None), 400),
        (FORM, _form(*[("images", b"a")] * (MAX_IMAGES + 1)), 400),
        (FORM, b"--cut\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--cut--\r\n", 400),
        (FORM, b"--cut\r\n" + b"A: " + b"b" * 50_000 + b"\r\n\r\nabc\r\n--cut--\r\n", 400),
    ],
)
def test_anything_else_is_refused_in_one_line(
    kind: str | None, content: bytes, status: int
) -> None:
    with pytest.raises(HTTPException) as refusal:
        _read(kind, _Body(content))
    assert refusal.value.status_code == status
    assert "\n" not in refusal.value.detail


def test_ten_thousand_parts_are_refused_near_the_beginning() -> None:
    body = _Body(_form(*[("images", b"")] * 10_000))
    with pytest.raises(HTTPException) as refusal:
        _read(FORM, body, max_bytes=10**7)
    assert refusal.value.status_code == 400
    assert body.taken < 10_000 < len(body.content)


def _status(room: Room, length: str | None) -> int:
    try:
        with room.place(Headers({"content-length": length} if length is not None else {})):
            return 200
    except HTTPException as refusal:
        return refusal.status_code


def test_a_declared_length_above_the_limit_is_refused_at_once() -> None:
    room = Room(4, 1000)
    lengths = {"1000": 200, "1001": 413, "9" * 400: 413, "-1": 200, "x": 200, "²": 200, None: 200}
    assert {length: _status(room, length) for length in lengths} == lengths


def _fail_inside(room: Room) -> None:
    with room.place(Headers({"content-length": "1"})):
        assert _status(room, "1") == 503
        raise ValueError("inside")


def test_a_full_room_refuses_and_is_free_again_whatever_happened_inside() -> None:
    room = Room(2, 1000)
    with room.place(Headers({"content-length": "1"})):
        with pytest.raises(ValueError, match="inside"):
            _fail_inside(room)
        assert _status(room, "1") == 200


def test_bytes_held_are_bounded_and_one_without_length_counts_as_the_largest() -> None:
    room = Room(100, 1000)

    def fill(places: int) -> int:
        with room.place(Headers({})):
            return fill(places - 1) if places > 1 else _status(room, "1")

    assert fill(7) == 200
    assert fill(8) == 503
    assert _status(room, None) == 200
