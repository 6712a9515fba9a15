"""Nothing is asked of a network by what needs none: proven by Python's own record of sockets.

A hook in every process, children included, writes down each Internet socket that is made, bound,
connected or written to, and each name that is looked up. Sockets of the file system, by which the
processes of one training talk to each other, do not count.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOOK = """
import os, socket, sys

EVENTS = {f"socket.{name}" for name in (
    "__new__", "bind", "connect", "getaddrinfo", "gethostbyaddr", "gethostbyname", "getnameinfo",
    "sendmsg", "sendto",
)}

def watch(event, args):
    if event not in EVENTS:
        return
    family = args[1] if event == "socket.__new__" else getattr(args[0], "family", "a name")
    if family in (socket.AF_INET, socket.AF_INET6, "a name"):
        file = os.open(os.environ["SOCKETS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, f"{event} {args[1:]!r} in {sys.argv}\\n".encode())
        os.close(file)

sys.addaudithook(watch)
"""

CONTROL = """
import multiprocessing, socket

def look_up():
    socket.getaddrinfo("127.0.0.1", 1)

if __name__ == "__main__":
    with socket.socket() as one, socket.socketpair()[0]:
        one.bind(("127.0.0.1", 0))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as two:
        try:
            two.sendto(b"", ("::1", 9))
        except OSError:
            pass
    for method in ("fork", "spawn"):
        process = multiprocessing.get_context(method).Process(target=look_up)
        process.start()
        process.join()
"""

IMPORT = "import finetune; [getattr(finetune, name) for name in finetune.__all__]"

VERBS = """
import sys
import torch
from safetensors.torch import save_file
from finetune.cli import main
from finetune.models.backbones import create_backbone

if __name__ == "__main__":
    images, folder = sys.argv[1:]
    save_file(create_backbone("nano", image_size_px=32).state_dict(), f"{folder}/nano.safetensors")
    quick = ["model=nano", "model.image_size_px=32", "trainer=cpu", "trainer.epochs=1",
             "trainer.batch_size=16", f"runs={folder}", f"dataset.root={images}"]
    run = f"{folder}/stripes/first"
    for words in (
        ["inspect", f"dataset.root={images}", f"output={folder}/inspected"],
        ["train", *quick, "name=first", f"model.weights={folder}/nano.safetensors",
         "dataset.workers=2", "evidence.resamples=20", "evidence.pictures=2", "logger=tensorboard"],
        ["evaluate", f"run={run}", "workers=2", "evidence=none", "split=val"],
        ["predict", f"run={run}", f"input={images}", f"output={folder}/labels.csv", "workers=2"],
    ):
        status = main(words)
        assert status == 0, (words, status)
    print("All ran.")
"""


@pytest.fixture
def record(tmp_path):
    """Return a function that runs a script, and gives what the hook wrote and what was printed."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    sockets = tmp_path / "sockets"

    def run(script, *words):
        path = tmp_path / "script.py"
        path.write_text(script)
        # Whichever `finetune` this test runs with.
        paths = [tmp_path / "hook", Path(__file__).parents[2]]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
        done = subprocess.run(
            [sys.executable, path, *map(str, words)],
            env={**environ, "SOCKETS": str(sockets)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return sockets.read_text().splitlines() if sockets.exists() else [], done.stdout

    return run


def test_the_hook_sees_processes_of_every_kind(record):
    seen, _ = record(CONTROL)
    events = [line.split()[0].removeprefix("socket.") for line in seen]
    print(seen)
    assert events.count("getaddrinfo") == 2  # one forked, one spawned
    assert {"bind", "sendto"} <= set(events)
    assert events.count("__new__") == 2  # and none for the pair


def test_import_opens_no_socket(record):
    assert record(IMPORT)[0] == []


def test_no_verb_opens_a_socket(record, stripes, tmp_path):
    seen, output = record(VERBS, stripes, tmp_path)
    assert "All ran." in output
    assert seen == []
