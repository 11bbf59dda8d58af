"""The one exception that a user can mend, and how commands end: by it, by a signal, in a pipe."""

import contextlib
import io
import os
import signal
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from bach.core.log import close_bars, log, setup_logging

# Ctrl-C, a plain `kill`, and a terminal that is closed. (Windows has no SIGHUP.)
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
# A signal that comes twice (to a group, and by our parent) is one; later, one is impatient.
_SAME_SIGNAL_S = 5.0
# How long after a signal it is looked whether the process is ending.
_SWALLOWED_S = 1.0
# The signal that has asked this process to end, once one has.
_asked: list[int] = []
_CLOSED_PIPE = 141  # what a shell reports of a command that SIGPIPE ended


class InputError(Exception):
    """Something the user gave cannot be used; the message says what to do."""


class Ended(KeyboardInterrupt):
    """A signal asked this process to end; `str()` is its name."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def exit_with(main: Callable[..., int | None]) -> None:
    """Run a script's `main` and end the process with its exit code.

    An InputError becomes its message and exit code 2; so does what the system says of a
    path (OSError) and of memory, with the place in the code. Ctrl-C, SIGTERM and SIGHUP end
    it with 130, 143 and 129, after everything that tidies up has run. A reader of our output
    that has gone away (`| head`) ends it without a word. Anything else is a bug and keeps its
    traceback.
    """
    _open_streams()
    if not log.handlers:
        setup_logging()
    code: int | str | None
    try:
        with ended_by_signals(), contextlib.ExitStack() as stack:
            stack.callback(close_bars)
            code = main()
    except InputError as error:
        code = _refuse(str(error))
    except KeyboardInterrupt as error:
        code = error.code if isinstance(error, Ended) else 130
    except SystemExit as error:  # argparse
        code = error.code
    except BrokenPipeError:
        code = _CLOSED_PIPE
    except OSError as error:
        if error.errno is None:
            raise
        code = _refuse(_of_the_system(error))
    except MemoryError as error:
        code = _refuse(
            f"There must be memory for what is asked.\n"
            f"Received: {error or 'no room'} ({_place(error)}).\n"
            "Use a smaller --batch-size or smaller files, or another machine."
        )
    sys.exit(_last_words(code))


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP interrupt the body as Ctrl-C does, by raising `Ended`.

    A signal that somebody ignores (`nohup`) or handles stays with them. What is raised can be
    lost: where a library catches everything (while it is imported, say) or C code calls back.
    Then it is raised again; and an error that C code has made of it is taken for it.
    """
    first: list[float] = []

    def end(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not first or now - first[0] > _SAME_SIGNAL_S:
            first[:], _asked[:] = [now], [number]
            _look_again()
            raise Ended(number)

    def end_after_all(number: int, frame: FrameType | None) -> None:
        _look_again()
        if not _ending():
            raise Ended(_asked[0])

    ours = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: handler for number, handler in before.items() if handler in ours}
    for number in before:
        signal.signal(number, end)
    hook, sys.unraisablehook = sys.unraisablehook, lambda lost: _tell_of_lost(hook, lost)
    if hasattr(signal, "SIGALRM"):
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, end_after_all)
    try:
        yield
        if _asked:  # just now, and lost
            raise Ended(_asked[0])
    except Exception as error:
        if _asked:
            raise meant(error) from error
        raise
    finally:
        if hasattr(signal, "SIGALRM"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


def meant(error: BaseException) -> BaseException:
    """What an error stands for: after a signal, whatever comes up is the `Ended` itself."""
    if _asked and not isinstance(error, KeyboardInterrupt):
        return Ended(_asked[0])
    return error


def _look_again() -> None:
    if hasattr(signal, "SIGALRM"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, _SWALLOWED_S)


def _tell_of_lost(hook: Callable, lost: Any) -> None:
    """Say nothing of an `Ended` that is lost where nothing can be raised: it comes again."""
    if not isinstance(lost.exc_value, Ended):
        hook(lost)


def _ending() -> bool:
    """Whether an `Ended` is on its way up: what tidies up is at work."""
    error = sys.exception()
    while error is not None and not isinstance(error, Ended):
        error = error.__context__
    return error is not None


def _open_streams() -> None:
    """Make the standard streams safe to write to.

    A stream that was closed (`2>&-`) leaves its number to the next file that is opened, in
    which messages of C libraries would then land. Names that cannot be encoded are escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _last_words(code: int | str | None) -> int | str:
    """The exit code, once all that was printed has gone out."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # The interpreter would try once more, and complain.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return code or _CLOSED_PIPE
        return _refuse(_of_the_system(error))
    return code or 0


def _refuse(message: str) -> int:
    with contextlib.suppress(OSError):
        print(f"InputError: {message}", file=sys.stderr, flush=True)
    return 2


def _of_the_system(error: OSError) -> str:
    named = isinstance(error.filename, str | bytes)
    name = os.fsdecode(error.filename) if named else "What is read or written"
    return (
        f"{name} must be there, and allow what is done with it.\n"
        f"Received: {error.strerror} ({_place(error)}).\n"
        "Check the path, its permissions and the disk."
    )


def _place(error: BaseException) -> str:
    """Where in our code an error came up."""
    frames = traceback.extract_tb(error.__traceback__)
    others = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    package = str(Path(__file__).parents[1])
    ours = [
        frame
        for frame in frames[1:]  # the first is exit_with
        if frame.filename.startswith(package) or not frame.filename.startswith(others)
    ] or frames
    return f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno}" if ours else "at the end"
