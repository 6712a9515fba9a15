"""One file that asks nobody: a template with its style and its script, closed by a policy.

Every text is escaped by Jinja. The policy lets nothing in but the style and the script whose
fingerprints it names, and pictures that stand in the page itself: whatever a class or a file is
called, nothing of it runs, and nothing is loaded.
"""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from finetune.evaluation.report.svg import interval_strip
from finetune.evaluation.report.wording import figure, interval, is_known, split_reason

FOLDER = Path(__file__).parent


def render_document(template: str, *, style: str, script: str, **values: Any) -> str:
    r"""Fill a template of this folder.

    Args:
        template: its file name; it has ``policy``, ``style`` and ``script``, beside ``values``.
        style: text of the only ``style`` element.
        script: text of the only ``script`` element.
        values: what the template shows.

    Returns:
        The page; text that is not UTF-8 (names of files) is written as ``\xNN``.
    """
    page = (
        _environment()
        .get_template(template)
        .render(
            policy=content_security_policy(style=style, script=script),
            # Ours, and not to be escaped: neither holds a closing tag.
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            **values,
        )
    )
    return escape_undecodable(page)


def read_asset(name: str) -> str:
    """Read a style sheet or a script of this folder."""
    return (FOLDER / name).read_text(encoding="utf-8")


def content_security_policy(*, style: str, script: str) -> str:
    """Give the strictest policy under which one style and one script still work.

    Source: W3C, Content Security Policy Level 3.
    """
    return (
        f"default-src 'none'; img-src data:; style-src '{_fingerprint(style)}'; "
        f"script-src '{_fingerprint(script)}'; base-uri 'none'; form-action 'none'"
    )


def escape_undecodable(text: str) -> str:
    r"""Write bytes that Python could not decode as ``\xNN``, as in tables of predictions.

    >>> escape_undecodable(os.fsdecode(b"caf\xe9.jpg"))
    'caf\\xe9.jpg'
    """
    return re.sub("[\ud800-\udfff]", _escape_surrogate, text)


def jpeg_url(picture: bytes) -> str:
    """Put a JPEG file into a URL."""
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode('ascii')}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_keep_together,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": figure,
        "interval": interval,
        "jpeg_url": jpeg_url,
        "reason": split_reason,
        "strip": interval_strip,
    }
    environment.tests["known"] = is_known
    return environment


def _keep_together(value: Any) -> Any:
    """Let no line end between a number and its percent sign."""
    return re.sub(r"(?<=\d) %", "\u00a0%", value) if type(value) is str else value


def _fingerprint(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _escape_surrogate(match: re.Match[str]) -> str:
    code = ord(match[0])
    # PEP 383: byte NN of a file name is decoded as U+DCNN.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
