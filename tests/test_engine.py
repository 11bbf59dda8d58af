"""Workers that share slides: processes, and actors of Ray that are killed in the middle."""

import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path

import keras
import pytest
from commands import kill_when, start
from made_runs import slide_pixels
from test_scripts import files

import make_heatmap
import mine_hard_examples
from bach import engine
from bach.core.errors import InputError
from bach.toy.aperio import write_slide

WAIT = 240


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder of eight slides of several sizes and a damaged one, and a model."""
    folder = tmp_path_factory.mktemp("a study")
    slides = folder / "slides é"
    slides.mkdir()
    for k in range(8):
        write_slide(slides / f"S{k}.svs", slide_pixels(2500 + 500 * k, 2100 + 300 * k, seed=k))
    (slides / "broken.svs").write_bytes(b"no TIFF")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((299, 299, 3))
    x = keras.layers.Conv2D(8, 7, strides=4, activation="relu")(
        keras.layers.Rescaling(1 / 255)(inputs)
    )
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, activation="relu")(x))
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(x))
    model.save(folder / "model.keras")
    return folder


def words(study, run, *more):
    slides = ["--slides", str(study / "slides é")]
    return [*slides, "--model-dir", f"{study}/model.keras", "--run-dir", str(run), *more]


@pytest.fixture(scope="module")
def plain(study):
    """What one process makes of the slides."""
    assert make_heatmap.main(words(study, study / "plain", "--step-um", "90")) == 1
    return files(study / "plain")


@pytest.mark.slow
def test_processes_that_share_the_slides_make_the_same_files(study, plain, tmp_path):
    run = tmp_path / "run"
    more = ["--step-um", "90", "--workers", "2"]
    assert make_heatmap.main(words(study, run, *more)) == 1
    assert files(run) == plain
    assert sorted(path.name for path in run.glob("shards/*")) == ["1_of_2", "2_of_2"]
    with pytest.raises(InputError, match="already holds"):
        make_heatmap.main(words(study, run, *more))


@pytest.fixture
def cluster():
    """A Ray cluster of two nodes with one CPU core each, the second not of the first's making."""
    pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield made, made.add_node(num_cpus=1)
    made.shutdown()


def until(holds, process):
    end = time.monotonic() + WAIT
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)


def workers(run):
    """The processes of each worker, in the order of their starts, by what they log."""
    logs = sorted(run.glob("shards/1_of_1/worker_*.log"))
    return [list(map(int, re.findall(r"worker: process (\d+)", log.read_text()))) for log in logs]


def made(run):
    return len(list((run / "slides").glob("*.json")))


@pytest.mark.slow
def test_ray_makes_the_same_files_though_a_worker_is_killed_and_a_node_removed(
    study, plain, cluster, tmp_path
):
    nodes, second = cluster
    run = tmp_path / "run"
    more = ["--step-um", "90", "--engine", "ray", "--address", nodes.address]
    process = start(["make_heatmap.py", *words(study, run, *more)], {"TF_NUM_INTRAOP_THREADS": "1"})
    until(lambda: made(run) >= 1, process)
    first = workers(run)
    assert [len(pids) for pids in first] == [1, 1]
    os.kill(first[0][0], signal.SIGKILL)
    until(lambda: made(run) >= 3 and len(workers(run)[0]) == 2, process)
    nodes.remove_node(second)
    said = process.communicate(timeout=WAIT)[0]
    assert process.returncode == 1, said
    assert files(run) == plain
    assert "broken" in json.loads((run / "failures.json").read_text())
    assert "8 of 8 slides" in said
    assert "slides/h" in said
    assert "tried again" in said


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--engine", "ray"], []], ids=["ray", "processes"])
def test_workers_end_when_they_are_asked_to_and_what_is_left_is_done_by_any_means(
    study, plain, tmp_path, more
):
    if more:
        pytest.importorskip("ray")
    run = tmp_path / "run"
    command = words(study, run, "--step-um", "90")
    make_heatmap.main([*command, "--shard", "1/8"])
    asked = ["make_heatmap.py", *command, "--workers", "2", "--resume", *more]
    before = made(run)
    said, code = kill_when(asked, lambda: made(run) > before, WAIT, how=signal.SIGTERM)
    assert code == 143, said
    left = made(run)
    assert left < 8
    time.sleep(3)
    assert made(run) == left  # nobody goes on
    assert not any(alive(pid) for pids in workers(run) for pid in pids)
    assert make_heatmap.main([*command, "--resume"]) == 1
    assert files(run) == plain


def alive(pid):
    with contextlib.suppress(OSError):
        return b"python" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@pytest.mark.slow
def test_slides_are_mined_by_ray_as_by_one_process(study, toy, tmp_path):
    pytest.importorskip("ray")
    command = f"--data-dir {toy} --folds {toy}/part_b.csv --hard-examples 40 --stride-um 300"
    command = [*command.split(), "--model-dir", f"{study}/model.keras", "--run-dir"]
    assert mine_hard_examples.main([*command, str(tmp_path / "one")]) == 0
    ray = ["--engine", "ray", "--workers", "2"]
    assert mine_hard_examples.main([*command, str(tmp_path / "two"), *ray]) == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")


class Actor:
    """Does what it is told to by the name of a slide."""

    def ready(self):
        return None

    def do(self, row):
        if row["image_id"].startswith("kills"):
            os._exit(1)
        if row["image_id"] == "bug":
            raise ZeroDivisionError("a bug")
        return {"failed": "damaged"} if row["image_id"] == "bad" else {}


class Unable:
    """Has no models."""

    def __init__(self):
        raise ZeroDivisionError("no models")

    def ready(self):
        return None


def test_what_kills_its_worker_twice_has_failed_and_the_others_go_on():
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    with engine.cluster(ray, None, 2):
        remote = ray.remote(Actor).options(max_restarts=9)
        pool = engine.Pool(ray, lambda number: remote.remote(), 2)
        names = ["kills", "a", "bug", "b", "bad", "kills too", "c"]
        rows = [{"image_id": name} for name in names]
        done, failures = pool.each("do", rows, engine.Progress(dict.fromkeys(names, 1.0)))
        pool = engine.Pool(ray, lambda number: ray.remote(Unable).remote(), 2)
        with pytest.raises(ray.exceptions.RayError, match="no models"):
            pool.each("do", rows)
    assert sorted(done) == ["a", "b", "c"]
    assert sorted(failures) == ["bad", "bug", "kills", "kills too"]
    assert failures["bad"] == "damaged"
    assert "in do\n" in failures["bug"]
    assert "\x1b" not in failures["bug"]
    assert failures["kills"].startswith("Its worker ended")


def test_the_largest_go_first_and_the_time_left_goes_by_tissue(caplog):
    progress = engine.Progress({"large": 90.0, "small": 10.0})
    progress._start -= 3600
    caplog.set_level("INFO")
    progress.tell("large")
    assert caplog.messages[-1].startswith("large: 1 of 2 slides, 1 slides/h, 90 mm2/h, ")
    assert re.search(r"6 min.* left", caplog.messages[-1])
    progress.tell("small")
    assert "left" not in caplog.messages[-1]


def options(*more):
    return make_heatmap.parse_args(["--slides", "a.svs", *more])


def test_a_part_is_not_shared_and_what_is_brought_together_is_not_done():
    assert not engine.spreads(options())
    assert not engine.spreads(options("--workers", "1", "--shard", "1/2"))
    assert not engine.spreads(options("--engine", "ray", "--collect"))
    assert engine.spreads(options("--workers", "0"))
    assert engine.spreads(options("--engine", "ray", "--workers", "1"))
    with pytest.raises(InputError, match="Leave out --shard"):
        engine.spreads(options("--workers", "2", "--shard", "1/2"))


def test_gpus_are_those_that_the_environment_names_or_the_driver_lists(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-a")
    assert engine.gpus() == ["3", "GPU-a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert engine.gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    listing = tmp_path / "nvidia-smi"
    listing.write_text(
        "#!/bin/sh\necho 'GPU 0: H100 (UUID: x)'\necho '  MIG 1g'\necho 'GPU 1: H100'\n"
    )
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert engine.gpus() == ["0", "1"]
    listing.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert engine.gpus() == []


def test_without_ray_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    write_slide(tmp_path / "a.svs", slide_pixels(900, 900))
    command = ["--slides", str(tmp_path / "a.svs"), "--run-dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match=r"bach-histology\[ray\]"):
        make_heatmap.main([*command, "--engine", "ray"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:99999", "nonsense", "no host:1"])
def test_a_cluster_that_is_not_there_is_an_input_error(address):
    ray = pytest.importorskip("ray")
    with pytest.raises(InputError, match="ray start --head"), engine.cluster(ray, address):
        pass
