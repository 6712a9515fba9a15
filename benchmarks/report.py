"""What the benchmarks print: tables, and sections of RESULTS.md under a heading of their own.

Imports nothing large: the peak memory of a process that is started counts from that of its parent.
"""

import math
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def machine() -> str:
    """Describe cores, processor, GPU and torch in a line."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    named = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    cpu = named[1].strip() if named else platform.processor() or platform.machine()
    native = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in text]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [
        f"{cores} cores of {cpu}" + (f" ({', '.join(native)})" if native else ""),
        _gpu() or "no GPU",
        f"torch {version('torch').split('+')[0]}",
        date.today().isoformat(),
    ]
    return ", ".join(parts)


def _gpu() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    shown = subprocess.run([program, "-L"], capture_output=True, text=True, check=False).stdout
    return re.sub(r"^GPU \d+: | \(UUID.*$", "", shown.splitlines()[0]) if shown else None


def mean_and_deviation(values: Iterable[float | None], digits: int, *, scale: float = 1.0) -> str:
    """Write the mean, with the standard deviation where there are several values; – for none."""
    known = [scale * value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "–"
    mean = f"{statistics.mean(known):,.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):,.{digits}f}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write Markdown; all columns but the first are numbers."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def show(heading: str, body: str, *, writes: bool) -> None:
    """Print a section, and with ``writes`` put it into RESULTS.md."""
    text = f"## {heading}\n\n`{shown_command()}` on {machine()}.\n\n{body.strip()}\n"
    print(f"\n{text}", flush=True)
    if writes:
        RESULTS.write_text(replace_section(RESULTS.read_text(encoding="utf-8"), heading, text))


def shown_command() -> str:
    """Give the command that runs now; of files elsewhere on this machine, only the names."""
    words = []
    for word in sys.argv[1:]:
        is_elsewhere = Path(word).is_absolute() or word.startswith("..")
        words.append(Path(word).name if is_elsewhere else word)
    return f".venv/bin/python benchmarks/{Path(sys.argv[0]).name} {shlex.join(words)}".strip()


def replace_section(text: str, heading: str, section: str) -> str:
    """Put a section where one with its heading stands, or at the end.

    Args:
        text: Markdown; a section reaches to the next heading of the second level.
        heading: without ``##``.
        section: the new one, with its heading.
    """
    start = re.search(rf"^## {re.escape(heading)}$", text, re.MULTILINE)
    if start is None:
        return f"{text.rstrip()}\n\n{section}"
    following = re.search(r"^## ", text[start.end() :], re.MULTILINE)
    rest = text[start.end() + following.start() :] if following else ""
    return text[: start.start()] + section + (f"\n{rest}" if rest else "")
