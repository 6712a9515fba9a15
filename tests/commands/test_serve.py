"""``finetune serve`` as a process of its own: starting, answering, load, ending."""

import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import httpx
import PIL.Image
import pytest

import finetune.commands.serve
from finetune.cli import main
from finetune.exports.bundle import load_model

_PATIENCE_SECONDS = 60


class Server:
    """A running server, its address and its process."""

    def __init__(self, run: Path, *settings: str) -> None:
        command = [sys.executable, "-m", "finetune", "serve", f"run={run}", "port=0", *settings]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, (line, self.process.communicate(timeout=_PATIENCE_SECONDS))
        self.url = found[0]

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float, str]:
        """Send a signal; give the status, the seconds it took, and what was printed."""
        start = time.monotonic()
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=_PATIENCE_SECONDS)
        return self.process.returncode, time.monotonic() - start, errors

    def memory_mb(self) -> float:
        """Give the largest resident memory so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1000


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[Server]:
    running = Server(trained, "max_queue=12", "max_megabytes=2")
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate()


@pytest.fixture(scope="module")
def photos(stripes: Path) -> list[Path]:
    return sorted(stripes.rglob("*.png"))


def test_it_answers_as_the_bundle_does(server: Server, trained: Path, photos: list[Path]) -> None:
    assert httpx.get(f"{server.url}/health").json()["class_names"] == ["lying", "standing"]
    files = [("images", (path.name, path.read_bytes())) for path in photos[::10]]
    rows = httpx.post(f"{server.url}/predict", files=files).json()["predictions"]
    expected = load_model(trained).predict(photos[::10])
    assert [row["label"] for row in rows] == [answer.label for answer in expected]
    for row, answer in zip(rows, expected, strict=True):
        assert row["probabilities"] == pytest.approx(answer.probabilities, abs=1e-6)
    assert "<title>" in httpx.get(server.url).text
    assert httpx.post(f"{server.url}/explain", content=photos[0].read_bytes()).status_code == 200


def test_only_this_machine_is_listened_to(server: Server) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))  # reached by a server on 0.0.0.0


def _send_raw(server: Server, *pieces: bytes) -> bytes:
    """Send bytes; give the first ones of the answer, which may come before all are sent."""
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as sender:
        sender.settimeout(_PATIENCE_SECONDS)
        for piece in pieces:
            sender.sendall(piece)
        return sender.recv(12)


def test_huge_uploads_are_refused_before_they_have_been_sent(server: Server) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    declared = _send_raw(server, head + b"Content-Length: 99999999999\r\n\r\n", b"x")
    assert declared == b"HTTP/1.1 413"
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    chunked = _send_raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 40)
    assert chunked == b"HTTP/1.1 413"
    lying = _send_raw(server, head + b"Content-Length: -5\r\n\r\n", b"x")
    assert lying == b"HTTP/1.1 400"
    # A client that sends all of it before it reads gets its answer too.
    for content in (bytes(9_000_000), (bytes(100_000) for _ in range(90))):
        response = httpx.post(f"{server.url}/predict", content=content)
        assert response.status_code == 413
        assert "2 megabytes" in response.json()["error"]


def test_who_goes_away_in_the_middle_leaves_no_trace(server: Server, photos: list[Path]) -> None:
    for _ in range(20):  # more than may wait
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as sender:
            sender.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx"
            )
    end = time.monotonic() + _PATIENCE_SECONDS
    content = photos[0].read_bytes()
    while (answer := httpx.post(f"{server.url}/predict", content=content)).status_code == 503:
        assert time.monotonic() < end
    assert answer.status_code == 200


def test_under_load_each_request_gets_its_own_answer_and_memory_stays(
    server: Server, trained: Path, photos: list[Path]
) -> None:
    distinct = [path.read_bytes() for path in photos[::4]]
    for path in photos[:4]:
        file = io.BytesIO()
        image = PIL.Image.open(path).convert("RGB")
        image.resize((1728, 1728), PIL.Image.Resampling.NEAREST).save(file, "PNG")
        distinct.append(file.getvalue())
    images = [PIL.Image.open(io.BytesIO(content)) for content in distinct]
    expected = [answer.probabilities for answer in load_model(trained).predict(images)]
    assert len({round(probabilities["lying"], 5) for probabilities in expected}) > 15

    def send(client: httpx.Client, index: int) -> tuple[Counter[int], httpx.Response]:
        """Send until there is room, as one is told to."""
        statuses: Counter[int] = Counter()
        while True:
            content = distinct[index % len(distinct)]
            response = client.post(f"{server.url}/predict", content=content)
            statuses[response.status_code] += 1
            if response.status_code != 503:
                return statuses, response
            assert response.headers["retry-after"] == "1"
            time.sleep(0.05)

    before = server.memory_mb() if sys.platform == "linux" else 0
    with httpx.Client(timeout=_PATIENCE_SECONDS) as client, ThreadPoolExecutor(16) as senders:
        answers = list(senders.map(partial(send, client), range(200)))
    assert sum((statuses for statuses, _ in answers), Counter()).keys() <= {200, 503}
    for index, (_, response) in enumerate(answers):
        (row,) = response.json()["predictions"]
        wanted = expected[index % len(distinct)]
        assert row["probabilities"] == pytest.approx(wanted, abs=1e-6)
    if sys.platform == "linux":
        assert server.memory_mb() - before < 400
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_signal_ends_it_in_the_middle_of_an_upload(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as sender:
        sender.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")
        status, seconds, errors = server.end(signal.SIGTERM)
    assert (status, errors) == (0, "Stopped.\n")
    assert seconds < 10


def test_ctrl_c_as_soon_as_it_says_its_address_ends_it(trained: Path) -> None:
    status, seconds, errors = Server(trained).end(signal.SIGINT)
    assert (status, errors) == (0, "Stopped.\n")
    assert seconds < 10


def test_a_port_in_use_and_no_model_are_status_2(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", f"run={trained}", f"port={port}"]) == 2
    message = capsys.readouterr().err
    assert message == (
        f"ConfigError: port: {port} is in use by another program; port=0 takes a free one.\n"
    )
    assert main(["serve", f"run={tmp_path}", "port=0"]) == 2
    assert "holds no model.json" in capsys.readouterr().err
    assert main(["serve", f"run={trained}", "port=70000"]) == 2


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "python_multipart"])
def test_a_missing_package_is_one_line(
    trained: Path, missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        finetune.commands.serve,
        "find_spec",
        lambda module: None if module == missing else find_spec(module),
    )
    assert main(["serve", f"run={trained}"]) == 2
    message = capsys.readouterr().err
    assert message == ("ConfigError: serve needs other packages: pip install 'finetune[serve]'.\n")


def test_a_changed_weight_file_is_not_served(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = json.loads((trained / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(description))
    weights = bytearray((trained / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert main(["serve", f"run={tmp_path}", "port=0"]) == 2
    assert "SHA-256 differs" in capsys.readouterr().err
