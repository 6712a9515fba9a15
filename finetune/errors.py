"""Every error that this tool raises on purpose.

    FinetuneError            a failure of the run; exit status 1
    ├── TrainingError        training went wrong (non-finite loss, …)
    ├── ExportError          an exported file does not answer like the model
    └── UserError            a mistake of the user's; exit status 2
        ├── ConfigError      a key, a value or an option
        ├── DataError        a folder, an image, a split
        │   └── ImageError   one file that cannot be decoded
        ├── ModelError       a backbone, its weights, a bundle or a checkpoint
        └── RunError         a run directory
    Stopped                  a signal asked to stop; exit status 128 + its number

A message says what was got, what was expected, and the nearest fix.
"""

import difflib
import signal
from collections.abc import Iterable


class FinetuneError(Exception):
    """A failure with a message for the user. ``exit_status`` is what the process ends with."""

    exit_status = 1


class Stopped(BaseException):
    """A signal asked to stop, and what there was to save is saved; like ``KeyboardInterrupt``.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.exit_status = 128 + number


class TrainingError(FinetuneError):
    """Training cannot go on."""


class ExportError(FinetuneError):
    """An exported file could not be made, or does not answer like the model."""


class UserError(FinetuneError):
    """Something that the user typed or pointed at is wrong."""

    exit_status = 2


class ConfigError(UserError):
    """A configuration key, value or option is wrong."""


class DataError(UserError):
    """The data cannot be used as given."""


class ImageError(DataError):
    """One image file cannot be decoded; the message is the reason, without the path."""


class ModelError(UserError):
    """A backbone, weights, bundle or checkpoint cannot be used as given."""


class RunError(UserError):
    """A run directory cannot be used as given."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Name the option nearest to ``word`` as ``" Did you mean `x`?"``, or return ``""``.

    The leading space lets a message append the result as it is.
    """
    lowered = {option.lower(): option for option in options}
    typed = word.lower()
    close = difflib.get_close_matches(typed, lowered, n=1, cutoff=0.6)
    # difflib takes the longest match first, and so misses `baba` for `bba`.
    close += [option for option in lowered if _lacks_one_letter(typed, option)]
    return f" Did you mean `{lowered[close[0]]}`?" if close else ""


def _lacks_one_letter(word: str, option: str) -> bool:
    return len(option) > 3 and any(
        option[:index] + option[index + 1 :] == word for index in range(len(option))
    )
