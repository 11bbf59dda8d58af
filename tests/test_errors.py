"""How commands end: by a message, by a signal, in a pipe that is closed; bugs stay bugs."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from bach.core.errors import InputError, exit_with

START = "import os, signal, sys, time\nfrom bach.core.errors import exit_with\n"


def _end(main):
    with pytest.raises(SystemExit) as end:
        exit_with(main)
    return end.value.code


def _run(body, words=(), **more):
    """A command of its own whose `main` is `body`."""
    code = START + "def main():\n    " + body.replace("\n", "\n    ") + "\nexit_with(main)\n"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run([*words, sys.executable, "-c", code], text=True, **{**streams, **more})


def _raise(error):
    raise error


def test_an_input_error_becomes_its_message_and_exit_code_2(capsys):
    assert _end(lambda: _raise(InputError("Unpack the archive first."))) == 2
    assert capsys.readouterr().err == "InputError: Unpack the archive first.\n"


def test_what_the_system_says_of_a_path_becomes_a_message(tmp_path, capsys):
    assert _end(lambda: _raise(FileNotFoundError(2, "No such file", f"{tmp_path}/x"))) == 2
    said = capsys.readouterr().err
    assert f"InputError: {tmp_path}/x must be there" in said
    assert "Received: No such file (test_errors.py:" in said
    assert _end(lambda: _raise(OSError(errno.EIO, "Input/output error"))) == 2
    assert "Input/output error" in capsys.readouterr().err


def test_too_little_memory_becomes_a_message(capsys):
    assert _end(lambda: _raise(MemoryError("Unable to allocate 3 TiB"))) == 2
    assert "Received: Unable to allocate 3 TiB (test_errors.py:" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("bug"), OSError("of a library"), KeyError("x")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)) as caught:
        exit_with(lambda: _raise(error))
    assert caught.value is error


def test_the_exit_code_of_the_script_is_that_of_the_process():
    assert [_end(lambda: None), _end(lambda: 0), _end(lambda: 1)] == [0, 0, 1]
    assert _end(lambda: sys.exit(2)) == 2


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_script_after_it_has_tidied_up(name, code):
    # Twice: a terminal sends one to the group, and our parent sends one more.
    body = (
        f"try:\n    os.kill(os.getpid(), signal.{name})\n    time.sleep(60)\n"
        f"finally:\n    os.kill(os.getpid(), signal.{name})\n    print('tidied')"
    )
    done = _run(body, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert (done.stdout, done.stderr, done.returncode) == ("tidied\n", "", code)


def test_a_script_that_is_to_outlive_its_terminal_does():
    body = "os.kill(os.getpid(), signal.SIGHUP)\nprint('alive')"
    done = _run(body, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (done.stdout, done.returncode) == ("alive\n", 0)


def test_nobody_who_reads_ends_a_script_without_a_word():
    reader, writer = os.pipe()
    os.close(reader)
    for body in ("print('x')", "for _ in range(9999): print('a line')", "sys.exit(print('x'))"):
        done = _run(body, stdout=writer)
        assert (done.stderr, done.returncode) == ("", 141)
    os.close(writer)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_output_to_a_full_disk_is_said():
    with open("/dev/full", "w") as full:
        done = _run("print('x')", stdout=full)
    assert "What is read or written must be there" in done.stderr
    assert "No space left" in done.stderr
    assert done.returncode == 2


def test_a_closed_stream_does_not_lend_its_number_to_a_file():
    body = "handle = os.open(os.devnull, os.O_RDONLY)\nsys.exit(0 if handle > 2 else 9)"
    assert _run(body, ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]).returncode == 0


def test_a_name_that_cannot_be_encoded_is_escaped():
    done = _run("print('fa\\u0308lle \\udcff')", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.stdout, done.returncode) == ("fa\\u0308lle \\udcff\n", 0)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_that_a_library_swallows_ends_a_script_all_the_same(name, code):
    body = (
        f"try:\n    os.kill(os.getpid(), signal.{name})\nexcept BaseException:\n    pass\n"
        "try:\n    time.sleep(60)\nfinally:\n    time.sleep(2.5)\n    print('tidied')"
    )
    done = _run(body, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert (done.stdout, done.stderr, done.returncode) == ("tidied\n", "", code)


def test_a_signal_that_is_lost_where_nothing_can_be_raised_is_not_told_of():
    body = (
        "class Lost:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\nLost()"
    )
    for rest in ("", "\ntime.sleep(60)"):
        done = _run(body + rest)
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 143)


def test_an_error_that_is_made_of_a_signal_is_the_signal():
    body = (
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    raise SystemError('bad argument to internal function')"
    )
    done = _run(body)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 143)
