"""What keeps other sites' pages away, and this page from loading anything else.

The server listens on 127.0.0.1, where any page in a browser on this machine can send requests:
by its name resolved to 127.0.0.1 (DNS rebinding; the ``Host`` gives it away), or across sites
(the ``Origin`` does).
"""

from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES = ("127.0.0.1", "localhost")


class Guard:
    """Refuses requests from elsewhere, adds headers to every answer, and keeps failures inside.

    Args:
        app: what is guarded.
        headers: added to each answer.
        report: told in a line what failed; the answer does not say.
    """

    def __init__(
        self, app: ASGIApp, headers: Mapping[str, str], report: Callable[[str], None]
    ) -> None:
        self.app = app
        self.headers = headers
        self.report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        is_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_started
            is_started = True
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        headers = Headers(scope=scope)
        if not is_local(headers.getlist("host"), headers.getlist("origin")):
            refusal = JSONResponse({"error": "only pages and programs of this machine"}, 403)
            await refusal(scope, receive, send_with_headers)
            return
        try:
            await self.app(scope, receive, send_with_headers)
        except Exception as error:
            self.report(f"{scope['path']!r}: {type(error).__name__}: {error}")
            if is_started:
                raise
            failure = JSONResponse({"error": "the server failed; its terminal says why"}, 500)
            await failure(scope, receive, send_with_headers)


def is_local(hosts: Sequence[str], origins: Sequence[str]) -> bool:
    """Tell whether a request names this machine, and comes from its page or from no page.

    Args:
        hosts: values of ``Host``; any port will do, as with a tunnel.
        origins: values of ``Origin``.

    >>> is_local(["127.0.0.1:8000"], ["http://127.0.0.1:8000"])
    True
    >>> is_local(["evil.example"], [])
    False
    """
    if len(hosts) != 1 or len(origins) > 1:
        return False
    try:
        url = urlsplit(f"http://{hosts[0]}")
        is_plain = url.netloc == hosts[0] and url.port != 0
    except ValueError:
        return False
    if not is_plain or url.username is not None or url.hostname not in LOCAL_NAMES:
        return False
    return not origins or origins[0] == f"http://{hosts[0]}"


def security_headers(scripts: Sequence[str], styles: Sequence[str]) -> dict[str, str]:
    """Allow the page its own script and style by their hashes, images, its server; nothing else.

    Args:
        scripts: hashes such as ``sha256-…``.
        styles: the same.
    """
    policy = {
        "default-src": ["'none'"],
        "script-src": [f"'{digest}'" for digest in scripts],
        "style-src": [f"'{digest}'" for digest in styles],
        "img-src": ["'self'", "blob:", "data:"],
        "connect-src": ["'self'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
    return {
        "Content-Security-Policy": "; ".join(f"{k} {' '.join(v)}" for k, v in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
