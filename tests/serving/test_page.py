"""The page in a real browser: Chromium without a window, driven over a pipe.

Chrome DevTools Protocol: one JSON object after another, each ended by a zero byte, on the file
descriptors 3 (to the browser) and 4 (from it). No package is needed.
"""

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from finetune.serving.answering import Served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

_FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_PATIENCE_SECONDS = 30
_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execvp(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One page of one browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._left = b""
        self._count = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            assert select.select([self._from], [], [], _PATIENCE_SECONDS)[0], "no answer"
            piece = os.read(self._from, 1 << 16)
            assert piece, "the browser has ended"
            self._left += piece
        message, self._left = self._left.split(b"\0", 1)
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        end = time.monotonic() + _PATIENCE_SECONDS
        while not self.evaluate(expression):
            assert time.monotonic() < end, (expression, self.evaluate("document.body.innerText"))
            time.sleep(0.05)

    def choose(self, path: Path) -> None:
        """Choose a file as a person does, and wait for what the page says of it."""
        self.evaluate("at('status').textContent = ''")
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)
        self.wait_for("!['', '…'].includes(at('status').textContent.slice(-1))")

    def screenshot(self, path: Path, *, width: int, height: int, scheme: str) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(b64decode(picture["data"]))

    def problems(self) -> list[str]:
        """Give what the console and the policy complained of, and requests to other places."""
        self.evaluate("1")
        logged = [e["params"]["entry"]["text"] for e in self.events if e["method"] == LOG]
        thrown = [str(e["params"]) for e in self.events if e["method"] == THROWN]
        urls = [e["params"]["request"]["url"] for e in self.events if e["method"] == REQUEST]
        allowed = ("http://127.0.0.1:", "data:", "blob:")
        return logged + thrown + [url for url in urls if not url.startswith(allowed)]


LOG = "Log.entryAdded"
THROWN = "Runtime.exceptionThrown"
REQUEST = "Network.requestWillBeSent"


@pytest.fixture(scope="module")
def open_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Browser]]:
    read_there, write_here = os.pipe()
    read_here, write_there = os.pipe()
    profile = tmp_path_factory.mktemp("chromium")
    command = [sys.executable, "-c", _START, str(read_there), str(write_there), str(CHROMIUM)]
    process = subprocess.Popen(
        [*command, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(read_there, write_there),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_there)
    os.close(write_there)
    try:
        yield lambda: Browser(write_here, read_here)
    finally:
        os.close(write_here)  # the end of the pipe ends the browser
        os.close(read_here)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _serving(app: FastAPI) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _showing(browser: Browser, app: FastAPI) -> Iterator[Browser]:
    with _serving(app) as url:
        browser.send("Page.navigate", url=url)
        browser.wait_for("document.readyState == 'complete' && at('model').textContent[0] == '3'")
        yield browser
        browser.send("Page.navigate", url="about:blank")


@pytest.fixture
def page(
    open_browser: Callable[[], Browser], make_app: Callable[..., FastAPI]
) -> Iterator[Browser]:
    with _showing(open_browser(), make_app(max_megabytes=1)) as browser:
        yield browser


@pytest.fixture
def doubtful_page(
    open_browser: Callable[[], Browser], make_app: Callable[..., FastAPI], doubtful: Served
) -> Iterator[Browser]:
    with _showing(open_browser(), make_app(doubtful)) as browser:
        yield browser


HOSTILE_NAME = "<img src=x onerror=\"document.title='hacked'\">.png"


def test_an_image_is_answered_with_classes_and_a_map_and_names_stay_text(
    page: Browser, pictures: list[bytes], tmp_path: Path
) -> None:
    photo = tmp_path / HOSTILE_NAME
    photo.write_bytes(pictures[0])
    page.choose(photo)
    assert not page.evaluate("at('result').hidden")
    names = page.evaluate(
        "[...document.querySelectorAll('.row span:first-child')].map(x => x.textContent)"
    )
    shares = page.evaluate(
        "[...document.querySelectorAll('.row span:last-child')].map(x => x.textContent)"
    )
    assert sorted(names) == sorted(["ant", CLASS_SCRIPT, CLASS_IMAGE])
    numbers = [float(share.removesuffix(" %")) for share in shares]
    assert numbers == sorted(numbers, reverse=True)
    assert sum(numbers) == pytest.approx(100, abs=0.3)
    assert page.evaluate("at('label').textContent") == names[0]
    # The model has neither sets nor a threshold.
    assert page.evaluate("at('doubt').hidden && at('set').hidden")
    # The map lies on the square that the model saw, and both are there.
    page.wait_for("at('image').naturalWidth == 64 && at('heat').naturalWidth == 64")
    boxes = page.evaluate(
        "['image', 'heat'].map(id => at(id).getBoundingClientRect())"
        ".map(box => [box.x, box.y, box.width, box.height].map(Math.round))"
    )
    assert boxes[0] == boxes[1]
    assert boxes[0][2] > 100
    # Nothing hostile became markup, and the page asked nobody else.
    assert page.evaluate("document.title") == "finetune: drop an image"
    assert page.evaluate("document.querySelectorAll('script').length") == 1
    assert page.evaluate("document.querySelectorAll('img').length") == 2
    assert page.problems() == []


CLASS_SCRIPT = "<script>document.title='hacked'</script>"
CLASS_IMAGE = "<img src=x onerror=\"document.title='hacked'\">"


def test_doubt_is_told_in_plain_words(
    doubtful_page: Browser, pictures: list[bytes], tmp_path: Path
) -> None:
    page = doubtful_page
    (tmp_path / "a.png").write_bytes(pictures[0])
    page.choose(tmp_path / "a.png")
    page.wait_for("at('status').className == 'done'")
    assert not page.evaluate("at('doubt').hidden || at('set').hidden")
    own = page.evaluate("document.querySelector('.row span:last-child').textContent")
    told = page.evaluate("at('doubt').innerText")
    assert told.startswith("Not sure: better ask a person\n")
    assert f"a probability of {own}. Below 100.0 %, its answers were wrong too often" in told
    names = page.evaluate(
        "[...document.querySelectorAll('.row span:first-child')].map(x => `“${x.textContent}”`)"
    )
    assert page.evaluate("at('set').textContent") == (
        f"May be any of: {', '.join(names)}. Such a list holds the right class for about 95 % of "
        "images."
    )
    assert page.evaluate("at('status').textContent").endswith("Not sure: better ask a person.")
    assert page.evaluate("document.title") == "finetune: drop an image"
    assert page.problems() == []


def test_a_sure_answer_after_a_doubtful_one_hides_the_doubt(doubtful_page: Browser) -> None:
    page = doubtful_page
    say = "showDoubt({abstained: %s, probability: %s, prediction_set: %s})"
    page.evaluate("calibrated = {abstain_below: 0.99961, coverage: 0.9}")
    page.evaluate(say % ("true", 0.99958, json.dumps([str(n) for n in range(25)])))
    told = page.evaluate("at('why').textContent")
    # Rounded to a tenth, both would be 100.0 %.
    assert "probability of 99.958 %. Below 99.961 %" in told
    text = page.evaluate("at('set').textContent")
    assert "“19” or 5 more. Such a list holds the right class for about 90 % of images." in text
    page.evaluate(say % ("false", 1, '["0"]'))
    assert page.evaluate("at('doubt').hidden && at('set').hidden")
    page.evaluate(say % ("null", 1, "null"))
    assert page.evaluate("at('doubt').hidden && at('set').hidden")


def test_the_policy_stops_a_script_that_got_in(page: Browser) -> None:
    page.evaluate("document.body.insertAdjacentHTML('beforeend', `" + CLASS_IMAGE + "`)")
    page.evaluate(
        "document.head.append(Object.assign(document.createElement('script'), "
        "{textContent: \"document.title = 'hacked'\"}))"
    )
    page.wait_for("performance.now() > 0")
    time.sleep(0.2)
    assert page.evaluate("document.title") == "finetune: drop an image"
    assert any("Content Security Policy" in problem for problem in page.problems())


def test_bad_and_large_files_are_named_with_their_reason(page: Browser, tmp_path: Path) -> None:
    for name, content, reason in (
        ("notes.png", b"hello", "not an image"),
        ("empty.png", b"", "empty"),
        ("large.png", bytes(3_000_000), "1 megabytes"),
    ):
        (tmp_path / name).write_bytes(content)
        page.choose(tmp_path / name)
        assert page.evaluate("at('status').className") == "wrong"
        told = page.evaluate("at('status').textContent")
        assert told.startswith(f"{name}: ")
        assert reason in told
        assert page.evaluate("at('result').hidden")


def test_a_dropped_and_a_pasted_image_are_taken_too(page: Browser, pictures: list[bytes]) -> None:
    page.evaluate(f"var bytes = new Uint8Array({list(pictures[0])}); var all = new DataTransfer();")
    page.evaluate("all.items.add(new File([bytes], 'given.png'))")
    for event in (
        "new DragEvent('drop', {dataTransfer: all, bubbles: true, cancelable: true})",
        "new ClipboardEvent('paste', {clipboardData: all, bubbles: true})",
    ):
        page.evaluate("at('status').textContent = ''")
        page.evaluate(f"document.body.dispatchEvent({event})")
        page.wait_for("at('status').textContent.endsWith('%')")


def test_the_slider_and_the_keyboard_work(
    page: Browser, pictures: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(pictures[0])
    page.choose(tmp_path / "a.png")
    order = []
    for _ in range(3):
        for kind in ("keyDown", "keyUp"):
            page.send(
                "Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9
            )
        order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert order == ["file", "slider", "A"]
    page.evaluate("at('slider').focus()")
    for kind in ("keyDown", "keyUp"):
        page.send(
            "Input.dispatchKeyEvent", type=kind, key="Home", code="Home", windowsVirtualKeyCode=36
        )
    assert page.evaluate("at('slider').value") == "0"
    assert page.evaluate("at('heat').style.opacity") == "0"


_CONTRAST = """
(() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
      .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!colour.endsWith(", 0)")) return colour;
    }
  };
  at("status").className = "wrong";
  return [...document.querySelectorAll("h1, h2, p, label, b, span, a, figcaption, footer, code")]
    .map(node => [light(getComputedStyle(node).color), light(behind(node))])
    .map(([a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_text_is_readable_and_nothing_is_cut_off(
    doubtful_page: Browser, pictures: list[bytes], tmp_path: Path, scheme: str, width: int
) -> None:
    page = doubtful_page
    (tmp_path / ("long" * 30 + ".png")).write_bytes(pictures[0])
    page.choose(tmp_path / ("long" * 30 + ".png"))
    page.screenshot(tmp_path / "page.png", width=width, height=900, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = page.evaluate(_CONTRAST)
    assert len(contrasts) > 15
    assert min(contrasts) >= 4.5  # WCAG 2.2, level AA
