"""Slide jobs: kept, in order, begun once, and never begun for ever."""

import sqlite3
from pathlib import Path

import pytest

from bach.core.errors import InputError
from bach.serve.jobs import CANCELLED, FAILED, FINISHED, MOST_STARTS, QUEUED, RUNNING, Jobs


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "jobs.sqlite")


def test_a_job_is_there_after_the_process_has_ended_without_a_word(tmp_path):
    file = tmp_path / "jobs.sqlite"
    first = Jobs(file).add("é ü.svs", Path("slides/é ü.svs"), 0.25)
    found = Jobs(file).get(first.id)  # the other is still open: nothing was flushed by closing
    assert found == first
    assert (found.slide, found.mpp, found.state) == ("é ü.svs", 0.25, QUEUED)


def test_jobs_are_begun_in_the_order_in_which_they_came(jobs):
    ids = [jobs.add(name, Path(name), None).id for name in "cab"]
    assert [jobs.claim().id for _ in ids] == ids
    assert jobs.claim() is None
    assert [job.id for job in jobs.newest(2)] == ids[:0:-1]


def test_what_was_running_when_the_service_was_killed_waits_again(tmp_path):
    jobs = Jobs(tmp_path / "jobs.sqlite")
    done, cut = (jobs.add(name, Path(name), None) for name in "ab")
    jobs.end(jobs.claim().id, FINISHED)
    jobs.claim()
    again = Jobs(tmp_path / "jobs.sqlite")
    assert again.recover() == 1
    assert again.get(done.id).state == FINISHED
    assert again.get(cut.id).state == QUEUED


def test_a_slide_that_ends_the_service_each_time_is_failed_in_the_end(jobs):
    job = jobs.add("a", Path("a"), None)
    for _ in range(MOST_STARTS):
        assert jobs.claim().id == job.id
        jobs.recover()
    assert jobs.claim() is None
    assert jobs.get(job.id).state == FAILED
    assert f"{MOST_STARTS} starts" in jobs.get(job.id).message


def test_stops_in_good_order_are_not_held_against_a_slide(jobs):
    job = jobs.add("a", Path("a"), None)
    for _ in range(3 * MOST_STARTS):
        assert jobs.claim().state == RUNNING
        jobs.give_back(job.id)
    assert jobs.get(job.id).starts == 0


def test_a_job_ends_once(jobs):
    job = jobs.add("a", Path("a"), None)
    assert jobs.end(job.id, CANCELLED)
    assert not jobs.end(job.id, FINISHED)
    assert jobs.get(job.id).state == CANCELLED
    assert jobs.claim() is None
    assert jobs.counts() == {QUEUED: 0, RUNNING: 0, FINISHED: 0, FAILED: 0, CANCELLED: 1}
    jobs.forget(job.id)
    assert jobs.get(job.id) is None


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_damaged_file_is_refused_by_its_name(tmp_path, content):
    file = tmp_path / "jobs.sqlite"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"jobs\.sqlite must hold the jobs of a service"):
        Jobs(file)
    assert file.read_bytes() == content


def test_a_file_of_a_later_version_or_of_something_else_is_refused(tmp_path):
    for name, change in (("a", "PRAGMA user_version = 99"), ("b", "CREATE TABLE jobs (x INTEGER)")):
        with sqlite3.connect(tmp_path / name) as db:
            db.execute(change)
        with pytest.raises(InputError):
            Jobs(tmp_path / name)
