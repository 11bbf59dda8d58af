"""The one exception that a user can mend, and how it ends a command."""

import sys
from collections.abc import Callable

from bach.core.log import log, setup_logging


class InputError(Exception):
    """Something the user gave cannot be used; the message says what to do."""


def exit_with(main: Callable[..., int | None]) -> None:
    """Run a script's `main`; an InputError becomes its message and exit code 2."""
    if not log.handlers:
        setup_logging()
    try:
        code = main()
    except InputError as error:
        print(f"InputError: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code or 0)
