"""A sample of the campaign: damaged inputs are refused, or give what can be true."""

import io
import random
import zipfile

import pytest
from campaign.cases import FINDINGS, Case, run_all
from campaign.damage import damaged
from campaign.inputs import make_all


def _sample(network, count):
    """The first cases that need the framework, or that do not."""
    cases = (Case(0, number) for number in range(10_000))
    return [case for case in cases if case.kind(case.rng()).network == network][:count]


def _findings(cases, folder):
    ended = list(run_all(cases, folder, workers=1))
    assert len(ended) == len(cases)
    return [row for row in ended if row["outcome"] in FINDINGS]


def test_nothing_that_is_damaged_ends_in_a_traceback_a_hang_or_silence(tmp_path):
    make_all(tmp_path, network=False)
    assert not _findings(_sample(False, 120), tmp_path)


@pytest.mark.slow
def test_no_damaged_model_state_or_store_ends_in_a_traceback_or_silence(tmp_path):
    make_all(tmp_path)
    assert not _findings(_sample(True, 40), tmp_path)


def test_damage_is_decided_by_its_seed():
    content = bytes(range(256)) * 20
    results = [damaged(random.Random(seed), content) for seed in (1, 1, 2)]
    assert results[0] == results[1] != results[2]


def test_an_archive_that_holds_nothing_can_be_damaged_too():
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    for seed in range(30):
        damaged(random.Random(seed), empty.getvalue())
