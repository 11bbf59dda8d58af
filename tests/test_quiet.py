"""Notices of frameworks are dropped; whatever else they write is passed on."""

import os

import pytest

from bach.network.quiet import without_notices

NOTICES = b"""WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795671250.924572   11301 port.cc:153] oneDNN custom operations are on.
"""


def test_notices_are_dropped_and_errors_are_passed_on(capfd):
    with without_notices():
        os.write(2, NOTICES + b"E0000 00:00:1795671254.238217 a real error\n" + NOTICES)
        os.write(2, b"no end of line")
    assert capfd.readouterr().err == "E0000 00:00:1795671254.238217 a real error\nno end of line"
    os.write(2, NOTICES)
    assert capfd.readouterr().err == NOTICES.decode()


def test_what_was_written_before_a_failure_is_passed_on(capfd):
    def load():
        with without_notices():
            os.write(2, b"why it failed\n")
            raise ImportError

    with pytest.raises(ImportError):
        load()
    assert capfd.readouterr().err == "why it failed\n"
