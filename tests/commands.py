"""The scripts as commands of their own, for tests that run them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NETWORK = ["--backbone", "small", "--weights", "none", "--learning-rate", "0.02"]


def part_a_words(toy, run, *more):
    return [
        "--data-dir",
        str(toy),
        "--folds",
        f"{toy}/part_a.csv",
        "--run-dir",
        str(run),
        *NETWORK,
        "--epochs",
        "1",
        "--batch-size",
        "16",
        *more,
    ]


def start(words, environment=(), **options):
    """Start a command on the CPU; what it logs is part of what it prints."""
    # JAX, where a test has loaded it, says by this variable how much the command logs.
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        text=True,
        env={**inherited, "CUDA_VISIBLE_DEVICES": "-1", **dict(environment)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def kill_when(words, ready, timeout=3600, how=signal.SIGKILL):
    """Start a command and end it as soon as `ready()` holds: what it said, and its code."""
    # Where the tests run in the background, Ctrl-C is ignored by all that they start.
    process = start(words, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    end = time.monotonic() + timeout
    while not ready():
        assert process.poll() is None, f"ended before it was killed: {process.stdout.read()}"
        assert time.monotonic() < end, "never got ready"
        time.sleep(0.02)
    process.send_signal(how)
    return process.communicate(timeout=timeout)[0], process.returncode
