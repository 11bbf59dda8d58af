"""The two threads that use the network, photos first, and the turns they take."""

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bach.core.errors import InputError
from bach.core.log import log, setup_logging
from bach.serve.figures import Figures
from bach.serve.jobs import CANCELLED, FAILED, FINISHED, Job, Jobs

if TYPE_CHECKING:  # it loads the framework
    from bach.network.served import ServedModels

# So many batches of photos go before one of a slide, so that neither waits for ever.
PHOTO_BATCHES = 4

_LOOK_S = 0.5  # how often a thread that waits looks whether it is to end


class Stopped(KeyboardInterrupt):
    """Work on a slide is to end: its job was cancelled, or the service stops.

    A KeyboardInterrupt, so that the run folder says "interrupted" and nothing swallows it.
    """


class Turns:
    """Who uses the network next: one at a time, photos before slides.

    A slide is predicted between batches of photos. Where photos keep coming, a batch of a
    slide goes after every few of theirs: a photo waits for one batch of a slide at most, and
    a slide goes on.

    Args:
        photos_wait: Whether photos wait.
        figures: Count the time of slides; that of photos is counted by who has them.
    """

    def __init__(self, photos_wait: Callable[[], bool], figures: Figures):
        self._free = threading.Condition()
        self._photos_wait, self._figures = photos_wait, figures
        self._busy = self._slide_waits = False
        self._since = 0  # batches of photos since the last of a slide
        self._closing = self._cancelled = False
        self.batches = 0  # of the slide at work

    @contextlib.contextmanager
    def photos(self) -> Iterator[None]:
        """The turn for a batch of photos."""
        with self._free:
            while self._busy or (self._slide_waits and self._since >= PHOTO_BATCHES):
                self._free.wait(_LOOK_S)
            self._busy = True
            self._since += 1
        try:
            yield
        finally:
            self.release()

    @contextlib.contextmanager
    def slide(self) -> Iterator[None]:
        """The turn for a batch of a slide.

        Raises:
            Stopped: If the slide is not to go on.
        """
        with self._free:
            self._slide_waits = True
            try:
                self.check()
                while self._busy or (self._photos_wait() and self._since < PHOTO_BATCHES):
                    self._free.wait(_LOOK_S)
                    self.check()
            finally:
                self._slide_waits = False
                self._free.notify_all()
            self._busy, self._since = True, 0
            self.batches += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self._figures.model("slides", time.monotonic() - start)
            self.release()

    def release(self) -> None:
        with self._free:
            self._busy = False
            self._free.notify_all()

    def begin(self) -> None:
        """A slide begins."""
        self.batches, self._since, self._cancelled = 0, 0, False

    def cancel(self) -> None:
        """End the slide at work before its next batch."""
        self._cancelled = True

    def close(self) -> None:
        """End the slide at work, and every later one."""
        self._closing = True

    def check(self) -> None:
        """End the slide at work here, if it is not to go on.

        Raises:
            Stopped: Then.
        """
        if self._cancelled:
            raise Stopped(CANCELLED)
        if self._closing:
            raise Stopped("the service stops")


class _Photo(NamedTuple):
    inputs: np.ndarray
    answer: "Future[np.ndarray]"


class PhotoWorker(threading.Thread):
    """Sends photos through the network, as many at a time as wait and fit into a batch.

    Nothing waits for a batch to fill: while one is at work, the next gathers.

    Args:
        models: The models.
        batch_size: Inputs of the network, patches usually, per batch.
        figures: Count the time.
    """

    def __init__(self, models: "ServedModels", batch_size: int, figures: Figures):
        super().__init__(name="photos", daemon=True)
        self._models, self._batch_size, self._figures = models, batch_size, figures
        self._waiting: collections.deque[_Photo] = collections.deque()
        self._changed = threading.Condition()
        self._ends = False
        self.turns = Turns(lambda: bool(self._waiting), figures)

    def submit(self, inputs: np.ndarray) -> "Future[np.ndarray]":
        """Queue the inputs of a photo.

        Args:
            inputs: uint8 `(n, rows, cols, 3)`.

        Returns:
            What becomes float32 `(models, n, classes)`; if it is cancelled in time, the network is
            spared.
        """
        photo = _Photo(inputs, Future())
        with self._changed:
            if self._ends:
                raise RuntimeError("The service stops.")
            self._waiting.append(photo)
            self._changed.notify()
        return photo.answer

    def end(self, wait_s: float) -> None:
        """Answer all that wait, and end."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        if self.is_alive():
            self.join(wait_s)

    def run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ends:
                    self._changed.wait()
                if not self._waiting:
                    return
            with self.turns.photos():
                batch = self._gather()  # now, and not before the turn: more may have come
                if batch:
                    self._answer(batch)

    def _gather(self) -> list[_Photo]:
        """The photos that waited longest and fit together into a batch."""
        batch: list[_Photo] = []
        count = 0
        with self._changed:
            while self._waiting:
                first = self._waiting[0]
                same = not batch or first.inputs.shape[1:] == batch[0].inputs.shape[1:]
                if batch and (count + len(first.inputs) > self._batch_size or not same):
                    break
                self._waiting.popleft()
                if first.answer.set_running_or_notify_cancel():
                    batch.append(first)
                    count += len(first.inputs)
        return batch

    def _answer(self, batch: list[_Photo]) -> None:
        start = time.monotonic()
        try:
            probs = self._models.predict(np.concatenate([photo.inputs for photo in batch]))
        except Exception as error:
            if len(batch) > 1:  # one of them may be at fault
                for photo in batch:
                    self._answer([photo])
                return
            if not isinstance(error, InputError):
                log.exception("a photo could not be predicted")
            batch[0].answer.set_exception(error)
            return
        self._figures.model("photos", time.monotonic() - start, len(batch))
        place = 0
        for photo in batch:
            photo.answer.set_result(probs[:, place : place + len(photo.inputs)])
            place += len(photo.inputs)


class SlideWorker(threading.Thread):
    """Works off the slide jobs, one at a time.

    Args:
        jobs: The jobs.
        turns: Turns at the network.
        make: Makes everything of a job's slide; raises `InputError` if that cannot be done.
        remove: Removes the files of a job that was cancelled.
    """

    def __init__(
        self, jobs: Jobs, turns: Turns, make: Callable[[Job], None], remove: Callable[[Job], None]
    ):
        super().__init__(name="slides", daemon=True)
        self._jobs, self._turns, self._make, self._remove = jobs, turns, make, remove
        self._changed = threading.Condition()
        self._ends = False
        self._at: str | None = None

    def wake(self) -> None:
        """There is a new job."""
        with self._changed:
            self._changed.notify()

    def batches(self, id: str) -> int | None:
        """Batches of the network so far, of the job at work; None of any other."""
        return self._turns.batches if self._at == id else None

    def cancel(self, id: str) -> bool:
        """End a job that waits or is at work; whether it was one."""
        with self._changed:
            if self._at == id:
                self._turns.cancel()
                return True
            job = self._jobs.get(id)
            if job is None or not self._jobs.end(id, CANCELLED):
                return False
        self._remove(job)
        return True

    def interrupt(self) -> None:
        """Begin no further job, and leave the one at work for the next start of the service."""
        self._ends = True
        self._turns.close()

    def end(self, wait_s: float) -> None:
        """As `interrupt`, and wait until it has ended."""
        self.interrupt()
        self.wake()
        if self.is_alive():
            self.join(wait_s)
        if self._at is not None:  # still reading, or writing
            self._jobs.give_back(self._at)

    def run(self) -> None:
        while not self._ends:
            with self._changed:
                job = self._jobs.claim()
                if job is None:
                    self._changed.wait(_LOOK_S)
                    continue
                self._at = job.id
                self._turns.begin()
            self._work(job)
            setup_logging()  # to stderr alone again

    def _work(self, job: Job) -> None:
        log.info("job %s: %s", job.id, job.slide)
        state, message, cancelled = FAILED, "", False
        try:
            self._turns.check()
            self._make(job)
            state = FINISHED
        except Stopped as stopped:
            cancelled = str(stopped) == CANCELLED
            if not cancelled:
                self._jobs.give_back(job.id)
                self._at = None
                return
            state = CANCELLED
        except InputError as error:
            message = str(error)
        except Exception as error:
            log.exception("job %s", job.id)
            message = f"This is a fault of the service, see its log: {type(error).__name__}."
        with self._changed:
            self._jobs.end(job.id, state, message)
            self._at = None
        if cancelled:
            self._remove(job)
        log.info("job %s: %s", job.id, state)
