"""One logger, to stderr and to the log of a run."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

from bach.core.text import duration

log = logging.getLogger("bach")


def setup_logging(file: str | os.PathLike | None = None) -> None:
    """Send the log to stderr and, if given, append it to a file."""
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [_Stream(sys.stderr)]
    if file is not None:
        handlers.append(_File(file, encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)


def close_bars() -> None:
    """Take away the progress bars that an error has left open, before it is said."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.leave = False
        bar.close()


class _Stream(logging.StreamHandler):
    """Writes lines above progress bars; says nothing where nobody listens any more."""

    def emit(self, record):
        if self.stream.isatty():
            with tqdm.external_write_mode(self.stream):
                super().emit(record)
        else:
            super().emit(record)

    def handleError(self, record):  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _File(logging.FileHandler):
    """Says once that a log cannot be written (a full disk), not once per line."""

    _said = False

    def handleError(self, record):  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            log.warning("%s: lines of the log are lost: %s", self.baseFilename, error.strerror)


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
