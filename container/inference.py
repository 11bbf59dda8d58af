"""Answer one job of grand-challenge.org: a photo or a slide in, classes and maps out.

    python container/inference.py

Reads    /input/inputs.json               what there is: one socket with one image
         /input/images/SOCKET/*           a photo (TIFF, PNG, JPEG, MetaImage) or a slide (TIFF)
         /opt/ml/model/part_a, final      models of train_part_a.py for photos, of train_final.py
         /opt/ml/model/settings.json      names of sockets, and options (optional)
Writes   /output/NAME.json                label and probabilities; of a slide also areas in mm2
         /output/images/SOCKET/NAME.tif   of a slide: heatmap, class map

A photo is predicted as by `python -m bach.submission part-a`, and a slide as by make_heatmap.py,
whose code this runs. BACH_INPUT, BACH_OUTPUT and BACH_MODEL name other folders. Nothing else is
written but in TMPDIR, which is left as it was. After BACH_TIME_LIMIT_S seconds (6 hours) the job is
given up. What is said on the way goes to stdout, for the platform takes every line on stderr for a
warning; what went wrong goes to stderr, and then the exit code is not 0 and /output is as it was.

How jobs look is told by the platform's own templates (DIAGNijmegen/rse-grand-challenge-forge 0.7.5,
partials/example-algorithm), and what it takes for an image by DIAGNijmegen/rse-panimg.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package lies beside

from bach.core.errors import InputError, exit_with
from bach.core.files import read_json, read_object, write_json
from bach.core.inputs import read_input, understood
from bach.core.log import log, setup_logging
from bach.core.text import duration, listed
from bach.tasks import task, use

# Sockets have the names that a challenge gives them: these are for a try, others stand in
# settings.json.
INPUTS = {"breast-histology-photo": "photo", "breast-histology-slide": "slide"}
OUTPUTS = {
    "result": "breast-histology-result.json",
    "heatmap": "images/breast-histology-heatmap",
    "class_map": "images/breast-histology-class-map",
}
MAPS = ("heatmap", "class_map")  # and the probability of each class
MODELS = {"photo": "part_a", "slide": "final"}
TIME_LIMIT_S = 6 * 3600

_OURS = ("data-dir", "model-dir", "run-dir", "slides", "resume", "predictions", "ids", "out", "zip")
_HEARTBEAT_S = 60
_LAST_S = 60  # to tidy up in
_HEADER_BYTES = 2**16  # of a MetaImage; real ones have 400
_PHOTO_BYTES = 300_000_000  # as bach.data takes them: 100 million px


@dataclasses.dataclass(frozen=True)
class Settings:
    """What settings.json of the models says.

    Attributes:
        inputs: What comes in by a socket, "photo" or "slide", by its slug.
        outputs: Path below /output of "result", "heatmap", "class_map" or "prob_normal" ...;
            one that is null is not written.
        photo: Options of `python -m bach.submission part-a` by name: {"tta": true}.
        slide: Options of make_heatmap.py by name: {"mode": "dense"}.
    """

    inputs: Mapping[str, str] = dataclasses.field(default_factory=lambda: INPUTS)
    outputs: Mapping[str, str | None] = dataclasses.field(default_factory=lambda: OUTPUTS)
    photo: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    slide: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        kind: "photo" or "slide".
        image: The file.
        models: Run folder of the models, or what is left of one.
        words: Options of the command whose work it is.
        outputs: Where what is written, see `Settings`.
    """

    kind: str
    image: Path
    models: Path
    words: list[str]
    outputs: Mapping[str, str | None]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python container/inference.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    parse_args(argv)
    inputs, outputs, model = (
        Path(os.environ.get(name) or usual)
        for name, usual in (
            ("BACH_INPUT", "/input"),
            ("BACH_OUTPUT", "/output"),
            ("BACH_MODEL", "/opt/ml/model"),
        )
    )
    use(None, model)
    start, job, limit = time.monotonic(), read_job(inputs, model), time_limit()
    require_empty(outputs)
    with (
        tempfile.TemporaryDirectory(prefix="bach-") as scratch,
        said_on_stdout() as stderr,
        watched(limit, stderr),
    ):
        setup_logging()
        size = job.image.stat().st_size / 1e6
        log.info("%s %s (%.1f MB), models of %s", job.kind, job.image.name, size, job.models)
        # Libraries keep settings and fonts in the home folder, which need not be writable.
        for name in ("KERAS_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
            os.environ[name] = scratch
        beside = Path(scratch) / "output"
        (of_photo if job.kind == "photo" else of_slide)(job, Path(scratch), beside)
        made = hand_over(beside, outputs)
        log.info("%s in %s, %s", ", ".join(made), duration(time.monotonic() - start), memory())


# What there is to do


def read_job(inputs: Path, model: Path) -> Job:
    """What there is to do.

    Args:
        inputs: Folder with inputs.json.
        model: Folder of the models.

    Raises:
        InputError: If it is nothing that is answered here.
    """
    settings = read_settings(model)
    kind, image = find_image(inputs, settings)
    words = option_words(kind, getattr(settings, kind), model)
    own = model / MODELS[kind]
    return Job(kind, image, own if own.is_dir() else model, words, settings.outputs)


def read_settings(model: Path) -> Settings:
    """Settings that lie with the models, or those that are usual.

    Raises:
        InputError: If a key or a value is none of those that `Settings` names.
    """
    file = model / "settings.json"
    if not file.exists():
        return Settings()
    fields = {field.name: dict for field in dataclasses.fields(Settings)}
    remedy = "docs/container.md says what it may hold."
    values = read_object(file, remedy, **fields)
    outputs = OUTPUTS | (values.get("outputs") or {})
    faults = [f"key {name!r}" for name in values.keys() - fields.keys()]
    faults += [
        f"input {slug!r}: {kind!r}"
        for slug, kind in (values.get("inputs") or {}).items()
        if kind not in MODELS
    ]
    for what, path in outputs.items():
        image = what in (*MAPS, *task().columns)
        if path is not None and not (
            (image or what == "result")
            and isinstance(path, str)
            and is_inside(path)
            and path.startswith("images/") == image
            and path.endswith(".json") != image
        ):
            faults.append(f"output {what!r}: {path!r}")
    paths = [path for path in outputs.values() if path is not None]
    if len(set(paths)) < len(paths):
        faults.append("one place for two outputs")
    if faults:
        raise InputError(
            f"{file} must give kinds of inputs ({listed(MODELS)}), places of outputs (result: a "
            f".json file; {listed((*MAPS, *task().columns))}: images/NAME) and options by their "
            "names.\n"
            f"Received: {listed(faults)}.\n{remedy}"
        )
    given = {name: value for name, value in values.items() if value is not None}
    return Settings(**(given | {"outputs": outputs}))


def is_inside(path: str) -> bool:
    """Whether a path of a job leads to a place below its root."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path


def find_image(inputs: Path, settings: Settings) -> tuple[str, Path]:
    """What comes in, "photo" or "slide", and its file.

    Raises:
        InputError: If inputs.json does not name one socket that is known, or there is not
            one file.
    """
    file = inputs / "inputs.json"
    remedy = "The platform writes this file; docs/container.md shows one."
    values = read_json(file, remedy)
    try:
        sockets = [value["interface"] for value in values]
        # The key of an interface: the slugs of its inputs, in the order of the alphabet.
        key = tuple(sorted(str(socket["slug"]) for socket in sockets))
    except (TypeError, KeyError) as error:
        raise InputError(
            f"{file} must be a list of values, each with its interface and that with its slug.\n"
            f"Received: {type(error).__name__}: {error}.\n{remedy}"
        ) from error
    kind = settings.inputs.get(key[0]) if len(key) == 1 else None
    if kind is None:
        raise InputError(
            f"A job must have one input, of one of the sockets {listed(settings.inputs)}.\n"
            f"Received: {listed(key) or 'none'}.\n"
            "Choose one of them for the algorithm, or name yours in settings.json."
        )
    place = sockets[0].get("relative_path") or f"images/{key[0]}"
    if not isinstance(place, str) or not is_inside(place):
        raise InputError(
            f"The path of a socket must lead to a folder in {inputs}.\n"
            f"Received: relative_path={place!r}.\n{remedy}"
        )
    folder = inputs / place
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [path for path in found if not path.name.startswith(".")]
    if len(found) != 1 or not found[0].is_file():
        raise InputError(
            f"There must be one file in {folder}.\n"
            f"Received: {listed(path.name for path in found) or 'none'}.\n"
            "Give a job one image; an image of several files is converted by the platform."
        )
    return kind, found[0]


def option_words(kind: str, given: Mapping[str, Any], model: Path) -> list[str]:
    """The options of settings.json as words of the command that they are for, which it accepts.

    Raises:
        InputError: If one says where to read or write.
    """
    own = [name for name in given if name.replace("_", "-") in _OURS]
    if own:
        raise InputError(
            f"Places are given by the platform, not by options.\nReceived: {listed(own)} for "
            f"{kind}.\nTake them out of settings.json."
        )
    words = []
    for name, value in given.items():
        if value is not False and value is not None:
            words.append(f"--{name.replace('_', '-')}")
            values = value if isinstance(value, list) else [value]
            words += [] if value is True else map(str, values)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            # By the task of the job's models, not of a run that lies in the working folder.
            parse_options(kind, words if kind == "photo" else [*words, "--model-dir", str(model)])
    except SystemExit as error:
        raise InputError(
            f"Options for {kind} must be those of its command.\n"
            f"Received: {' '.join(words)} ({said.getvalue().strip().splitlines()[-1]}).\n"
            "Correct them in settings.json."
        ) from error
    return words


def parse_options(kind: str, words: list[str]) -> Any:
    """Options of the command whose work a job is."""
    if kind == "photo":
        from bach import submission

        return submission.parse_args(["part-a", "--out", "unused.csv", *words])
    import make_heatmap

    return make_heatmap.parse_args(words)


def require_empty(outputs: Path) -> None:
    """Refuse a place for the answer that holds something, or is none.

    Raises:
        InputError: If it does.
    """
    found = None if not outputs.is_dir() else [p.name for p in outputs.glob("[!.]*")]
    if found != [] or not os.access(outputs, os.W_OK | os.X_OK):
        raise InputError(
            f"{outputs} must be an empty folder that may be written.\nReceived: "
            f"{'no folder' if found is None else listed(found) or 'one that may not'}.\n"
            "Mount an empty folder there, which belongs to the user of the container."
        )


# What comes out


def of_photo(job: Job, scratch: Path, out: Path) -> None:
    """Write the answer for a photo."""
    from bach import submission
    from bach.core.pictures import write_png
    from bach.data import TEST_FOLDER

    args, image = parse_options("photo", job.words), job.image
    folder = scratch / TEST_FOLDER
    photos = folder / "Photos"
    photos.mkdir(parents=True)
    if image.suffix.lower() == ".mha":
        write_png(photos / f"{image.stem}.png", read_metaimage(image))
    else:
        (photos / image.name).symlink_to(image.resolve())
    table = submission.predict_part_a(
        str(folder), str(job.models), args.tta, args.calibrated, args.mpp
    )
    write_result(job, out, table[list(task().columns)].to_numpy()[0])


def of_slide(job: Job, scratch: Path, out: Path) -> None:
    """Write the answer for a slide: as of a photo, the mean over what is predicted; and maps."""
    import make_heatmap
    from bach.export.pyramids import write_values
    from bach.export.results import list_results, read_result

    run = scratch / "run"
    places = ["--slides", str(job.image), "--model-dir", str(job.models), "--run-dir", str(run)]
    make_heatmap.main([*places, *job.words])
    ((name, record),) = list_results(run).items()
    maps = read_result(run, name, record)
    cell, pixel = record.step * record.mpp, record.downsample * record.mpp
    shown = {"heatmap": (maps.heatmap, cell), "class_map": (maps.class_map, pixel)}
    shown |= {p: (np.nan_to_num(maps.probs[..., k]), cell) for k, p in enumerate(task().columns)}
    for what, (values, mpp) in shown.items():
        if (place := job.outputs.get(what)) is not None:
            write_values(out / place / f"{job.image.stem}.tif", values, mpp)
    predicted = maps.probs[np.isfinite(maps.probs).all(axis=-1)]
    about = {
        "cells": len(predicted),
        "cell_um": cell,
        "areas_mm2": record.areas_mm2,
        "mpp": record.mpp,
        "mpp_source": record.mpp_source,
        "warnings": list(record.warnings),
    }
    probs = predicted.mean(axis=0, dtype=np.float64) if len(predicted) else None
    write_result(job, out, probs, **about)


def write_result(job: Job, out: Path, probs: np.ndarray | None, **about: object) -> None:
    """Write the JSON of a job; without probabilities (a slide without tissue) they are null."""
    label = None if probs is None else int(probs.argmax())
    result = {
        "kind": job.kind,
        "label": None if label is None else list(task().classes)[label],
        "label_id": label,
        "probabilities": None
        if probs is None
        else dict(zip(task().classes, probs.tolist(), strict=True)),
        **about,
    }
    if (place := job.outputs.get("result")) is not None:
        write_json(out / place, result)


def hand_over(beside: Path, outputs: Path) -> list[str]:
    """Copy what is complete to where the platform looks: all of it or nothing."""
    names = sorted(str(p.relative_to(beside)) for p in beside.rglob("*") if p.is_file())
    try:
        for name in names:
            (outputs / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(beside / name, outputs / name)
    except BaseException:
        for top in {Path(name).parts[0] for name in names}:
            shutil.rmtree(outputs / top, ignore_errors=True)
            with contextlib.suppress(OSError):
                (outputs / top).unlink()
        raise
    return names


def read_metaimage(path: Path) -> np.ndarray:
    """Decode a photo that the platform keeps as MetaImage: uint8 `(height, width, 3)`, RGB.

    Raises:
        InputError: If it is damaged, or no flat picture of three channels of 8 bits.

    Source: ITK's documentation of MetaIO.
    """
    must, remedy = "be a MetaImage of three channels of 8 bits", "Upload the photo again."
    data = read_input(path, must, remedy, _PHOTO_BYTES + _HEADER_BYTES)
    with understood(path, must, remedy):
        head, mark, rest = data[:_HEADER_BYTES].partition(b"ElementDataFile")
        keys = dict(line.split("=", 1) for line in head.decode().splitlines() if "=" in line)
        about = {key.strip(): value.strip() for key, value in keys.items()}
        end = len(head) + len(mark) + rest.index(b"\n") + 1
        width, height, *depth = map(int, about["DimSize"].split())
        size = width * height * 3
        kind = about["ElementType"], about.get("ElementNumberOfChannels", "1")
        local = rest.partition(b"\n")[0].strip(b" =\r") == b"LOCAL"
        if kind != ("MET_UCHAR", "3") or depth not in ([], [1]) or not local:
            raise ValueError(f"{' '.join(kind)} channels, DimSize {about['DimSize']}")
        if min(width, height) < 1 or size > _PHOTO_BYTES:
            raise ValueError(f"{width} x {height} px")
        pixels = data[end:]
        if about.get("CompressedData", "False").lower() == "true":
            pixels = zlib.decompressobj().decompress(pixels, size + 1)
        if len(pixels) != size:
            raise ValueError(f"{len(pixels):,} bytes of {size:,}")
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


# How it is done


@contextlib.contextmanager
def said_on_stdout() -> Iterator[int]:
    """Let what is written to stderr go to stdout, that of C libraries as well.

    Yields:
        The descriptor of stderr itself.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    os.dup2(1, 2)
    try:
        yield stderr
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)


def time_limit() -> int:
    """Seconds after which a job is given up.

    Raises:
        InputError: If BACH_TIME_LIMIT_S is no such number.
    """
    text = os.environ.get("BACH_TIME_LIMIT_S") or str(TIME_LIMIT_S)
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= threading.TIMEOUT_MAX):
        raise InputError(
            "BACH_TIME_LIMIT_S must be a whole number of seconds from 1.\n"
            f"Received: {text!r:.50}.\nCorrect or unset it."
        )
    return int(text)


@contextlib.contextmanager
def watched(limit: int, stderr: int) -> Iterator[None]:
    """Say once a minute that there is work, and end the process when its time is over.

    Args:
        limit: Seconds.
        stderr: Descriptor to say so.
    """
    start, done = time.monotonic(), threading.Event()

    def watch() -> None:
        while (left := start + limit - time.monotonic()) > 0:
            if done.wait(min(_HEARTBEAT_S, left)):
                return
            log.info("at work for %s, %s", duration(time.monotonic() - start), memory())
        os.write(stderr, f"Given up after {limit} s, the limit (BACH_TIME_LIMIT_S).\n".encode())
        os.kill(os.getpid(), signal.SIGTERM)  # tidies up, as soon as Python has its turn
        if not done.wait(_LAST_S):
            os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def memory() -> str:
    """The most memory that this process has held, in words."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB of memory at most"


if __name__ == "__main__":
    exit_with(main)
