"""Reports of any size, and a page of a browser: Chromium without a window, driven over a pipe.

Chrome DevTools Protocol: one JSON object after another, each ended by a zero byte, on the file
descriptors 3 (to the browser) and 4 (from it). No package is needed.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.evaluation.report.content import (
    Bin,
    Case,
    ClassRow,
    Content,
    Finding,
    Gallery,
    MetricRow,
    Neighbour,
    OperatingRow,
    Series,
    Value,
    Worry,
)
from finetune.evaluation.report.pictures import overlay, picture


@cache
def noisy_picture(seed: int, side_px: int = 48) -> bytes:
    return picture(np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), np.uint8))


@cache
def noisy_map(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return overlay(rng.integers(0, 256, (48, 48, 3), np.uint8), rng.random((48, 48)))


def make_case(index: int, truth: str, given: str, *, has_pictures: bool = True) -> Case:
    seed = index % 7
    near = tuple(
        Neighbour(f"train/{truth}/{k}.png", truth, 0.9 - 0.1 * k, noisy_picture(k, 24))
        for k in range(2)
    )
    return Case(
        path=f"val/{truth}/{index}.png",
        truth=truth,
        given=given,
        probability=0.9,
        picture=noisy_picture(seed) if has_pictures else None,
        heat=noisy_map(seed) if has_pictures else None,
        note="A sentence of its own." if index == 0 else "",
        neighbours=near if has_pictures else (),
    )


def _confusion(num_classes: int, images: int) -> tuple[tuple[int, ...], ...]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, num_classes, images)
    given = np.where(rng.random(images) < 0.8, truth, rng.integers(0, num_classes, images))
    matrix = np.zeros((num_classes, num_classes), int)
    np.add.at(matrix, (truth, given), 1)
    return tuple(tuple(row) for row in matrix.tolist())


def _curves(names: tuple[str, ...], points: int) -> tuple[Series, ...]:
    x = np.linspace(0, 1, points)
    return tuple(
        Series(name, tuple(x), tuple(x ** (0.1 + 0.3 * index / len(names))))
        for index, name in enumerate(names)
    )


def build_content(
    names: tuple[str, ...] = ("ants", "bees"),
    *,
    images: int = 200,
    is_multilabel: bool = False,
    points: int = 50,
) -> Content:
    """Make a report in which every part is there."""
    count = len(names)
    confusion = _confusion(count, images)
    mistakes = [(t, p) for t in range(count) for p in range(count) if t != p and confusion[t][p]]
    share = Value(0.948, 0.902, 0.976)
    undefined = Value(None)
    return Content(
        title="What the model knows",
        summary="A resnet18 was fitted to some images.",
        split="val",
        headline=MetricRow("accuracy", "Share that is right.", True, {"val": share}),
        headline_text=f"Of {images} images, 94.8 % are answered rightly.",
        worries=tuple(Worry(f"Worry {k}", "Because of this.", "Do that.") for k in range(3)),
        class_names=names,
        counts={"train": (100,) * count, "val": tuple(sum(row) for row in confusion)},
        metrics=(
            MetricRow("accuracy", "Share that is right.", True, {"val": share, "test": undefined}),
            MetricRow("log loss", "Surprise.", False, {"val": Value(0.158184, 0.11, 0.2144)}),
        ),
        metrics_text="By bootstrap.",
        per_class=tuple(
            ClassRow(
                name,
                sum(confusion[k]),
                sum(row[k] for row in confusion),
                share,
                Value(0.5 + 0.4 * k / count, 0.4, 0.95),
                share,
                undefined if k == count - 1 else share,
                share,
            )
            for k, name in enumerate(names)
        ),
        split_text="By folders.",
        audit_text="All images were opened.",
        findings=(
            Finding("near_duplicates", "warning", 12, "Some are alike.", "Look.", ("a.png",)),
        ),
        epochs=tuple(
            {
                "epoch": float(k),
                "train_loss": 1 / k if k else None,
                "val_loss": 0.5,
                "val_accuracy": 0.9,
                "lr": 1e-4,
            }
            for k in range(4)
        ),
        monitor="val_accuracy",
        best_epoch=2,
        confusion=() if is_multilabel else confusion,
        cells={}
        if is_multilabel
        else {
            (t, p): tuple(make_case(k, names[t], names[p]) for k in range(2))
            for t, p in [(0, 0), *mistakes[:40]]
        },
        roc=_curves(names, points),
        precision_recall=_curves(names, points),
        operating_points=(OperatingRow("Youden", 0.42, share, share, share, undefined),)
        if count == 2
        else (),
        operating_text="Chosen on validation.",
        reliability={
            "before": (Bin(0.75, 0.7, 20), Bin(0.95, 1.0, 80), Bin(0.2, 0.0, 0)),
            "after": (Bin(0.72, 0.7, 20),),
        },
        calibration_text="A temperature was fitted.",
        risk_coverage=Series("", tuple(k / 50 for k in range(1, 51)), (0.02,) * 50),
        abstain_at=(0.9, 0.02),
        abstention_text="Below 0.7 a person decides.",
        sets_text="Sets hold 1.1 classes.",
        galleries=(
            Gallery(
                "Sure, and wrong",
                "Look at these first.",
                tuple(make_case(k, names[0], names[1]) for k in range(8)),
            ),
            Gallery("Unseen", "No picture.", (make_case(0, "a", "b", has_pictures=False),)),
        ),
        heat_text="Grad-CAM.",
        decisions=(("optimizer.lr", "0.0001 (the head is fitted already)"), ("device", "CPU")),
        facts=(("time", "31 s"),),
        reproduce=("finetune train dataset=insects",),
        deploy=(("A folder", "finetune predict input=IMAGES"),),
    )


def empty_content() -> Content:
    """Make the smallest report that there may be."""
    row = MetricRow("accuracy", "", True, {"val": Value(None)})
    return Content("Title", "Summary", "val", row, "", (), ("a", "b"), {}, (), "", ())


PAYLOADS = (
    "<script>hacked=1</script>",
    "</script><script>hacked=1</script>",
    "</style><script>hacked=1</script>",
    "</title><script>hacked=1</script>",
    '"><img src=x onerror=hacked=1>',
    "'><img src=x onerror=hacked=1>",
    "<img src=x onerror=hacked=1>",
    "<svg onload=hacked=1>",
    "</svg><svg/onload=hacked=1>",
    "<svg><style>*{background:url(//evil.example/x)}</style></svg>",
    "</desc><script>hacked=1</script>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'>",
    "<a href=javascript:hacked=1>x</a>",
    'javascript:hacked=1//"',
    '" onmouseover="hacked=1" x="',
    '" autofocus onfocus=hacked=1 x="',
    "<style>@import '//evil.example/x.css'</style>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example/>",
    "{{7*191}}{% raw %}${7*191}<%= 7*191 %>",
    "--><script>hacked=1</script><!--",
    "]]><script>hacked=1</script>",
    "\u202e\u2028<object data=//evil.example/x></object>\x00",
)


def hostile_content() -> Content:
    """Put every payload into every place that takes anybody's text."""
    good = build_content(PAYLOADS)
    everything = " ".join(PAYLOADS)
    row = MetricRow(everything, everything, True, {everything: Value(0.5, 0.4, 0.6)})
    cases = tuple(
        Case(
            f"val/{text}.png",
            text,
            text + "2",
            0.5,
            noisy_picture(0),
            noisy_map(0),
            text,
            (Neighbour(text, text, 0.5, noisy_picture(1)),),
        )
        for text in PAYLOADS
    )
    return replace(
        good,
        title=everything,
        summary=everything,
        split=everything,
        headline=row,
        headline_text=everything,
        worries=(Worry(everything, everything, everything),),
        counts={everything: (1,) * len(PAYLOADS)},
        metrics=(row,),
        metrics_text=everything,
        split_text=everything,
        audit_text=everything,
        findings=(Finding(everything, everything, 2, everything, everything, PAYLOADS),),
        epochs=tuple({"epoch": k, f"val_{everything}": 0.5, "val_loss": 0.4} for k in range(3)),
        monitor=everything,
        cells={(0, k): (cases[k],) for k in range(len(cases)) if good.confusion[0][k]},
        operating_points=(OperatingRow(everything, 0.5, *[Value(0.5)] * 4),),
        operating_text=everything,
        reliability={text: (Bin(0.5, 0.5, 3),) for text in PAYLOADS},
        calibration_text=everything,
        abstention_text=everything,
        sets_text=everything,
        galleries=(Gallery(everything, everything, cases),),
        heat_text=everything,
        decisions=tuple((text, f"{text} ({text})") for text in PAYLOADS),
        facts=tuple((text, text) for text in PAYLOADS),
        reproduce=PAYLOADS,
        deploy=tuple((text, text) for text in PAYLOADS),
    )


@pytest.fixture
def content() -> Callable[..., Content]:
    return build_content


@pytest.fixture
def smallest() -> Content:
    return empty_content()


@pytest.fixture
def hostile() -> Content:
    return hostile_content()


@pytest.fixture
def payloads() -> tuple[str, ...]:
    return PAYLOADS


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
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
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
_PATIENCE_SECONDS = 30
_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execvp(sys.argv[3], sys.argv[3:])"
)
_COMPLAINTS = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")


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
        for domain in ("Page", "Runtime", "Log", "Network"):
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

    def look(self, *, width: int = 1200, scheme: str = "light", media: str = "") -> None:
        """Choose the window, the colours, and paper or screen."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", media=media, features=[feature])

    def open(self, path: Path) -> None:
        """Open a file, and forget what happened before."""
        self.look()
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        end = time.monotonic() + _PATIENCE_SECONDS
        ready = f"location.href == '{path.as_uri()}' && document.readyState == 'complete'"
        while not self.evaluate(ready):
            assert time.monotonic() < end
            time.sleep(0.02)

    def press(self, key: str) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        code = {"Enter": 13, "Tab": 9}[key]
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text
            )

    def problems(self) -> list[str]:
        """Give what the console and the policy complained of, and every request but the file's."""
        self.evaluate("1")
        told = [str(e["params"]) for e in self.events if e["method"] in _COMPLAINTS]
        requests = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in requests]
        here = self.evaluate("location.href.split('#')[0]")
        return told + [url for url in urls if url != here and not url.startswith("data:")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
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
        yield Browser(write_here, read_here)
    finally:
        os.close(write_here)  # the end of the pipe ends the browser
        os.close(read_here)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
