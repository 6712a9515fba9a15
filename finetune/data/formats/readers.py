"""What Pillow and pydicom do besides reading: they raise, and they remark."""

import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

# On 8,000 damaged files Pillow raised OSError, SyntaxError, ValueError, RuntimeError and
# DecompressionBombError; the others are what its parsers raise within, and turn into those.
# pydicom raised these too on 30,000, and its own BytesLengthException.
READER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_lock = threading.Lock()
_users = 0
_saved_warnings = warnings.catch_warnings()
_saved_propagate = True


@contextmanager
def readers_are_quiet() -> Iterator[None]:
    """Keep remarks on a file's metadata from the user, or from becoming errors.

    Python's warning filters and loggers belong to the process. If each thread saved and restored
    them, two threads could restore each other's: the first one in saves them and the last one out
    restores.
    """
    global _users, _saved_warnings, _saved_propagate
    log = logging.getLogger("pydicom")
    with _lock:
        _users += 1
        if _users == 1:
            _saved_warnings = warnings.catch_warnings()
            _saved_warnings.__enter__()
            warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")
            _saved_propagate, log.propagate = log.propagate, False
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _saved_warnings.__exit__(None, None, None)
                log.propagate = _saved_propagate
