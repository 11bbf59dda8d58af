"""Commands that a command of ours starts."""

import signal
import time

import pytest

from bach.core.commands import require_checkout, run_command
from bach.core.errors import InputError


def test_the_last_line_of_a_command_is_returned_and_all_is_printed(capsys):
    code = "print('first'); print('last'); print()"
    assert run_command(["-c", code], "this") == "last"
    assert capsys.readouterr().out == f"\n$ python -c {code}\nfirst\nlast\n\n"


def test_a_command_that_fails_says_what_goes_on_from_there():
    with pytest.raises(InputError, match=r"exit code 3(.|\n)*`make demo` goes on"):
        run_command(["-c", "raise SystemExit(3)"], "`make demo`")


def test_a_script_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_checkout()
    assert run_command(["train_part_a.py", "--help"], "this")


def test_a_plain_kill_of_us_ends_the_running_command_too():
    code = (
        "import os, signal, time; print(os.getpid(), flush=True); "
        "os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)"
    )
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_command(["-c", code], "this", shown=["a script"])
    assert time.monotonic() - start < 300
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
