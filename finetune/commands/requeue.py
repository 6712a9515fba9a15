"""A SLURM job that was told to stop soon puts itself into the queue again."""

import re
import signal
import subprocess
from collections.abc import Callable, Mapping

SECONDS = 30


def requeue(number: int, environ: Mapping[str, str], say: Callable[[str], None]) -> bool:
    """Ask SLURM to start this job again, if it has sent SIGUSR1 (``--signal=USR1@90``).

    Started again, the same command goes on with its run; see `finetune.commands.going_on`.

    Args:
        number: of the signal.
        environ: of the process.
        say: is told what came of it.

    Returns:
        Whether SLURM took it.
    """
    job = environ.get("SLURM_JOB_ID", "")
    if number != getattr(signal, "SIGUSR1", None) or not re.fullmatch(r"\d+", job):
        return False
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(  # noqa: S603 - digits alone come from outside
            command, capture_output=True, text=True, timeout=SECONDS, check=False, env={**environ}
        )
        trouble = done.stderr.strip() or f"status {done.returncode}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        trouble = str(error)
    if trouble:
        say(f"SLURM did not take job {job} back: {trouble[:200]}")
        return False
    say(f"Job {job} is in the queue again, and will go on by itself.")
    return True
