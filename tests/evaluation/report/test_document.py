"""A document is closed: its policy names exactly its own style and script."""

import base64
import hashlib
import html
import os
import re
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.report.content import Content
from finetune.evaluation.report.document import (
    content_security_policy,
    escape_undecodable,
    read_asset,
)
from finetune.evaluation.report.page import render_report


def _fingerprint(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_policy_lets_in_the_own_style_and_script_alone(
    content: Callable[..., Content],
) -> None:
    page = render_report(content())
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found
    rules = dict(rule.strip().split(" ", 1) for rule in html.unescape(found[1]).split(";"))
    assert rules.keys() == {
        "default-src",
        "img-src",
        "style-src",
        "script-src",
        "base-uri",
        "form-action",
    }
    (style,) = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert rules["style-src"] == f"'sha256-{_fingerprint(style)}'"
    assert rules["script-src"] == f"'sha256-{_fingerprint(script)}'"
    assert rules["img-src"] == "data:"
    assert {rules[name] for name in ("default-src", "base-uri", "form-action")} == {"'none'"}
    assert '<meta name="referrer" content="no-referrer">' in page


def test_the_own_style_and_script_hold_nothing_that_ends_or_loads_them() -> None:
    for name in ("page.css", "page.js"):
        text = read_asset(name)
        assert "</" not in text
        assert "http" not in text
        assert "url(" not in text
        assert "innerHTML" not in text


@given(st.text(), st.text())
def test_other_texts_have_other_policies(one: str, other: str) -> None:
    same = content_security_policy(style=one, script="") == content_security_policy(
        style=other, script=""
    )
    assert same == (one == other)


@given(st.text(st.characters(codec=None)))
def test_any_text_becomes_utf8_and_utf8_stays(text: str) -> None:
    escaped = escape_undecodable(text)
    assert escaped.encode("utf-8").decode("utf-8") == escaped
    assert escape_undecodable(escaped) == escaped


@given(st.binary())
def test_bytes_of_a_name_are_written_in_hexadecimal(name: bytes) -> None:
    text = os.fsdecode(name)
    assert escape_undecodable(text) == name.decode("utf-8", "backslashreplace")
