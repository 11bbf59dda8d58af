"""Runs of the four scripts that are killed at seeded moments, and gone on with until they end.

The result must be that of the run which was not killed, to the bit. A kill comes at a moment
in proportion to the time of the whole run, or when a file is being written.
"""

import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from bach.core.files import clear_temporary, read_json, write_json
from bach.core.tables import write_csv
from bach.core.text import columns

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = {"SIGKILL": 0, "SIGTERM": 143, "SIGHUP": 129, "SIGINT": 130}
_TRAINING = (
    "--data-dir {folder}/toy --backbone small --weights none --learning-rate 0.02 --epochs 2 "
    "--batch-size 16 --bn-patches 64 --fold 0"
)
_LONGEST_S = 1800.0

# What says when and how, not what.
_ASIDE = ("log.txt", "run.json", ".lock", "store.json")
_TIMES = ("seconds", "time", "s", "patches_per_s")


@dataclasses.dataclass(frozen=True)
class Script:
    """A script and its options, in a folder that holds `toy` and the runs before.

    Attributes:
        name: Of its run folder there.
        line: What to run.
        weight: How many of all runs are of this script, in proportion.
    """

    name: str
    line: str
    weight: float

    def command(self, folder: Path, run: Path) -> list[str]:
        script, *words = (word.format(folder=folder) for word in self.line.split())
        return [sys.executable, str(ROOT / script), *words, "--run-dir", str(run), "--resume"]


_MINED = "--data-dir {folder}/toy --model-dir {folder}/whole/part_a"
SCRIPTS = (
    Script(
        "part_a",
        f"train_part_a.py {_TRAINING} --folds {{folder}}/toy/part_a.csv --limit 2",
        weight=2,
    ),
    Script(
        "part_a_shared",
        f"train_part_a.py {_TRAINING} --folds {{folder}}/toy/part_a.csv --limit 2 "
        "--epochs 1 --patches-dir {folder}/patches",
        weight=2,
    ),
    Script(
        "mining",
        f"mine_hard_examples.py {_MINED} --folds {{folder}}/toy/part_b.csv --hard-examples 24",
        weight=2,
    ),
    Script(
        "final",
        f"train_final.py {_TRAINING} --part-a-dir {{folder}}/whole/part_a --hard-examples-dir "
        "{folder}/whole/mining --folds {folder}/toy/part_b.csv --limit 3",
        weight=2,
    ),
    Script(
        "heatmaps",
        "make_heatmap.py --data-dir {folder}/toy --model-dir {folder}/whole/final",
        weight=3,
    ),
)


def run_kills(folder: Path, seed: int, kills: int, again: bool) -> list[dict[str, Any]]:
    """Kill runs until there were so many kills; returns how every run ended.

    Args:
        folder: Folder to work in, which keeps what was done: `kills.jsonl`.
        seed: Decides scripts, signals and moments.
        kills: Number of kills in all.
        again: Whether runs that did not end as they should are repeated.
    """
    from campaign.command import read_lines

    folder = folder.resolve()
    times = _make_whole(folder)
    file = folder / "kills.jsonl"
    done = {row["number"]: row for row in read_lines(file) if row["seed"] == seed}
    if again:
        done = {number: row for number, row in done.items() if row["outcome"] == "same"}
    count = sum(len(row["moments"]) for row in done.values())
    number = -1
    with file.open("a", encoding="utf-8") as stream, tqdm(total=kills, disable=None) as bar:
        bar.update(count)
        while count < kills:
            number += 1
            if number in done:
                continue
            row = {"seed": seed, "number": number, **_kill(folder, seed, number, times)}
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            done[number] = row
            count += len(row["moments"])
            bar.update(len(row["moments"]))
    return [done[number] for number in sorted(done)]


def _make_whole(folder: Path) -> dict[str, float]:
    """Run all scripts once without a kill; returns the seconds that each takes."""
    from bach import folds
    from bach.toy.dataset import Recipe, make_data_set

    toy, file = folder / "toy", folder / "whole.json"
    if not (toy / "part_b.csv").exists():
        shutil.rmtree(toy, ignore_errors=True)
        recipe = Recipe(patients=4, images=3, test_images=1, slides=2, slide_size=(3200, 2400))
        make_data_set(toy, recipe, workers=1)
        make = ["make", "--data-dir", str(toy), "--folds", "2"]
        patients = ["--patients", f"{toy}/patients.csv"]
        folds.main([*make, "--part", "a", *patients, "--out", f"{toy}/part_a.csv"])
        folds.main([*make, "--part", "b", "--out", f"{toy}/part_b.csv"])
    times = read_json(file, "Delete it.") if file.exists() else {}
    for script in SCRIPTS:
        if script.name not in times:
            run = folder / "whole" / script.name
            shutil.rmtree(run, ignore_errors=True)
            start = time.monotonic()
            ended = _Process(script.command(folder, run)).end()
            if ended.returncode:
                raise RuntimeError(f"{script.name} does not even end unkilled:\n{ended.said}")
            times[script.name] = time.monotonic() - start
            write_json(file, times)
    return times


def _kill(folder: Path, seed: int, number: int, times: dict[str, float]) -> dict[str, Any]:
    """Start a run, kill it once to three times, let it end, and compare."""
    rng = random.Random(f"kills {seed} {number}")
    script = rng.choices(SCRIPTS, [script.weight for script in SCRIPTS])[0]
    run = folder / "killed"
    shutil.rmtree(run, ignore_errors=True)
    if script.name == "part_a_shared" and rng.random() < 0.3:
        shutil.rmtree(folder / "patches", ignore_errors=True)
    faults: list[str] = []
    moments: list[str] = []
    command = script.command(folder, run)
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(("SIGKILL", "SIGKILL", "SIGTERM", "SIGTERM", "SIGHUP", "SIGINT"))
        share = rng.random() if rng.random() < 0.5 else None
        process = _Process(command)
        moment = process.kill(name, share, times[script.name], run, rng.randint(1, 12))
        if moment is None:
            break  # it had ended before
        moments.append(f"{name} {moment}")
        faults += _faults_of_kill(name, process, run)
    process = _Process(command).end()
    if process.returncode:
        faults.append(f"does not end: {process.said[-300:]}")
    else:
        faults += _differences(folder / "whole" / script.name, run)
        faults += [f"{path.name} left" for path in run.rglob("*.unfinished-*")]
        status = read_json(run / "run.json", "")["status"]
        faults += [f"status {status}"] if status != "finished" else []
    outcome = "finding" if faults else "same"
    said = "; ".join(faults)[:500]
    return {"script": script.name, "moments": moments, "outcome": outcome, "said": said}


def _faults_of_kill(name: str, process: "_Process", run: Path) -> list[str]:
    """What is wrong with how a run ended that was killed."""
    code = SIGNALS[name]
    plain = -getattr(signal, name)  # while modules are loaded, the signal ends Python itself
    if process.returncode not in (code or plain, plain):
        return [f"{name}: exit code {process.returncode}, {process.said[-300:]}"]
    if "Traceback" in process.said and process.returncode == code:
        return [f"{name}: {process.said[-300:]}"]
    if process.returncode == code and (run / "run.json").exists():
        status = read_json(run / "run.json", "")["status"]
        if not status.startswith(("interrupted", "finished")):
            return [f"{name}: status {status}"]
    return []


class _Process:
    """A script that runs, with all that it says."""

    def __init__(self, command: Sequence[str]):
        self._log = Path(tempfile.gettempdir()) / f"campaign_{os.getpid()}.log"
        # In the background Ctrl-C is ignored by all that this starts, under nohup SIGHUP.
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=self._log.open("w"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
            preexec_fn=_obey_signals,
        )

    def end(self) -> "_Process":
        """Wait until it has ended."""
        self._process.wait(_LONGEST_S)
        self.returncode = self._process.returncode
        self.said = self._log.read_text(encoding="utf-8", errors="replace")
        return self

    def kill(self, name: str, share: float | None, whole: float, run: Path, nth: int) -> str | None:
        """Send a signal and wait for the end; None if it had ended before.

        Args:
            name: The signal.
            share: When, in proportion to the time of a whole run; None for when a file
                is being written.
            whole: Seconds of a whole run.
            run: The run folder, to see files being written in.
            nth: Of the files that are seen being written there.
        """
        start, seen = time.monotonic(), set()
        while self._process.poll() is None:
            now = time.monotonic() - start
            if share is None:
                seen |= {path.name for path in _half_written(run)}
                if len(seen) >= nth:
                    moment = f"while {max(seen)} was written"
                    break
            elif now >= share * whole:
                moment = f"after {now:.1f} s"
                break
            if now > _LONGEST_S:
                moment = "never got so far"
                break
            time.sleep(0.001 if share is None else 0.02)
        else:
            self.end()
            return None
        self._process.send_signal(getattr(signal, name))
        self.end()
        return moment


def _obey_signals() -> None:
    for name in SIGNALS:
        if name != "SIGKILL":
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def _half_written(run: Path) -> Iterator[Path]:
    if run.is_dir():
        for place, _, names in os.walk(run):
            yield from (Path(place, name) for name in names if ".unfinished-" in name)


# Comparing


def _differences(whole: Path, killed: Path) -> list[str]:
    """Which files of two runs differ in what they hold."""
    clear_temporary(whole)
    names = [
        {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
        for run in (whole, killed)
    ]
    names = [{name for name in one if Path(name).name not in _ASIDE} for one in names]
    faults = [f"{name} is in one alone" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        if not _same(_content(whole / name), _content(killed / name)):
            faults.append(f"{name} differs")
    return faults


def _content(file: Path) -> Any:
    """What a file holds, without times."""
    if file.suffix == ".json":
        return _without_times(read_json(file, ""))
    if file.suffix == ".csv":
        table = pd.read_csv(file, dtype=str)
        return table.drop(columns=[name for name in table if name in _TIMES]).to_csv()
    if file.suffix == ".keras":
        with zipfile.ZipFile(file) as archive:
            weights = io.BytesIO(archive.read("model.weights.h5"))
        found: dict[str, np.ndarray] = {}
        with h5py.File(weights, "r") as stored:
            stored.visititems(
                lambda name, item: (
                    found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
                )
            )
        return found
    if file.suffix == ".npz":
        with np.load(file) as state:
            return {name: state[name] for name in state.files if name != "history"}
    return file.read_bytes()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(one) for name, one in value.items() if name not in _TIMES}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(
            one, other, equal_nan=one.dtype.kind == "f"
        )
    return one == other


# Telling


def table_of(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Runs, kills and findings of every script."""
    lines = []
    for name in [script.name for script in SCRIPTS] + ["all"]:
        of_script = [row for row in rows if name in (row["script"], "all")]
        kills = [moment.split()[0] for row in of_script for moment in row["moments"]]
        same = sum(row["outcome"] == "same" for row in of_script)
        counts = [kills.count(one) for one in SIGNALS]
        lines.append([name, len(of_script), len(kills), *counts, same, len(of_script) - same])
    names = ["script", "runs", "kills", *SIGNALS, "same result", "findings"]
    return pd.DataFrame(lines, columns=names)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The table for the terminal."""
    table = table_of(rows)
    return columns(list(table), table.to_numpy().tolist())


def write(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """The table for the documentation."""
    write_csv(table_of(rows), file)
