"""Several processes that train one model; tests/test_resume.py starts them."""

import numpy as np
import pytest

from bach.network import processes


def test_the_shares_of_all_processes_are_the_whole_batch(monkeypatch):
    batch = np.arange(12)
    assert np.array_equal(batch[processes.share(12)], batch)
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "3")
    shares = []
    for index in range(3):
        monkeypatch.setenv("KERAS_DISTRIBUTION_PROCESS_ID", str(index))
        shares.append(batch[processes.share(12)])
    assert [len(share) for share in shares] == [4, 4, 4]
    assert np.array_equal(np.concatenate(shares), batch)


def test_one_process_waits_for_nobody():
    with processes.first_process_first("a name"), pytest.raises(RuntimeError, match="comes out"):
        raise RuntimeError("comes out")
