"""Downloads from a server of our own on this machine, which misbehaves as it is told."""

import errno
import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from finetune.data.public.download import CHUNK_BYTES, Patience, PublicFile, check_file, download
from finetune.errors import DataError

CONTENT = np.random.default_rng(0).bytes(400_000)
MIDDLE = 3 * CHUNK_BYTES
QUICK = Patience(attempts=3, pause_s=0, connect_s=5, read_s=5)


class Request(BaseHTTPRequestHandler):
    """One request; the answers of the server are functions of it, and the last one repeats."""

    def do_GET(self):
        self.server.ranges.append(self.headers["Range"])
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *_):
        pass

    def reply(self, body, status=200, *, length=None, **headers):
        self.send_response(status)
        if length is None:
            length = len(body)
        if length != "unknown":
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    @property
    def begin(self):
        return int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))

    @property
    def partial(self):
        last = len(CONTENT) - 1
        return {"status": 206, "Content_Range": f"bytes {self.begin}-{last}/{len(CONTENT)}"}


def whole(request):
    request.reply(CONTENT)


def ranged(request):
    request.reply(CONTENT[request.begin :], **(request.partial if request.begin else {}))


def cut(request):
    """Send some of what was announced and close the connection."""
    rest = CONTENT[request.begin :]
    sent = rest[: MIDDLE - request.begin]
    request.reply(sent, length=len(rest), **(request.partial if request.begin else {}))


def stall(request):
    """Send some of what was announced, and nothing more until the test ends."""
    request.reply(CONTENT[:MIDDLE], length=len(CONTENT))
    request.wfile.flush()
    request.server.is_over.wait(60)


def silence(request):
    request.server.is_over.wait(60)


def status(code):
    return lambda request: request.send_error(code)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Request)
        self.answers: list[Callable[[Request], None]] = [ranged]
        self.ranges: list[str | None] = []
        self.is_over = threading.Event()
        self.file = PublicFile(
            url=f"http://127.0.0.1:{self.server_port}/images.npz?download=1",
            checksum=f"md5:{hashlib.md5(CONTENT).hexdigest()}",
            size_bytes=len(CONTENT),
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.is_over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "images.npz"


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_whole_file_is_fetched_once(server, path, capfd):
    received = []
    download(server.file, path, on_progress=received.append, patience=QUICK)
    download(server.file, path, patience=QUICK)
    assert content_of(path.parent) == {"images.npz": CONTENT}
    assert server.ranges == [None]
    assert received == sorted(received)
    assert received[-1] == len(CONTENT)
    assert capfd.readouterr() == ("", "")


def test_a_broken_download_goes_on_in_the_same_call(server, path):
    server.answers = [cut, ranged]
    download(server.file, path, patience=QUICK)
    assert content_of(path.parent) == {"images.npz": CONTENT}
    assert server.ranges == [None, f"bytes={MIDDLE}-"]


def test_a_broken_download_goes_on_in_the_next_call(server, path):
    server.answers = [cut, status(503)]
    with pytest.raises(DataError, match=r"503 Service Unavailable\. 0 of 0 MB are kept"):
        download(server.file, path, patience=QUICK)
    assert content_of(path.parent) == {"images.npz.part": CONTENT[:MIDDLE]}

    server.answers = [ranged]
    received = []
    download(server.file, path, on_progress=received.append, patience=QUICK)
    assert content_of(path.parent) == {"images.npz": CONTENT}
    assert server.ranges == [None, f"bytes={MIDDLE}-", f"bytes={MIDDLE}-"]
    assert min(received) > MIDDLE


def test_a_server_that_stops_in_the_middle_is_asked_again(server, path):
    server.answers = [stall, ranged]
    download(server.file, path, patience=Patience(attempts=2, pause_s=0, read_s=0.3))
    assert content_of(path.parent) == {"images.npz": CONTENT}
    (_, resumed) = server.ranges
    assert 0 < int(resumed.removeprefix("bytes=").rstrip("-")) <= MIDDLE


def test_attempts_end(server, path):
    def trickle(request):
        sent = CONTENT[request.begin :][:CHUNK_BYTES]
        request.reply(sent, length=len(CONTENT) - request.begin, **request.partial)

    server.answers = [cut, trickle]
    patience = Patience(attempts=2, pause_s=0)
    with pytest.raises(DataError, match="broke off"):
        download(server.file, path, patience=patience)
    assert server.ranges == [None, f"bytes={MIDDLE}-"]
    assert content_of(path.parent) == {"images.npz.part": CONTENT[: MIDDLE + CHUNK_BYTES]}


def test_an_interruption_keeps_what_was_received(server, path):
    def interrupt(received):
        if received > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.file, path, on_progress=interrupt, patience=QUICK)
    (name, kept), *others = content_of(path.parent).items()
    assert (name, others) == ("images.npz.part", [])
    assert len(kept) > 100_000
    assert kept == CONTENT[: len(kept)]
    download(server.file, path, patience=QUICK)
    assert server.ranges == [None, f"bytes={len(kept)}-"]
    assert content_of(path.parent) == {"images.npz": CONTENT}


def test_a_part_that_is_whole_needs_no_server(path):
    path.with_name("images.npz.part").write_bytes(CONTENT)
    file = PublicFile(
        "http://127.0.0.1:9/", f"md5:{hashlib.md5(CONTENT).hexdigest()}", len(CONTENT)
    )
    download(file, path, patience=QUICK)
    assert content_of(path.parent) == {"images.npz": CONTENT}


@pytest.mark.parametrize(
    "answer",
    [
        whole,
        lambda request: request.reply(b"", 416, Content_Range=f"bytes */{len(CONTENT)}"),
        lambda request: request.reply(b"?", 206, Content_Range="bytes 7-7/9"),
        lambda request: request.reply(b"?", 206),
    ],
    ids=["no ranges", "not satisfiable", "another range", "no content-range"],
)
def test_a_server_that_cannot_resume_begins_anew(server, path, answer):
    path.with_name("images.npz.part").write_bytes(b"x" * MIDDLE)
    server.answers = [answer, whole]
    download(server.file, path, patience=QUICK)
    assert content_of(path.parent) == {"images.npz": CONTENT}
    assert server.ranges[0] == f"bytes={MIDDLE}-"
    assert len(server.ranges) == (1 if answer is whole else 2)


def test_another_checksum_is_refused_and_removed(server, path):
    other = PublicFile(server.file.url, f"md5:{'0' * 32}", len(CONTENT))
    with pytest.raises(DataError, match="does not match") as caught:
        download(other, path, patience=QUICK)
    assert "0" * 32 in str(caught.value)
    assert hashlib.md5(CONTENT).hexdigest() in str(caught.value)
    assert content_of(path.parent) == {}


def test_an_older_part_of_something_else_is_removed(server, path):
    path.with_name("images.npz.part").write_bytes(b"x" * MIDDLE)
    with pytest.raises(DataError, match="begins anew"):
        download(server.file, path, patience=QUICK)
    download(server.file, path, patience=QUICK)
    assert content_of(path.parent) == {"images.npz": CONTENT}


def test_another_length_replaces_nothing(server, path):
    part = path.with_name("images.npz.part")
    part.write_bytes(CONTENT[:MIDDLE])
    server.answers = [lambda request: request.reply(b"<html>Please log in</html>")]
    with pytest.raises(DataError, match="sends 26 bytes, expected 400,000"):
        download(server.file, path, patience=QUICK)
    assert content_of(path.parent) == {part.name: CONTENT[:MIDDLE]}


def test_an_endless_answer_ends(server, path):
    server.answers = [lambda request: request.reply(CONTENT * 2, length="unknown")]
    received = []
    with pytest.raises(DataError, match="does not match"):
        download(server.file, path, on_progress=received.append, patience=QUICK)
    assert received[-1] < 1.2 * len(CONTENT)
    assert content_of(path.parent) == {}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (status(404), "the server answers 404 Not Found"),
        (status(500), "the server answers 500 Internal Server Error"),
        (silence, "nobody answers"),
        (lambda request: None, "no connection"),
    ],
    ids=["404", "500", "silence", "hang up"],
)
def test_a_server_that_sends_nothing_is_asked_once(server, path, answer, message):
    server.answers = [answer]
    with pytest.raises(DataError, match=f"cannot be fetched: .*{message}"):
        download(server.file, path, patience=Patience(read_s=0.3))
    assert server.ranges == [None]
    assert content_of(path.parent) == {}


def test_a_refused_connection(server, path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="cannot be fetched: there is no connection"):
        download(server.file, path)
    assert content_of(path.parent) == {}


def test_a_redirection_is_followed_with_the_range(server, path):
    path.with_name("images.npz.part").write_bytes(CONTENT[:MIDDLE])
    server.answers = [lambda request: request.reply(b"", 302, Location="/elsewhere"), ranged]
    download(server.file, path, patience=QUICK)
    assert server.ranges == [f"bytes={MIDDLE}-"] * 2
    assert content_of(path.parent) == {"images.npz": CONTENT}


def test_a_full_disk_is_named_and_the_part_kept(server, path):
    def fail(received):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match=r"cannot be written: No space left on device; 0 MB are"):
        download(server.file, path, on_progress=fail, patience=QUICK)
    assert list(content_of(path.parent)) == ["images.npz.part"]


def test_a_file_brought_by_hand_is_only_compared(server, path):
    path.write_bytes(CONTENT)
    before = path.stat()
    check_file(server.file, path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    path.write_bytes(CONTENT[:MIDDLE])
    with pytest.raises(DataError, match="got 196,608 bytes with the checksum md5:"):
        check_file(server.file, path)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        check_file(server.file, path.with_name("missing.npz"))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        check_file(server.file, path.parent)
    assert server.ranges == []


def test_nothing_of_the_network_is_imported_before_it_is_needed():
    code = (
        "import sys, finetune.commands.data\n"
        "print(sorted({'pooch', 'requests', 'urllib3', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
