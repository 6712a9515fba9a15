"""``finetune serve``: answer over HTTP, on this machine alone."""

import errno
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.console import Console
from torch import Tensor

from finetune.config import ServeConfig
from finetune.errors import ConfigError
from finetune.exports.bundle import Model, load_model
from finetune.run import versions
from finetune.terminal import open_console

if TYPE_CHECKING:
    import uvicorn

    from finetune.serving.answering import Served

ADDRESS = "127.0.0.1"
_NEEDED = ("fastapi", "python_multipart", "uvicorn")
_STOP_SECONDS = 3


def run(config: ServeConfig, as_yaml: str) -> None:
    """Serve the model of a run until Ctrl-C or SIGTERM.

    Raises:
        ConfigError: a package is missing, or the port cannot be had.
        ModelError: there is no model.
    """
    del as_yaml
    if not all(find_spec(module) for module in _NEEDED):
        raise ConfigError("serve needs other packages: pip install 'finetune[serve]'.")
    import uvicorn

    from finetune.serving.app import create_app

    console = open_console(stderr=True)
    # A port that is taken is known before the model has been read.
    with _listen(config.port) as listener:
        app = create_app(
            as_served(load_model(config.run)),
            version=versions()["finetune"],
            max_megabytes=config.max_megabytes,
            max_queue=config.max_queue,
            batch_size=config.batch_size,
            report=lambda line: _report(line, console, debug=config.debug),
        )
        settings = uvicorn.Config(
            app,
            log_level="critical",  # failures are reported above, without a traceback
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        server = uvicorn.Server(settings)
        port = listener.getsockname()[1]
        with _signals_end(server):
            sys.stdout.write(f"Serving {config.run} at http://{ADDRESS}:{port} (Ctrl-C ends it)\n")
            sys.stdout.flush()
            server.run(sockets=[listener])
    console.print("Stopped.")


def as_served(model: Model) -> "Served":
    """Give the server what it needs of a model."""
    from finetune.models.explain import class_activation_map
    from finetune.serving.answering import Served

    def heat(image: Tensor, class_index: int) -> Tensor:
        normalised = model.preprocess.normalise(image).to(model.device)
        network = model.classifier
        return class_activation_map(network.backbone, network.head, normalised, class_index)

    description = model.description
    sets = description.sets
    return Served(
        probabilities=model.probabilities,
        resize=model.preprocess.resize,
        heat=heat,
        class_names=model.class_names,
        task=description.task,
        temperature=description.temperature,
        abstain_below=description.abstain_below,
        coverage=None if sets is None else sets.coverage,
        read_sets=None if sets is None else sets.read,
        max_megapixels=description.max_megapixels,
        model_sha256=description.weights_sha256,
        versions=versions(),
    )


@contextmanager
def _listen(port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
            listener.listen()
        except OSError as error:
            raise ConfigError(f"port: {_why_not(port, error)}; port=0 takes a free one.") from None
        yield listener


def _why_not(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{port} is in use by another program"
    if error.errno == errno.EACCES:
        return f"you may not listen on {port}; expected 1024 or more"
    return f"cannot listen on {port}: {error.strerror or error}"


@contextmanager
def _signals_end(server: "uvicorn.Server") -> Iterator[None]:
    """Let a signal end the server, and no more: uvicorn raises it again when it has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(line: str, console: Console, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    console.print(" ".join(line.split()), markup=False, highlight=False, soft_wrap=True)
