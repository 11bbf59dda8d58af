"""One logger, to stderr and to the log of a run."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator

from bach.core.text import duration

log = logging.getLogger("bach")


def setup_logging(file: str | os.PathLike | None = None) -> None:
    """Send the log to stderr and, if given, append it to a file."""
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file is not None:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)


@contextlib.contextmanager
def step(text: str) -> Iterator[list[str]]:
    """Log one line for a step when it ends, with what it adds and its time.

    Example:
        >>> with step("patches") as notes:
        ...     notes.append("400 images -> 5,600 patches")
    """
    start = time.monotonic()
    notes: list[str] = []
    yield notes
    log.info("%s: %s, %s", text, ", ".join(notes) or "done", duration(time.monotonic() - start))
