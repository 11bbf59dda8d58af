"""A task of somebody else, from a file and a table of photos, through all that there is."""

import gzip
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import bach
import make_heatmap
import mine_hard_examples
import train_final
import train_part_a
from bach import calibration, folds, tasks, thresholds
from bach import data as check
from bach.core.errors import InputError
from bach.core.tables import image_key
from bach.export import __main__ as export
from bach.honest.splits import check_unshared
from bach.report import __main__ as report
from bach.toy.aperio import write_slide

TASK = """
photo_mpp = 1.0
patch_px = 96
stride_px = 64
side_px = 96
classes = ["Fat", "Gland", {name = "Stroma A", spellings = ["fibrous"]}, "Lymph", "Tumour"]
"""
CLASSES = ["Fat", "Gland", "Stroma A", "Lymph", "Tumour"]
# A network can tell these by their colour; all are pink or purple enough for tissue.
TINTS = [(235, 190, 215), (200, 90, 170), (240, 130, 160), (110, 70, 170), (150, 30, 90)]


def painted(rng, label, height, width):
    noise = rng.normal(0, 12, (height, width, 3))
    return np.clip(np.array(TINTS[label]) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Photos of five classes in a table, of four patients, and two slides of all classes."""
    path = tmp_path_factory.mktemp("other task")
    (path / "my_task.toml").write_text(TASK)
    (path / "photos").mkdir()
    rng, rows = np.random.default_rng(0), []
    for number in range(20):
        label = number % 5
        file = path / f"photos/Bild {number}.png"
        # Every fourth at another scale, which the table states.
        mpp = 2.0 if number % 4 == 3 else 1.0
        size = round(160 / mpp)
        Image.fromarray(painted(rng, label, size, size)).save(file)
        name = "fibrous" if label == 2 else CLASSES[label].lower()
        rows.append((f"photos/{file.name}", name, f"P{number // 5}", mpp if mpp != 1 else ""))
    table = pd.DataFrame(rows, columns=["path", "label", "patient", "mpp"])
    table.to_csv(path / "photos.csv", index=False)

    (path / "WSI").mkdir()
    for name in ("one", "two"):
        pixels = np.full((900, 1100, 3), 243, np.uint8)
        shapes = []
        for label in range(5):
            top, left = 100 + 350 * (label // 3), 100 + 300 * (label % 3)
            pixels[top : top + 300, left : left + 260] = painted(rng, label, 300, 260)
            box = [(left, top), (left + 260, top), (left + 260, top + 300), (left, top + 300)]
            ring = [[list(map(float, point)) for point in (*box, box[0])]]
            properties = {"classification": {"name": CLASSES[label]}}
            geometry = {"type": "Polygon", "coordinates": ring}
            shapes.append({"type": "Feature", "geometry": geometry, "properties": properties})
        write_slide(path / f"WSI/{name}.svs", pixels, 1.0)
        text = json.dumps({"type": "FeatureCollection", "features": shapes})
        (path / f"WSI/{name}.geojson").write_text(text)
    return path


@pytest.fixture(scope="module")
def runs(data):
    """All four steps; only the first is told the task."""
    task, out = ["--task", str(data / "my_task.toml")], data / "runs"
    make = ["make", *task, "--folds", "2", "--part"]
    folds.main([*make, "a", "--images", f"{data}/photos.csv", "--out", f"{data}/a.csv"])
    folds.main([*make, "b", "--data-dir", str(data), "--out", f"{data}/b.csv"])
    network = ["--backbone", "small", "--weights", "none", "--epochs", "12", "--batch-size", "8"]
    network += ["--learning-rate", "0.01", "--bn-patches", "64"]
    photos = ["--images", f"{data}/photos.csv", "--folds", f"{data}/a.csv"]
    train_part_a.main([*task, *network, *photos, "--run-dir", f"{out}/part_a"])
    slides = ["--data-dir", str(data), "--folds", f"{data}/b.csv"]
    mined = ["--model-dir", f"{out}/part_a", "--stride-um", "48", "--hard-examples", "50"]
    mine_hard_examples.main([*slides, *mined, "--hardest", "1", "--run-dir", f"{out}/hard"])
    both = ["--part-a-dir", f"{out}/part_a", "--hard-examples-dir", f"{out}/hard"]
    train_final.main(
        [*network, *both, "--folds", f"{data}/b.csv", "--epochs", "8", "--run-dir", f"{out}/final"]
    )
    final = ["--model-dir", f"{out}/final", "--step-um", "48"]
    make_heatmap.main([*slides[:2], *final, "--run-dir", f"{out}/heatmaps"])
    return out


def test_all_five_classes_are_learned_and_scored(runs):
    metrics = json.loads((runs / "part_a/metrics.json").read_text())
    assert np.shape(metrics["confusion"]) == (5, 5)
    assert list(metrics["sensitivity"]) == CLASSES
    assert metrics["images"] == 20
    assert metrics["accuracy"] > 0.8
    table = pd.read_csv(runs / "part_a/predictions.csv")
    assert [f"prob_{name}" for name in ("fat", "gland", "stroma_a", "lymph", "tumour")] == [
        name for name in table if name.startswith("prob_")
    ]
    patches = pd.read_csv(runs / "part_a/patch_predictions.csv")
    assert patches.groupby("image_id").size().tolist() == [4] * 20  # at 1 um/px all are alike


def test_hard_examples_are_of_all_five(runs):
    hard = pd.read_csv(runs / "hard/hard_examples.csv")
    assert hard.loc[hard["draw_all"] == 1, "label"].value_counts().to_dict() == dict.fromkeys(
        range(5), 10
    )


def test_slides_become_class_maps_of_five_classes_by_the_largest_probability(runs):
    from bach.labels import read_class_map

    record = json.loads((runs / "heatmaps/run.json").read_text())
    assert record["arguments"]["rule"] == "largest"
    assert record["task"]["spec"]["photo_mpp"] == 1.0
    with pytest.raises(InputError, match=r"classes 0\.\.3"):
        read_class_map(runs / "heatmaps/class_maps/one.png")
    tasks.use(None, runs / "heatmaps")
    assert set(np.unique(read_class_map(runs / "heatmaps/class_maps/one.png"))) == set(range(5))
    metrics = json.loads((runs / "heatmaps/metrics.json").read_text())
    assert metrics["score"] > 0.7
    slides = pd.read_csv(runs / "heatmaps/slides.csv")
    assert slides["tumour_mm2"].between(0.05, 0.11).all()  # painted: 0.078


def test_every_later_step_takes_the_task_of_what_it_builds_on(data, runs):
    for name in ("hard", "final", "heatmaps"):
        record = json.loads((runs / name / "run.json").read_text())
        assert record["task"]["name"] == "my_task"
        assert record["arguments"]["task"] is None
    words = ["--data-dir", str(data), "--model-dir", f"{runs}/final", "--task", "bach"]
    with pytest.raises(InputError, match=r"must be of its task.\nReceived: .* of the task my_task"):
        make_heatmap.main([*words, "--run-dir", f"{data}/none"])


def test_a_report_and_the_other_commands_know_the_classes(runs, tmp_path, capsys):
    places = [str(runs / name) for name in ("part_a", "hard", "final", "heatmaps")]
    report.main(["html", *places, "--out", f"{tmp_path}/report"])
    page = (tmp_path / "report/index.html").read_text()
    for name in CLASSES:
        assert name in page
    assert "InSitu" not in page
    assert "five classes" in page
    slide = next((tmp_path / "report/slides").glob("*_one/index.html")).read_text()
    assert "<span>0 Fat</span><span>heatmap</span><span>1 not Fat</span>" in slide
    assert calibration.main([str(runs / "part_a")]) == 0
    export.main(["qupath", str(runs / "heatmaps"), "--out", f"{tmp_path}/qupath"])
    with gzip.open(tmp_path / "qupath/one.geojson.gz", "rt") as file:
        objects = json.load(file)["features"]
    found = [one["properties"].get("classification") for one in objects]
    assert {one["name"] for one in found if one} == set(CLASSES[1:])
    with pytest.raises(InputError, match="not ordered"):
        thresholds.main([str(runs / "heatmaps")])


def test_photos_of_a_table_are_checked_as_those_of_folders(data, tmp_path, capsys):
    words = ["--task", str(data / "my_task.toml"), "--images"]
    assert check.main([*words, str(data / "photos.csv")]) == 0
    said = capsys.readouterr().out
    assert "20 files, 0 problems" in said
    assert all(name in said for name in CLASSES)
    shutil.copytree(data / "photos", tmp_path / "photos")
    table = pd.read_csv(data / "photos.csv")
    table["label"] = [number % 5 for number in range(20)]  # any class may be its number
    table.to_csv(tmp_path / "photos.csv", index=False)
    (tmp_path / table["path"][3]).write_bytes((tmp_path / table["path"][4]).read_bytes())
    (tmp_path / table["path"][5]).write_bytes(b"no picture")
    assert check.main([*words, str(tmp_path / "photos.csv")]) == 1
    counted, said = said.partition("\n20 files")[0], capsys.readouterr().out
    assert said.startswith(counted)
    assert "exact duplicates" in said
    assert "20 files, 2 problems" in said
    for both in ([], ["data", "--images", "photos.csv"]):
        with pytest.raises(SystemExit):
            check.main(both)
        assert "name the folder of the data, or the table" in capsys.readouterr().err


def test_patients_of_a_table_keep_a_split_from_leaking(data, tmp_path, caplog):
    """Whatever the fold table says of patients, those of the photos' table count as well."""
    photos = pd.read_csv(data / "photos.csv").rename(columns={"patient": "Patient ID"})
    photos["path"] = [str(data / path) for path in photos["path"]]
    photos["um"] = 1.0
    photos.to_csv(tmp_path / "photos.csv", index=False)
    names = [f"Bild {number}" for number in range(20)]
    split = pd.DataFrame({"image_id": names, "fold": [number // 5 % 2 for number in range(20)]})
    split.to_csv(tmp_path / "right.csv", index=False)
    split["patient"] = [f"image {number}" for number in range(20)]
    split["fold"] = [number % 2 for number in range(20)]
    split.to_csv(tmp_path / "leaks.csv", index=False)
    words = ["--task", str(data / "my_task.toml"), "--images", str(tmp_path / "photos.csv")]
    args = train_part_a.parse_args([*words, "--folds", str(tmp_path / "leaks.csv")])
    with pytest.raises(InputError, match=r"20 held-out images of 4 patients[^P]*P0, P1, P2, P3"):
        train_part_a.choose_images(args)
    args = train_part_a.parse_args([*words, "--folds", str(tmp_path / "right.csv")])
    images, _ = train_part_a.choose_images(args)
    assert images["patient"].tolist() == [f"P{number // 5}" for number in range(20)]
    assert "its column 'Patient ID' is taken for that of patients" in caplog.text
    assert "columns that nothing reads: um" in caplog.text


def test_a_slide_of_a_patient_whose_photos_are_trained_on_is_not_held_out(data, runs, tmp_path):
    assert train_final.patients_of(str(runs / "part_a")) == {
        image_key(f"Bild {number}.png"): f"P{number // 5}" for number in range(20)
    }
    table = pd.read_csv(data / "b.csv", dtype=str).assign(patient=["p-00", "M1"])
    table.to_csv(tmp_path / "b.csv", index=False)
    words = ["--part-a-dir", f"{runs}/part_a", "--hard-examples-dir", f"{runs}/hard"]
    words += ["--backbone", "small", "--weights", "none", "--run-dir", str(tmp_path / "final")]
    words += ["--folds", str(tmp_path / "b.csv")]
    with pytest.raises(InputError, match=r"slides one of the patients p-00[^P]*Put these slides"):
        train_final.main(words)
    check_unshared(["P0"], table[1:])  # of nobody else
    check_unshared(["unknown", ""], table.assign(patient="unknown"))


def test_the_audit_takes_photos_and_patients_of_a_table(data, tmp_path, capsys):
    words = ["--task", f"{data}/my_task.toml", "--images", f"{data}/photos.csv", "--seeds", "1"]
    words += ["--folds", "2", "--trees", "20", "--run-dir", str(tmp_path)]
    assert folds.main(["audit", *words]) == 0
    assert "20 images of 4 patients" in capsys.readouterr().out


def test_a_model_is_a_function_in_three_lines(data, runs):
    classify = bach.load(runs / "final")
    photo = np.asarray(Image.open(data / "photos/Bild 4.png"))
    small = np.asarray(Image.open(data / "photos/Bild 3.png"))
    table = classify([photo, photo[:96, :96]])
    assert list(table) == ["predicted", *CLASSES]
    assert table["predicted"].tolist() == ["Tumour", "Tumour"]
    assert np.allclose(table[CLASSES].sum(axis=1), 1)
    assert classify(small, mpp=2.0)["predicted"].tolist() == ["Lymph"]
    with pytest.raises(InputError, match="must have 96 px"):
        classify(small)
    assert tasks.task() is tasks.BACH  # it has its own


def test_a_changed_task_file_does_not_go_on_with_a_run(data, runs):
    text = (data / "my_task.toml").read_text()
    words = ["--task", f"{data}/my_task.toml", "--images", f"{data}/photos.csv"]
    words += ["--folds", f"{data}/a.csv", "--backbone", "small", "--weights", "none"]
    words += ["--batch-size", "8", "--learning-rate", "0.01", "--bn-patches", "64"]
    words += ["--run-dir", f"{runs}/part_a", "--resume", "--epochs", "12"]
    train_part_a.main(words)  # as it was: nothing to do
    (runs / "part_a/metrics.json").rename(runs / "part_a/metrics.away")
    try:
        (data / "my_task.toml").write_text(text.replace("Lymph", "Lumph"))
        with pytest.raises(InputError, match=r"Lumph|begun with"):
            train_part_a.main(words)
    finally:
        (data / "my_task.toml").write_text(text)
        (runs / "part_a/metrics.away").rename(runs / "part_a/metrics.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "plasma"}, "'plasma' is no class"),
        ({"path": "photos/none.png"}, "not there"),
        ({"label": "fat"}, "no photo of Lymph"),
    ],
)
def test_a_table_of_photos_that_does_not_fit_is_refused(data, tmp_path, change, message):
    tasks.use(str(data / "my_task.toml"))
    table = pd.read_csv(data / "photos.csv", dtype=str, keep_default_na=False)
    table["path"] = [str(data / path) for path in table["path"]]
    for name, value in change.items():
        rows = table["label"] == "lymph" if message.startswith("no photo") else [0]
        table.loc[rows, name] = str(tmp_path / value) if name == "path" else value
    table.to_csv(tmp_path / "photos.csv", index=False)
    from bach.data import list_photos

    with pytest.raises(InputError, match=message):
        list_photos("nowhere", tmp_path / "photos.csv")
