"""Turns at the network: photos first, a slide in between, and neither for ever."""

import threading
import time

import numpy as np
import pytest

from bach.core.errors import InputError
from bach.serve.figures import Figures
from bach.serve.jobs import CANCELLED, FAILED, FINISHED, QUEUED, RUNNING, Jobs
from bach.serve.worker import PHOTO_BATCHES, PhotoWorker, SlideWorker, Stopped, Turns

SIDE = 4


class Sums:
    """Stands where the models do: the answer of an input is told by its first pixel."""

    def __init__(self, bad: int | None = None):
        self.sizes: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.bad = bad

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        self.free.wait(20)
        self.sizes.append(len(inputs))
        if self.bad in inputs[:, 0, 0, 0]:
            raise InputError("A network must return probabilities.")
        return np.repeat(inputs[None, :, 0, 0, 0, None], 4, axis=-1).astype(np.float32)


def photo(value: int, count: int = 1, side: int = SIDE) -> np.ndarray:
    return np.full((count, side, side, 3), value, np.uint8)


@pytest.fixture
def sums():
    return Sums()


@pytest.fixture
def worker(sums):
    made = PhotoWorker(sums, 8, Figures())
    made.start()
    yield made
    made.end(20)


def test_photos_that_wait_go_through_together_and_get_their_own_answers(worker, sums):
    sums.free.clear()
    first = worker.submit(photo(0))
    while not first.running():
        time.sleep(0.001)
    answers = [worker.submit(photo(value, 3)) for value in range(1, 6)]
    sums.free.set()
    for value, answer in enumerate(answers, start=1):
        assert answer.result(20).shape == (1, 3, 4)
        assert (answer.result(20) == value).all()
    assert sums.sizes == [1, 6, 6, 3]  # as many as fit whole into a batch of 8


def test_photos_of_other_sizes_go_apart(worker, sums):
    sums.free.clear()
    first = worker.submit(photo(0))
    while not first.running():
        time.sleep(0.001)
    answers = [worker.submit(photo(7, 2, side)) for side in (4, 5, 5, 4)]
    sums.free.set()
    assert [float(answer.result(20).max()) for answer in answers] == [7.0] * 4
    assert sums.sizes == [1, 2, 4, 2]


def test_a_photo_that_cannot_be_predicted_does_not_spoil_the_others(worker, sums):
    sums.bad = 3
    sums.free.clear()
    first = worker.submit(photo(0))
    while not first.running():
        time.sleep(0.001)
    answers = {value: worker.submit(photo(value, 2)) for value in (2, 3, 4)}
    sums.free.set()
    with pytest.raises(InputError):
        answers.pop(3).result(20)
    for value, answer in answers.items():
        assert (answer.result(20) == value).all()


def test_the_network_is_spared_a_photo_that_nobody_waits_for(worker, sums):
    sums.free.clear()
    first = worker.submit(photo(0))
    while not first.running():
        time.sleep(0.001)
    assert worker.submit(photo(1)).cancel()
    last = worker.submit(photo(2))
    sums.free.set()
    last.result(20)
    assert sums.sizes == [1, 1]


def test_all_that_wait_are_answered_before_the_end(worker, sums):
    answers = [worker.submit(photo(value % 200)) for value in range(40)]
    worker.end(20)
    assert all(answer.done() for answer in answers)
    with pytest.raises(RuntimeError):
        worker.submit(photo(1))


def test_a_slide_goes_on_between_photos_and_photos_between_a_slides_batches(worker, sums):
    order: list[str] = []
    plain = sums.predict

    def predict(inputs):
        order.append("photo")
        return plain(inputs)

    sums.predict = predict
    ends = threading.Event()

    def work_on_a_slide() -> None:
        while not ends.is_set():
            with worker.turns.slide():
                order.append("slide")
                time.sleep(0.001)

    slide = threading.Thread(target=work_on_a_slide)
    slide.start()
    answers = [worker.submit(photo(value % 200, 8)) for value in range(60)]  # a batch each
    for answer in answers:
        answer.result(20)
    ends.set()
    slide.join()
    inside = order[order.index("photo") : len(order) - order[::-1].index("photo")]
    text = "".join(word[0] for word in inside)
    assert max(map(len, text.split("s"))) <= PHOTO_BATCHES + 1
    assert max(map(len, text.split("p"))) <= 2  # while photos wait, one batch of the slide


def test_a_slide_that_is_cancelled_ends_at_its_next_turn():
    turns = Turns(lambda: False, Figures())
    with turns.slide():
        pass
    turns.cancel()
    with pytest.raises(Stopped, match="cancelled"), turns.slide():
        pass
    turns.begin()  # the next one
    with turns.slide():
        pass
    turns.close()
    turns.begin()
    with pytest.raises(Stopped, match="the service stops"), turns.slide():
        pass


def slides(tmp_path, make):
    jobs = Jobs(tmp_path / "jobs.sqlite")
    removed: list[str] = []
    turns = Turns(lambda: False, Figures())
    worker = SlideWorker(jobs, turns, make(turns), lambda job: removed.append(job.id))
    worker.start()
    return jobs, worker, removed


def wait(jobs, id, state):
    end = time.monotonic() + 20
    while jobs.get(id).state != state:
        assert time.monotonic() < end, jobs.get(id)
        time.sleep(0.01)


def test_slides_are_made_one_by_one_and_a_failure_stops_no_other(tmp_path):
    def make(turns):
        def one(job):
            if job.slide == "bad":
                raise InputError("It must be a slide.")
            if job.slide == "bug":
                raise ValueError("secret")

        return one

    jobs, worker, removed = slides(tmp_path, make)
    ids = {name: jobs.add(name, tmp_path / name, None).id for name in ("bad", "bug", "good")}
    worker.wake()
    wait(jobs, ids["good"], FINISHED)
    assert jobs.get(ids["bad"]).state == jobs.get(ids["bug"]).state == FAILED
    assert jobs.get(ids["bad"]).message == "It must be a slide."
    assert "ValueError" in jobs.get(ids["bug"]).message
    assert "secret" not in jobs.get(ids["bug"]).message
    assert removed == []
    worker.end(20)


def forever(turns):
    def one(job):
        while True:
            with turns.slide():
                time.sleep(0.001)

    return one


def test_jobs_are_cancelled_at_work_or_while_they_wait(tmp_path):
    jobs, worker, removed = slides(tmp_path, forever)
    first, second = (jobs.add(name, tmp_path / name, None).id for name in "ab")
    wait(jobs, first, RUNNING)
    assert worker.cancel(second)
    assert worker.cancel(first)
    wait(jobs, first, CANCELLED)
    wait(jobs, second, CANCELLED)
    end = time.monotonic() + 20
    while len(removed) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not worker.cancel(first)
    worker.end(20)


def test_the_slide_at_work_waits_for_the_next_start_when_the_service_ends(tmp_path):
    jobs, worker, removed = slides(tmp_path, forever)
    job = jobs.add("a", tmp_path / "a", None)
    wait(jobs, job.id, RUNNING)
    worker.end(20)
    assert not worker.is_alive()
    assert jobs.get(job.id).state == QUEUED
    assert jobs.get(job.id).starts == 0
    assert removed == []
