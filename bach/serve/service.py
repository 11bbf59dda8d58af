"""The service itself: models, threads, jobs, and how much it takes on."""

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bach.core.errors import InputError
from bach.core.files import require_place, writing
from bach.core.log import log
from bach.core.pictures import read_header
from bach.core.tables import require_names
from bach.data import knows_scale, photo_size, photo_sizes, read_photo
from bach.serve.figures import Figures, Labels
from bach.serve.jobs import ENDED, FINISHED, QUEUED, Job, Jobs, new_id
from bach.serve.settings import Options, find_root
from bach.serve.slides import (
    HeatmapOptions,
    find_below,
    job_files,
    list_root,
    make_job,
    viewer_page,
)
from bach.serve.worker import PhotoWorker, SlideWorker
from bach.slides import SLIDE_SUFFIXES, Slide, check_mpp
from bach.tasks import task

INPUT, OUTPUT = "patches", "probabilities"  # tensors of the Open Inference Protocol

_PHOTO = "Send a TIFF, PNG or JPEG of 8-bit RGB."
_TYPICAL = 14  # patches of a photo
_SURE = 0.75  # share of the time limit up to which a wait that is foreseen will do
_STOP_S = 20.0  # for which the end waits for a slide between two batches
_ROOM = 2**30  # bytes of the disk that an upload must leave


class BusyError(Exception):
    """More is asked for than can wait.

    Attributes:
        retry_s: When to ask again, in whole seconds.
    """

    def __init__(self, message: str, retry_s: int):
        super().__init__(message)
        self.retry_s = retry_s


class Service:
    """All that lives as long as the service does.

    Args:
        options: Options of the command.

    Attributes:
        figures: What is counted.
        incoming: Folder of what is being received.
        ready: Whether the models are loaded.

    Raises:
        InputError: If a folder or the jobs in it cannot be used.
    """

    def __init__(self, options: Options):
        self.options = options
        self.root = find_root(options)
        self.folder = Path(options.jobs_dir)
        require_place(self.folder, "Name another --jobs-dir.", folder=True)
        self.incoming, self._uploads = self.folder / "incoming", self.folder / "uploads"
        shutil.rmtree(self.incoming, ignore_errors=True)  # what a killed service left
        with writing(self.folder):
            self.incoming.mkdir(parents=True)
            self._uploads.mkdir(exist_ok=True)
        self.jobs = Jobs(self.folder / "jobs.sqlite")
        again = self.jobs.recover()
        if again:
            log.info("%d jobs were interrupted and begin again", again)
        self.figures = Figures()
        self.ready = False
        self._photos = 0  # from the first byte to the answer
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1, "decode")

    def start(self) -> None:
        """Load the models and begin to work.

        Raises:
            InputError: If the models cannot be used.
        """
        from bach.network import backend  # loads the framework, which --help must not
        from bach.network.served import ServedModels

        options = self.options
        self._device = backend.start(options.devices, precision=options.precision)
        self.platform = f"keras_{self._device['backend']}"
        settings = self._heatmap_options("", "", None)
        self.models = ServedModels(settings, options.tta)
        self._worker = PhotoWorker(self.models, options.batch_size, self.figures)
        self._predictor = self.models.predictor(options.cell_um, self._worker.turns.slide)
        rows, cols = (side or 512 for side in self.models.input_shape)
        # Compiled before it is asked, by TensorFlow for any number; the last tells the time.
        for count in (2, _TYPICAL, _TYPICAL):
            begun = time.monotonic()
            self.models.predict(np.zeros((count, rows, cols, 3), np.uint8))
            self.figures.photo_s = time.monotonic() - begun
        self._slides = SlideWorker(self.jobs, self._worker.turns, self._make, self._remove)
        self._worker.start()
        if self._predictor is not None:
            self._slides.start()
        self.ready = True

    def interrupt(self) -> None:
        """A signal has come: the slide at work is left for the next start."""
        self.ready = False
        self._slides.interrupt()

    def stop(self) -> None:
        """Answer the photos that wait, put the slide at work back, and end."""
        self.interrupt()
        self._worker.end(self.options.time_limit_s)
        self._slides.end(_STOP_S)
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self.jobs.close()
        shutil.rmtree(self.incoming, ignore_errors=True)

    # Photos

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """A place among the photos, for a limited time.

        Raises:
            BusyError: If there is none, or the answer would take too long.
            TimeoutError: If the body takes too long.
        """
        each = self.figures.photo_s
        wait_s = self._photos * each
        if self._photos >= self.options.queue or wait_s > _SURE * self.options.time_limit_s:
            retry_s = min(60, max(1, math.ceil(wait_s / 2)))
            raise BusyError(f"{self._photos} photos wait already; ask again later.", retry_s)
        self._photos += 1
        try:
            async with asyncio.timeout(self.options.time_limit_s):
                yield
        finally:
            self._photos -= 1

    async def photo_inputs(self, path: Path, filename: str, mpp: str) -> np.ndarray:
        """What the network is given of a photo that was sent.

        Args:
            path: Where it lies.
            filename: How the client calls it.
            mpp: um per px as the client states it, or "".

        Raises:
            InputError: If it cannot be used.
        """
        loop = asyncio.get_running_loop()
        try:
            given = _number(mpp, "mpp") or self.options.photo_mpp
            return await loop.run_in_executor(self._decoders, self._read_photo, path, given)
        except InputError as error:
            shown = str(error).replace(str(path), filename or "The photo")
            raise InputError(shown.replace("--mpp", "the field mpp")) from error

    async def tensor_inputs(self, body: bytes) -> tuple[np.ndarray, object]:
        """The tensor of an inference request, and the request's id.

        Raises:
            InputError: If it is not what the model takes.
        """
        loop = asyncio.get_running_loop()
        shape = self.models.input_shape
        return await loop.run_in_executor(self._decoders, read_tensor, body, shape)

    async def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Probabilities: float32 `(models, n, classes)`.

        Raises:
            InputError: If the network returns something else.
        """
        return await asyncio.wrap_future(self._worker.submit(inputs))

    def _read_photo(self, path: Path, given: float | None) -> np.ndarray:
        width, height, _ = read_header(path, _PHOTO)  # before it is decoded
        if given is None and not knows_scale(width, height):
            raise InputError(
                f"Photos that are not {photo_size()} px must have a stated scale.\n"
                f"Received: {path}, {width}x{height} px, and no scale.\n"
                "Send it in the field mpp, in um per px; "
                f"{task().photo_mpp} if the photo is as the challenge's."
            )
        mpp = task().photo_mpp if given is None else check_mpp(given)
        row = {"path": [str(path)], "width": [width], "height": [height], "mpp": [mpp]}
        table = pd.DataFrame(row)
        photo_sizes(table, self.models.least)
        return self.models.inputs(read_photo(path, mpp))

    # Slides

    def slides(self) -> list[str]:
        """The slides of the root; none where there is no root."""
        return [] if self.root is None else list_root(self.root)

    def require_slides(self) -> None:
        """Refuse slides where no more can wait, or the model knows nothing of them.

        Raises:
            BusyError, InputError: Then.
        """
        if self._predictor is None:
            raise InputError(
                "Slides are predicted by patch networks; the one of this service judges photos.\n"
                "Received: a slide.\nStart a service with the networks that it was made from."
            )
        waiting = self.jobs.counts()[QUEUED]
        if waiting >= self.options.slide_queue:
            raise BusyError(f"{waiting} slides wait already; ask again later.", 60)

    def add_below(self, named: str, mpp: str) -> Job:
        """Queue a slide of the root.

        Raises:
            InputError: If it cannot be used.
        """
        if self.root is None:
            raise InputError(
                "A path can be named where the service has a folder of slides.\n"
                f"Received: {named!r:.200}, and no --slides-root.\n"
                "Send the file in the field slide."
            )
        try:
            return self._add(named, find_below(self.root, named), _number(mpp, "mpp"), new_id())
        except InputError as error:
            raise self._without_folders(error) from error

    def add_upload(self, received: Path, filename: str, mpp: str) -> Job:
        """Queue a slide that was sent; its file is moved.

        Raises:
            InputError: If it cannot be used.
        """
        if Path(filename).suffix.lower() not in SLIDE_SUFFIXES:
            raise InputError(
                f"A slide must be one of {' '.join(SLIDE_SUFFIXES)}.\n"
                f"Received: {filename!r}.\nConvert it to a tiled TIFF."
            )
        require_names([Path(filename).stem])
        id = new_id()
        path = self._uploads / id / filename
        with writing(path):
            path.parent.mkdir()
            os.replace(received, path)
        try:
            return self._add(filename, path, _number(mpp, "mpp"), id)
        except InputError as error:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise self._without_folders(error) from error

    def require_room(self, size: int) -> None:
        """Refuse an upload that the disk has no room for.

        Raises:
            InputError: Then.
        """
        free = shutil.disk_usage(self.folder).free
        if size + _ROOM > free:
            raise InputError(
                "There must be room for the slide.\n"
                f"Received: {size / 2**30:.1f} GB, and {free / 2**30:.1f} GB are free.\n"
                "Delete jobs that are not needed any more."
            )

    def about(self, job: Job) -> dict[str, Any]:
        """What is said of a job."""
        told: dict[str, Any] = job._asdict()
        del told["path"], told["starts"]
        told["batches"] = self._slides.batches(job.id)
        told["results"] = {}
        if job.state == FINISHED:
            base = f"/jobs/{job.id}"
            files = job_files(self.folder / job.id, Path(job.path).stem)
            told["results"] = {what: f"{base}/{what}" for what in files}
            told["results"]["report"] = f"{base}/report/"
            page = viewer_page(self.folder / job.id, Path(job.path).stem)
            if page is not None:
                told["results"]["viewer"] = f"{base}/report/{page}"
        return told

    def result(self, job: Job, what: str) -> Path | None:
        """A file of a finished job, or None where there is none of that name."""
        return job_files(self.folder / job.id, Path(job.path).stem).get(what)

    def page(self, job: Job, below: str) -> Path | None:
        """A file of a job's report, or None where there is none."""
        report = self.folder / job.id / "report"
        path = Path(os.path.normpath(report / (below or "index.html")))
        inside = path.is_relative_to(os.path.normpath(report)) and "\0" not in below
        return path if inside and os.path.isfile(path) else None

    def delete(self, job: Job) -> Job | None:
        """Cancel a job; of one that has ended, remove all files and the record.

        Returns:
            The job as it then is, or None where it is gone.
        """
        if job.state in ENDED:
            self._remove(job)
            self.jobs.forget(job.id)
        else:
            self._slides.cancel(job.id)
        return self.jobs.get(job.id)

    def gauges(self) -> list[tuple[str, str, Mapping[Labels, float]]]:
        """What is looked up for /metrics."""
        states: dict[Labels, float] = {
            (("state", state),): count for state, count in self.jobs.counts().items()
        }
        return [
            (
                "bach_photos_waiting",
                "Photos from their first byte to the answer.",
                {(): self._photos},
            ),
            ("bach_photos_limit", "As many may wait.", {(): self.options.queue}),
            ("bach_jobs", "Slide jobs by state.", states),
            ("bach_ready", "Whether the models are loaded.", {(): int(self.ready)}),
        ]

    def _add(self, slide: str, path: Path, mpp: float | None, id: str) -> Job:
        scale = self.options.mpp if mpp is None else check_mpp(mpp)
        with Slide(path, mpp=scale):  # so that who sends it hears at once
            pass
        job = self.jobs.add(slide, path, mpp, id)
        self._slides.wake()
        log.info("job %s: %s queued", job.id, slide)
        return job

    def _without_folders(self, error: InputError) -> InputError:
        """An error that does not tell where things lie on this machine."""
        text = str(error)
        for folder in (self.root, self._uploads):
            if folder is not None:
                text = text.replace(f"{folder}{os.sep}", "")
        return InputError(text.replace("--mpp", "the field mpp"))

    def _make(self, job: Job) -> None:
        assert self._predictor is not None
        settings = self._heatmap_options(job.path, job.id, job.mpp)
        try:
            make_job(settings, self._predictor, self._device, self._worker.turns.check)
        except InputError as error:
            raise self._without_folders(error) from error

    def _remove(self, job: Job) -> None:
        for folder in (self.folder / job.id, self._uploads / job.id):
            shutil.rmtree(folder, ignore_errors=True)

    def _heatmap_options(self, path: str, id: str, mpp: float | None) -> HeatmapOptions:
        own = {field.name for field in dataclasses.fields(HeatmapOptions)}
        values = {name: value for name, value in vars(self.options).items() if name in own}
        values |= {"slides": (path,), "run_dir": str(self.folder / id), "resume": True}
        # No challenge data: a report must not look for them.
        values |= {"data_dir": str(self.folder / "none"), "step_um": self.options.cell_um}
        values |= {} if mpp is None else {"mpp": mpp}
        return HeatmapOptions(**values)


def read_tensor(body: bytes, shape: tuple[int | None, int | None]) -> tuple[np.ndarray, object]:
    """The one input of an inference request as the Open Inference Protocol writes it.

    Args:
        body: JSON.
        shape: Rows and columns that the model takes, None where any will do.

    Returns:
        uint8 `(n, rows, cols, 3)`, and the request's id or None.

    Raises:
        InputError: If it is anything else.
    """
    wanted = [-1, *(side or -1 for side in shape), 3]
    remedy = f"Send one input {INPUT!r} of datatype UINT8 and shape {wanted}, values 0 to 255."

    def wrong(received: object) -> InputError:
        return InputError(
            f"An inference request must hold what the model takes.\nReceived: {received}.\n{remedy}"
        )

    try:
        request = json.loads(body)
        (tensor,) = request["inputs"]
        size, kind, name = tensor["shape"], tensor["datatype"], tensor["name"]
        outputs = [output["name"] for output in request.get("outputs") or [{"name": OUTPUT}]]
        id = request.get("id")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise wrong(f"{type(error).__name__}: {error}"[:200]) from error
    if name != INPUT or kind != "UINT8" or outputs != [OUTPUT]:
        raise wrong(f"input {name!r} of {kind!r}, output {outputs}"[:200])
    plain = isinstance(size, list) and all(type(side) is int and side > 0 for side in size)
    if (
        not plain
        or len(size) != 4
        or any(w not in (-1, s) for w, s in zip(wanted, size, strict=True))
    ):
        raise wrong(f"shape {size}"[:200])
    try:
        values = np.asarray(tensor["data"])
        if values.dtype.kind not in "iu" or values.size != math.prod(size):
            raise ValueError(f"{values.size} values of kind {values.dtype}")
        if values.min() < 0 or values.max() > 255:
            raise ValueError(f"values {values.min()} to {values.max()}")
    except (KeyError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise wrong(f"data: {error}"[:200]) from error
    return values.reshape(size).astype(np.uint8), id


def _number(text: str, name: str) -> float | None:
    """A number that a client states, None of "".

    Raises:
        InputError: If it is none, or not above 0.
    """
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(
            f"{name} must be a number above 0.\nReceived: {text!r:.50}.\n"
            "State um per px: 0.42, say."
        )
    return value


def predictions(probs: np.ndarray) -> list[dict[str, Any]]:
    """Probabilities of a photo in the form of IBM's Model Asset eXchange, highest first.

    Args:
        probs: float32 `(models, n, classes)`, whose mean is taken as `predict_photos` does.
    """
    means = probs.mean(axis=(0, 1))
    return [
        {"label_id": str(label), "label": task().classes[label], "probability": float(means[label])}
        for label in np.argsort(-means, kind="stable").tolist()
    ]
