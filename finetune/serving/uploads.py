"""Images out of a request, within limits that hold while it is read."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import aclosing, contextmanager

from fastapi import HTTPException
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

FIELD = "images"
MAX_IMAGES = 64
"""Files of one request."""
MULTIPART = "multipart/form-data"
RAW = "application/octet-stream"
_UPLOADS_HELD = 8


class Room:
    """How many requests, and how many of their bytes, are held at a time.

    Args:
        max_requests: further ones are told to come back.
        max_bytes: of one request; of all together, eight times as many.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._requests = max_requests
        self._bytes = _UPLOADS_HELD * max_bytes

    @contextmanager
    def place(self, headers: Headers) -> Iterator[int]:
        """Hold a place inside the block; give the bytes that the request may have.

        Raises:
            HTTPException: 413, it says that it is too large; 503, all is full.
        """
        length = headers.get("content-length", "")
        # Without a length it may become as large as any.
        needed = int(length) if length.isascii() and length.isdigit() else self.max_bytes
        if needed > self.max_bytes:
            raise _too_large(self.max_bytes)
        if self._requests < 1 or self._bytes < needed:
            raise HTTPException(503, "too many requests are waiting", {"Retry-After": "1"})
        self._requests -= 1
        self._bytes -= needed
        try:
            yield needed
        finally:
            self._requests += 1
            self._bytes += needed


async def read_images(
    headers: Headers, stream: AsyncIterable[bytes], *, max_bytes: int
) -> list[bytes]:
    """Read what was sent: files named ``images``, or one image as the body itself.

    Names of files are not looked at. Nothing is written to a disk.

    Args:
        headers: of the request.
        stream: its body.
        max_bytes: of the body.

    Raises:
        HTTPException: 400, no or too many images, or damaged; 413; 415, another type of body.
    """
    kind = headers.get("content-type", RAW).partition(";")[0].strip().lower()
    # Closed at once where the parser gives up in the middle.
    async with aclosing(_limited(stream, max_bytes)) as limited:
        if kind == MULTIPART:
            return await _read_files(headers, limited, max_bytes)
        if kind != RAW and not kind.startswith("image/"):
            raise HTTPException(
                415, f"expected {MULTIPART}, image/* or {RAW} as the type of the body"
            )
        body = bytearray()
        async for chunk in limited:
            body += chunk
    if not body:
        raise HTTPException(400, "the body is empty, expected an image")
    return [bytes(body)]


async def _read_files(
    headers: Headers, stream: AsyncGenerator[bytes, None], max_bytes: int
) -> list[bytes]:
    parser = MultiPartParser(headers, stream, max_files=MAX_IMAGES, max_fields=0)
    parser.spool_max_size = max_bytes + 1  # larger ones would go to a temporary file
    try:
        form = await parser.parse()
    except MultiPartException as error:
        reason = f"at most {MAX_IMAGES} files, each named `{FIELD}`, and nothing else"
        raise HTTPException(400, f"the form is damaged or too long; expected {reason}") from error
    try:
        files = [file for name, file in form.multi_items() if name == FIELD]
        if not files or len(files) < len(form.multi_items()):
            raise HTTPException(400, f"expected one or more files, each named `{FIELD}`")
        return [await file.read() for file in files if isinstance(file, UploadFile)]
    finally:
        await form.close()


async def _limited(stream: AsyncIterable[bytes], max_bytes: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in stream:
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(
        413, f"the upload is too large, expected at most {max_bytes / 1e6:g} megabytes"
    )
