"""Every kind of file that the toolkit reads: how to make one, and what reads it.

`make_all` writes a folder of sound files; a kind is a folder of it, the files there that are
damaged, and what is done with them. What is done returns what a user gets: arrays, tables,
printed lines. Some of it can be told to be wrong whatever the input was (`sane`).
"""

import contextlib
import dataclasses
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from bach.classes import CLASSES, PROB_COLUMNS

Use = Callable[[Path], object]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: Its name, also that of its folder.
        files: What is damaged there, a pattern.
        use: What is done with the folder.
        weight: How many of all cases are of this kind, in proportion.
        whole: A file that was cut short must not be used without a word.
        network: It needs the framework, which takes a process of its own.
    """

    name: str
    files: str
    use: Use
    weight: float = 1.0
    whole: bool = False
    network: bool = False


def sane(result: object) -> str | None:
    """What is wrong with a result, whatever it was made from; None if nothing is."""
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, list | tuple):
        return next(filter(None, map(sane, result)), None)
    if isinstance(result, float) and math.isinf(result):
        return "infinite"
    if isinstance(result, pd.DataFrame):
        names = [name for name in PROB_COLUMNS if name in result]
        probs = result[names].to_numpy(float)
        if np.isfinite(probs).any() and not -1e-3 <= np.nanmin(probs) <= np.nanmax(probs) <= 1.003:
            return "probabilities that are not in 0..1"
        return None
    if isinstance(result, np.ndarray) and result.dtype.kind == "f" and np.isinf(result).any():
        return "infinite numbers"
    if isinstance(result, str):
        return _sane_lines(result)
    return None


def _sane_lines(text: str) -> str | None:
    """What is wrong with what a command printed: its last line may be JSON."""
    try:
        values = json.loads(text.splitlines()[-1])
    except (ValueError, IndexError):
        return None
    stack = [("", values)]
    while stack:
        name, value = stack.pop()
        if isinstance(value, dict):
            stack += list(value.items())
        elif isinstance(value, list):
            stack += [(name, one) for one in value]
        elif isinstance(value, float | int) and not isinstance(value, bool):
            bounded = any(word in name for word in ("accuracy", "score", "ece"))
            if not math.isfinite(value) or (bounded and not -1e-9 <= value <= 1 + 1e-9):
                return f"{name} = {value}"
    return None


def printed(main: Callable[[list[str]], int | None], *words: object) -> tuple[int | None, str]:
    """The exit code of a command and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main([str(word) for word in words])
    return code, out.getvalue()


# Pictures


def _photo(folder: Path) -> object:
    from bach.data import read_photo

    return read_photo(_only(folder))


def _class_map(folder: Path) -> object:
    from bach.labels import read_class_map

    class_map = read_class_map(_only(folder))
    return class_map, "classes beyond 3" if class_map.max() > 3 else ""


def _only(folder: Path) -> Path:
    """The file in the folder of a picture: photo_tif/photo.tif."""
    what, _, ending = folder.name.partition("_")
    return folder / ("A01.png" if ending == "map" else f"{what}.{ending}")


# Slides and annotations


def _slide(folder: Path) -> object:
    from bach.slides import Slide

    with Slide(folder / "A01.svs") as slide:
        slide.check()
        size, mpp = (slide.width, slide.height), slide.mpp
        if not (mpp > 0 and math.isfinite(mpp)):
            return math.inf
        left, top = size[0] / 3, size[1] / 3
        return size, mpp, slide.read(left, top, 64, 64, mpp=2 * mpp), slide.thumbnail(8 * mpp)


def _maps(folder: Path) -> object:
    """All maps of a slide; what stands in its annotation, what its mask says."""
    from bach.slides import Slide
    from bach.tissue import slide_maps

    with Slide(folder / "A01.svs") as slide:
        masks = folder / "masks"
        maps = slide_maps(slide, masks if masks.is_dir() else None)
    labels = maps.labels
    return maps.tissue, labels, None if labels is None else int((labels > 0).sum())


# Tables and runs


def _folds(folder: Path) -> object:
    from bach import folds

    words = ("check", folder / "folds.csv", "--patients", folder / "patients.csv")
    return printed(folds.main, *words)


def _make_folds(folder: Path) -> object:
    from bach import folds

    out = folder / "out.csv"
    words = ("make", "--images", folder / "images.csv", "--part", "a", "--out", out)
    return printed(folds.main, *words), out.read_bytes()


def _metrics_a(folder: Path) -> object:
    from bach import metrics

    words = ("--predictions", folder / "predictions.csv", "--truth", folder / "truth.csv")
    return printed(metrics.main, "part-a", *words, "--patients", folder / "patients.csv")


def _metrics_b(folder: Path) -> object:
    from bach import metrics

    return printed(
        metrics.main, "part-b", "--predicted", folder / "predicted", "--truth", folder / "truth"
    )


def _calibration(folder: Path) -> object:
    from bach import calibration

    done = printed(calibration.main, folder)
    return done, calibration.stored_temperature(folder)


def _temperature(folder: Path) -> object:
    from bach import calibration

    return calibration.stored_temperature(folder)


def _report(folder: Path) -> object:
    from bach.report import mistakes

    images, patches = mistakes.read_run(folder)
    return mistakes.mistakes(images, patches), mistakes.format_counts(images)


def _pages(folder: Path) -> object:
    from bach.report.pages import Request, write_report

    page = write_report(Request([folder / "runs"], folder / "report"))
    pages = [page, *sorted(page.parent.glob("slides/*/*.*"))]
    texts = [one.read_text(encoding="utf-8") for one in pages]
    return re.sub("<p>Made [^<]*</p>", "", "\n".join(texts))


def _decided_anew(folder: Path) -> object:
    from bach.heatmap import main

    out = folder / "anew"
    words = (folder / "runs/heatmaps", "--out", out, "--thresholds", 0.2, 0.4, 0.6)
    printed(main, *words)
    return [(path.name, path.read_bytes()) for path in sorted(out.glob("class_maps/*.png"))]


def _ticks(folder: Path) -> object:
    from bach.report.__main__ import main

    return printed(main, "errors", folder / "errors.csv")


def _compare(folder: Path) -> object:
    from bach import runs

    one, other = folder / "good", folder / "bad"
    return printed(runs.main, "table", one, other), printed(runs.main, "compare", one, other)


def _reproduction(folder: Path) -> object:
    from bach.reproduce.kwok2018 import part_a_table

    return part_a_table(folder)


def _thresholds(folder: Path) -> object:
    from bach import thresholds

    cells = thresholds.read_cells(folder)
    return {name: (one.values, one.probs, one.counts, one.fold) for name, one in cells.items()}


def _records(folder: Path) -> object:
    from bach.honest.records import counts_of, read_slides

    records = read_slides(folder)
    return {name: dataclasses.astuple(one) for name, one in records.items()}, counts_of(records)


def _resume(folder: Path) -> object:
    from bach.core.run import Run, patch_folder
    from campaign.options import Options

    run = Run(Options(run_dir=str(folder), resume=True))
    return run.finished, str(patch_folder(folder).name)


def _draws(folder: Path) -> object:
    from bach.honest.splits import read_folds
    from bach.mining import find_draw

    folds = read_folds(folder / "folds.csv")
    return [find_draw(folder, folds, fold) for fold in (0, 1, None)]


def _patch_table(folder: Path) -> object:
    from bach.patches import read_patches

    return read_patches(folder / "hard_examples.csv")


def _features(folder: Path) -> object:
    from bach.honest.features import read_features

    images = pd.DataFrame(
        {"image_id": ["a", "b"], "path": [str(folder / f"{x}.tif") for x in "ab"]}
    )
    return read_features(images, folder)


def _submission_a(folder: Path) -> object:
    from bach import submission

    ids = submission.read_ids(folder / "ids.csv")
    return {p.name: submission.faults_part_a(p, "2018", ids) for p in sorted(folder.glob("a.*"))}


def _submission_b(folder: Path) -> object:
    from bach import submission

    template = submission.read_template(folder / "template.json")
    slides: Mapping = {"A01": (640, 480), "A02": (640, 480)}
    return [submission.faults_part_b(folder / name, template, slides) for name in ("b.zip", "maps")]


def _write_submission(folder: Path) -> object:
    from bach import submission

    words = ("--predictions", folder / "predictions.csv", "--ids", folder / "ids.csv")
    out = folder / "out.csv"
    return printed(submission.main, "part-a", *words, "--out", out), out.read_bytes()


def _check_data(folder: Path) -> object:
    from bach import data

    code, text = printed(data.main, folder)
    return code, text.replace(str(folder), "")


# What needs the framework


def _model(folder: Path) -> object:
    from bach.honest.seen import read_seen
    from bach.network import predict

    seen = read_seen(folder / "m.keras")
    (model,) = predict.load_models(folder / "m.keras").values()
    patches = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3), np.uint8)
    probs = predict.predict_patches(model, patches)
    right = np.isfinite(probs).all() and np.allclose(probs.sum(axis=1), 1, atol=1e-3)
    return probs, sorted(seen.slides), 0.0 if right else math.inf


def _weights(folder: Path) -> object:
    from bach.network.patch_network import build_model

    model = build_model("small", str(folder / "b.weights.h5"))
    values = [np.asarray(weight, np.float64) for weight in model.get_weights()]
    return float(sum(np.abs(value).sum() for value in values))


def _state(folder: Path) -> object:
    from bach.network.callbacks import Checkpoint
    from campaign.options import tiny_learner

    learner = tiny_learner()
    history = Checkpoint(learner, folder, "loss").restore(learner)
    return history, [np.asarray(weight) for weight in learner.get_weights()]


def _store(folder: Path) -> object:
    from bach.network.stores import PatchStore

    store = PatchStore(folder)
    return store.table, np.array(store.patches), store.view


KINDS = (
    *(Kind(f"photo_{name}", "photo.*", _photo, whole=True) for name in ("tif", "png", "jpg")),
    Kind("class_map", "*.png", _class_map, whole=True),
    Kind("slide", "A01.svs", _slide, weight=2, whole=True),
    *(
        Kind(f"annotation_{name}", pattern, _maps, weight=2, whole=True)
        for name, pattern in (("aperio", "A01.xml"), ("asap", "A01.xml"), ("geojson", "*.geojson"))
    ),
    Kind("mask", "masks/*.png", _maps, whole=True),
    Kind("folds", "*.csv", _folds),
    Kind("make_folds", "images.csv", _make_folds),
    Kind("metrics_a", "*.csv", _metrics_a, weight=2),
    Kind("metrics_b", "*/*.png", _metrics_b, whole=True),
    Kind("calibration", "predictions.csv", _calibration),
    Kind("temperature", "calibration.json", _temperature, weight=0.5, whole=True),
    Kind("report", "*.csv", _report),
    Kind("pages", "runs/**/*.*", _pages, weight=2),
    Kind("anew", "runs/heatmaps/*/A01.*", _decided_anew),
    Kind("ticks", "errors.csv", _ticks),
    Kind("compare", "good/*", _compare, weight=2),
    Kind("reproduction", "m*.json", _reproduction, weight=0.5, whole=True),
    Kind("thresholds", "*/A01.*", _thresholds, weight=2, whole=True),
    Kind("records", "slides/*.json", _records, whole=True),
    Kind("resume", "*.json", _resume, whole=True),
    Kind("draws", "*.*", _draws, weight=0.5),
    Kind("patch_table", "*.csv", _patch_table),
    Kind("features", "features.csv", _features, weight=0.5),
    Kind("submission_a", "*.*", _submission_a, weight=2),
    Kind("submission_b", "**/*.*", _submission_b, weight=2),
    Kind("write_submission", "*.csv", _write_submission),
    Kind("data_folder", "**/*.*", _check_data, weight=1.5),
    Kind("model", "m.keras", _model, weight=2, whole=True, network=True),
    Kind("weights", "b.weights.h5", _weights, weight=1, whole=True, network=True),
    Kind("state", "state.npz", _state, weight=1, whole=True, network=True),
    Kind("store", "*.*", _store, weight=1, network=True),
)


# Sound files of every kind


def make_all(folder: Path, network: bool = True) -> None:
    """Write a folder per kind with sound files in it.

    Args:
        folder: Where to write them.
        network: Make models and patches too, which takes longest.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        _make_toy(folder / "toy")
        for make in (_make_pictures, _make_slides, _make_tables, _make_runs, _make_submissions):
            make(folder)
        if network:
            _make_networks(folder)


def _make_toy(folder: Path) -> None:
    from bach.toy.dataset import Recipe, make_data_set

    recipe = Recipe(
        patients=4,
        images=2,
        test_images=1,
        slides=2,
        test_slides=1,
        photo_size=(160, 120),
        slide_size=(1280, 960),
    )
    make_data_set(folder, recipe, workers=1)


def _photos(folder: Path) -> list[Path]:
    return sorted((folder / "toy").glob("*Challenge/Photos/*/*.tif"))


def _new(folder: Path, *names: str) -> Iterator[Path]:
    for name in names:
        (folder / name).mkdir(parents=True)
        yield folder / name


def _make_pictures(folder: Path) -> None:
    from PIL import Image

    from bach.labels import write_class_map

    photo = Image.open(_photos(folder)[0])
    for name in ("tif", "png", "jpg"):
        for place in _new(folder, f"photo_{name}"):
            photo.save(place / f"photo.{name}")
    rng = np.random.default_rng(0)
    for place in _new(folder, "class_map"):
        write_class_map(place / "A01.png", rng.integers(0, 4, (30, 40)).repeat(3, axis=0))
    for place in _new(folder, "metrics_b"):
        for part in _new(place, "predicted", "truth"):
            for name in ("A01", "A02"):
                values = rng.integers(0, 4, (6, 8)).repeat(5, axis=0).repeat(5, axis=1)
                write_class_map(part / f"{name}.png", values)


def _make_slides(folder: Path) -> None:
    from bach.core.pictures import write_gray

    slide = next((folder / "toy").glob("*Challenge/WSI/A01.svs"))
    names = ("slide", "mask", "annotation_aperio", "annotation_asap", "annotation_geojson")
    for place in _new(folder, *names):
        shutil.copy(slide, place / "A01.svs")
    shutil.copy(slide.with_suffix(".xml"), folder / "annotation_aperio")
    regions = {"Benign": (100, 100, 400), "Invasive carcinoma": (600, 300, 300)}
    squares = {
        name: [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]
        for name, (x, y, side) in regions.items()
    }
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*points, points[0]]]},
            "properties": {"classification": {"name": name}},
        }
        for name, points in squares.items()
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features}, indent=1)
    (folder / "annotation_geojson/A01.geojson").write_text(text)
    lines = ["<ASAP_Annotations><Annotations>"]
    for number, (name, points) in enumerate(squares.items()):
        lines.append(f'<Annotation Name="{number}" PartOfGroup="{name}" Type="Polygon">')
        lines.append("<Coordinates>")
        lines += [
            f'<Coordinate Order="{place}" X="{x}" Y="{y}" />' for place, (x, y) in enumerate(points)
        ]
        lines.append("</Coordinates></Annotation>")
    lines.append("</Annotations></ASAP_Annotations>")
    (folder / "annotation_asap/A01.xml").write_text("\n".join(lines))
    tissue = np.zeros((60, 80), np.uint8)
    tissue[10:40, 20:60] = 255
    (folder / "mask/masks").mkdir()
    write_gray(folder / "mask/masks/A01.png", tissue)


def _predictions(images: int = 40, patients: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = np.arange(images) % len(CLASSES)
    probs = rng.dirichlet(np.ones(len(CLASSES)), images)
    probs[np.arange(images), label] += 1
    probs /= probs.sum(axis=1, keepdims=True)
    table = pd.DataFrame({"image_id": [f"i{n:03}" for n in range(images)], "label": label})
    table["predicted"] = probs.argmax(axis=1)
    table[list(PROB_COLUMNS)] = probs.round(6)
    table["patient"] = [f"P{n % patients}" for n in range(images)]
    table["fold"] = np.arange(images) % patients % 3
    return table


def _make_tables(folder: Path) -> None:
    table = _predictions()
    named = table.assign(label=[CLASSES[label] for label in table["label"]])
    wanted = {
        "folds": {"folds": table[["image_id", "fold"]], "patients": table[["image_id", "patient"]]},
        "make_folds": {"images": named[["image_id", "label", "patient"]]},
        "metrics_a": {
            "predictions": table.drop(columns=["label", "patient", "fold"]),
            "truth": named[["image_id", "label"]],
            "patients": table[["image_id", "patient"]],
        },
        "calibration": {"predictions": table},
        "write_submission": {
            "predictions": table[["image_id", *PROB_COLUMNS]],
            "ids": table[["image_id"]],
        },
    }
    for name, tables in wanted.items():
        for place in _new(folder, name):
            for file, one in tables.items():
                one.to_csv(place / f"{file}.csv", index=False)
    for place in _new(folder, "temperature"):
        (place / "calibration.json").write_text('{"temperature": 1.25, "ece_before": 0.1}')
    for place in _new(folder, "report"):
        table.to_csv(place / "predictions.csv", index=False)
        patches = table.loc[table.index.repeat(2)].assign(x=[0, 99] * len(table), y=0)
        patches.to_csv(place / "patch_predictions.csv", index=False)
    for place in _new(folder, "ticks"):
        ticks = named.assign(difficulty=1.5, focus="x", stain="", note="a, b")
        ticks["predicted"] = [CLASSES[label] for label in table["predicted"]]
        ticks.to_csv(place / "errors.csv", index=False)
    for place in _new(folder, "patch_table"):
        patches = table.drop(columns=["patient", "fold"]).assign(x=1.5, y=7.25, size=1344.5)
        patches.loc[3, list(PROB_COLUMNS)] = np.nan
        patches.assign(tissue=0.8).to_csv(place / "hard_examples.csv", index=False)
    for place in _new(folder, "features"):
        for name, photo in zip("ab", _photos(folder), strict=False):
            shutil.copy(photo, place / f"{name}.tif")
        _features(place)


def _make_runs(folder: Path) -> None:
    from made_runs import heatmap_run, mined_run, part_a_run
    from made_up import slide_record, two_runs

    from bach.core.run import Run
    from bach.heatmap import to_heatmap
    from bach.honest.records import write_slide
    from bach.labels import write_class_map
    from bach.mining import write_draws
    from campaign.options import Options

    for place in _new(folder, "compare"):
        two_runs(place)
    for name in ("pages", "anew"):
        for place in _new(folder, name):
            heatmap_run(place / "runs/heatmaps", size=(1500, 1300))
            if name == "pages":
                part_a_run(place / "runs/part_a")
                mined_run(place / "runs/hard_examples")
    for place in _new(folder, "reproduction"):
        _predictions().to_csv(place / "predictions.csv", index=False)
        (place / "patches").mkdir()
        shutil.copy(folder / "patch_table/hard_examples.csv", place / "patches/patches.csv")
        per_fold = {str(fold): {"accuracy": 0.8, "loss": 0.5} for fold in range(3)}
        figures = {"mean_accuracy": 0.8, "sd_accuracy": 0.05, "per_fold": per_fold}
        (place / "metrics.json").write_text(json.dumps(figures))
    for place in _new(folder, "thresholds"):
        rng = np.random.default_rng(1)
        for part in ("heatmaps", "probs", "truth", "slides"):
            (place / part).mkdir()
        for number in range(2):
            name = f"A{number:02}"
            cells = rng.integers(0, 4, (12, 15))
            probs = 0.6 * np.eye(4)[cells] + 0.4 * rng.dirichlet(np.ones(4), cells.shape)
            np.save(place / "probs" / f"{name}.npy", probs.astype(np.float32))
            np.save(place / "heatmaps" / f"{name}.npy", to_heatmap(probs.astype(np.float32)))
            truth = cells.repeat(5, axis=0).repeat(5, axis=1).astype(np.uint8)
            write_class_map(place / "truth" / f"{name}.png", truth)
            record = slide_record(
                name,
                width=1200,
                height=960,
                step=80.0,
                downsample=16.0,
                fold=number,
                counts=np.arange(16).reshape(4, 4),
            )
            write_slide(place / "slides" / f"{name}.json", record)
    shutil.copytree(folder / "thresholds/slides", folder / "records/slides")
    for place in _new(folder, "resume"):
        run = Run(Options(run_dir=str(place)))
        with run.start():
            run.finish({"accuracy": 0.5, "failed": []})
        for name in ("log.txt", ".lock"):
            (place / name).unlink(missing_ok=True)
    for place in _new(folder, "draws"):
        fold_of = pd.Series([0, 0, 1, 1], index=[f"A{n:02}" for n in range(4)])
        write_draws(place, fold_of)
        fold_of.rename_axis("image_id").rename("fold").to_csv(place / "folds.csv")


def _make_submissions(folder: Path) -> None:
    import zipfile

    from bach.labels import write_class_map

    for place in _new(folder, "submission_a"):
        ids = [f"test{n}" for n in range(30)]
        (place / "ids.csv").write_text("\n".join(ids) + "\n")
        text = "".join(f"{name}.tif,{CLASSES[n % 4]}\n" for n, name in enumerate(ids))
        (place / "a.csv").write_text(text)
        with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.csv", text)
    for place in _new(folder, "submission_b"):
        (place / "template.json").write_text(
            '{"name": "{slide}.png", "mode": "P", "values": [0, 1, 2, 3], "downsample": null}'
        )
        rng = np.random.default_rng(0)
        for name in ("A01", "A02"):
            write_class_map(place / "maps" / f"{name}.png", rng.integers(0, 4, (30, 40)))
        with zipfile.ZipFile(place / "b.zip", "w") as archive:
            for file in sorted((place / "maps").iterdir()):
                archive.write(file, file.name)
    shutil.copytree(folder / "toy", folder / "data_folder")


def _make_networks(folder: Path) -> None:
    from bach.honest.seen import Seen
    from bach.network import stores
    from bach.network.callbacks import Checkpoint, save_model
    from bach.network.patch_network import build_model
    from campaign.options import tiny_learner

    model = build_model("small", "none")
    for place in _new(folder, "model"):
        save_model(model, place / "m.keras", Seen.of(slides=["A01"]))
    for place in _new(folder, "weights"):
        inner = next((x for x in model.layers if hasattr(x, "layers")), model)
        inner.save_weights(place / "b.weights.h5")
    for place in _new(folder, "state"):
        learner = tiny_learner()
        checkpoint = Checkpoint(learner, place, "loss")
        checkpoint.set_model(learner)
        checkpoint.on_epoch_end(0, {"loss": 1.2})
        for name in ("last.keras", "best.keras", "history.csv"):
            (place / name).unlink(missing_ok=True)
    for place in _new(folder, "store"):
        images = pd.DataFrame({"image_id": ["n001"], "path": [str(_photos(folder)[0])]})
        images = images.assign(label=0, width=160, height=120, mpp=0.42)
        stores.store_photos(images, place, (24, 32))
        (place / ".lock").unlink(missing_ok=True)
