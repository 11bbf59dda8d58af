"""A killed training goes on as if nothing had been, on every backend and device count.

And on JAX it is the same training on one device, on two, and in two processes.
"""

import importlib.util
import re
import socket
import subprocess
import time
from pathlib import Path

import commands
import numpy as np
import pandas as pd
import pytest

from bach.network.patch_network import load_model

ROOT = Path(__file__).resolve().parent.parent
CASES = [
    pytest.param((backend, count), id=f"{backend}-{count}", marks=[pytest.mark.slow] * (count > 1))
    for backend in ("tensorflow", "jax")
    for count in (1, 2)
]
# What the tiny training prints; nothing else may come of the frameworks.
OURS = re.compile(r"\d\d:\d\d:\d\d (learning rate|loss|epoch|going on)|weights on|{'backend'")


def start(backend: str, words: list, **environment: str) -> subprocess.Popen:
    """Start tests/tiny_training.py."""
    return commands.start(
        ["tests/tiny_training.py", *words], {"KERAS_BACKEND": backend, **environment}
    )


def need(backend: str) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv").drop(columns="patches_per_s")


def weights(file: Path) -> list[np.ndarray]:
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            return [arrays[name] for name in arrays.files]
    return load_model(file).get_weights()


def close(one: Path, other: Path, atol: float = 1e-6) -> bool:
    pairs = zip(weights(one), weights(other), strict=True)
    return all(np.allclose(a, b, rtol=0, atol=atol) for a, b in pairs)


@pytest.fixture(scope="module", params=CASES)
def folder(request, tmp_path_factory):
    """A folder with the training `parts`, killed in its third epoch, and `whole`."""
    backend, count = request.param
    need(backend)
    folder = tmp_path_factory.mktemp(f"{backend}{count}")
    options = ["--devices", count]
    process = start(backend, [folder / "parts", *options, "--hold-epoch", 2])
    lines = []
    for line in process.stdout:
        lines.append(line)
        if " epoch 2/4:" in line:  # logged after the state is saved
            time.sleep(0.2)
            break
    process.kill()
    process.communicate()
    assert " epoch 2/4:" in lines[-1], "".join(lines)
    assert len(history(folder / "parts")) == 2
    process = start(backend, [folder / "parts", folder / "whole", *options])
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert f"'backend': '{backend}', 'devices': {count}, 'device': 'CPU'" in out
    assert out.count("going on after epoch 2 of 4") == 1
    assert backend != "jax" or f"weights on {count} devices" in out
    (folder / "printed.txt").write_text("".join(lines) + out)
    return folder


def test_a_training_prints_our_lines_and_no_others(folder):
    lines = (folder / "printed.txt").read_text().splitlines()
    assert len(lines) > 10
    assert not [line for line in lines if not OURS.match(line)]


def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(folder):
    assert close(folder / "parts/weights.npz", folder / "whole/weights.npz")
    assert close(folder / "parts/last.keras", folder / "whole/last.keras")


def test_a_killed_training_has_the_history_of_one_that_was_not(folder):
    one, other = history(folder / "parts"), history(folder / "whole")
    assert len(one) == 4
    pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-6)


def test_a_killed_training_has_the_best_checkpoint_of_one_that_was_not(folder):
    assert close(folder / "parts/best.keras", folder / "whole/best.keras")
    best = history(folder / "whole")["heldout_loss"].idxmin()
    assert close(folder / "whole/best.keras", folder / "whole/last.keras") == (best == 3)


def test_a_training_ends_with_the_weights_that_it_saved(folder):
    assert close(folder / "whole/weights.npz", folder / "whole/last.keras")


@pytest.fixture
def one_process(tmp_path_factory):
    """Folder of the tiny training on JAX, on one device."""
    need("jax")
    folder = tmp_path_factory.mktemp("one")
    process = start("jax", [folder])
    out, _ = process.communicate()
    assert process.returncode == 0, out
    return folder


@pytest.mark.slow
def test_two_processes_train_the_model_that_one_trains(one_process, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pair = [
        start(
            "jax",
            [tmp_path / "both"],
            KERAS_DISTRIBUTION_JOB_ADDRESSES=address,
            KERAS_DISTRIBUTION_NUM_PROCESSES="2",
            KERAS_DISTRIBUTION_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]
    outs = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(outs)
    assert "'backend': 'jax', 'devices': 2, 'device': 'CPU'" in outs[1]
    assert all("weights on 2 devices" in out for out in outs)
    first, second = (tmp_path / f"both/weights{index}.npz" for index in range(2))
    assert close(first, second, atol=0)
    # Sums over two halves of a batch round otherwise than over the whole.
    assert close(first, one_process / "weights.npz", atol=1e-5)
    assert close(tmp_path / "both/best.keras", one_process / "best.keras", atol=1e-5)
    one, other = history(tmp_path / "both"), history(one_process)
    pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-5)
