"""Commands as a user types them, started one after another by a command of ours."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bach.core.errors import InputError, ended_by_signals

# The checkout: the package, the four scripts and the committed folds lie here.
ROOT = Path(__file__).resolve().parents[2]


def require_checkout() -> None:
    """Refuse to go on where the package was installed without the scripts.

    Raises:
        InputError: If it was.
    """
    if not (ROOT / "train_part_a.py").is_file():
        raise InputError(
            "The four scripts must lie beside the package.\n"
            f"Received: {ROOT}, which holds the package alone.\n"
            "Clone the repository, and run this command in its folder."
        )


def run_command(words: Sequence[str], again: str, shown: Sequence[str] | None = None) -> str:
    """Print a command, run it, and return the last line of its output.

    If we are interrupted or killed, the command is ended too.

    Args:
        words: The command, after `python`; one of the four scripts goes by its name alone.
        again: What goes on from there if it fails, for the error.
        shown: What to print instead of `words`.

    Raises:
        InputError: If it fails.
        KeyboardInterrupt: If we are interrupted, or ended by a signal.
    """
    print(f"\n$ python {' '.join(shown or words)}", flush=True)
    first = str(ROOT / words[0]) if words[0].endswith(".py") else words[0]
    last = ""
    with (
        ended_by_signals(),
        subprocess.Popen(
            [sys.executable, first, *words[1:]],
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                last = line.strip() or last
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise InputError(
            f"The command above must end without an error.\n"
            f"Received: exit code {process.returncode}; its last lines say why.\n"
            f"When that is fixed, {again} goes on from there."
        )
    return last
