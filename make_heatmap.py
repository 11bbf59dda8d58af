"""Step 4: turn slides into heatmaps and class maps, and score what is annotated.

Every slide is predicted by the models that were not trained on it: an annotated
slide by those of its fold, any other slide by the mean of all. If every model saw
a slide, its score is marked as in-sample and left out of the mean.

Reads    --data-dir (slides) or --slides FILE..., --model-dir (run of train_final.py)
Writes   runs/heatmaps/heatmaps/NAME.npy     float32 (rows, cols), expected class / 3
         runs/heatmaps/probs/NAME.npy        float32 (rows, cols, 4), nan off tissue
         runs/heatmaps/class_maps/NAME.png   palette PNG, 0..3, 16 level-0 px a pixel
         runs/heatmaps/overlays/NAME.png     on the thumbnail, truth beside
         runs/heatmaps/tissue/NAME.png       tissue mask of the same size
         runs/heatmaps/truth/NAME.png        annotation as class map, where there is one
         runs/heatmaps/slides/NAME.json      geometry, areas in mm2, scores
         runs/heatmaps/slides.csv, metrics.json, run.json, log.txt

    python make_heatmap.py --data-dir data/BACH --model-dir runs/final
    python make_heatmap.py --slides any.svs other.svs --model-dir runs/final --mpp 0.5

Paper (Kwok 2018): score 0.6929 on the hidden test; 0.75 on A01-A10, in sample.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from bach.classes import CLASSES, COLORS
from bach.core.errors import InputError, exit_with
from bach.core.files import atomic_path, to_json, write_json
from bach.core.log import log, step
from bach.core.options import add_device_options, add_shared_options, add_slide_options
from bach.core.pictures import heat_colors, overlay, side_by_side, write_png
from bach.core.run import Run
from bach.core.tables import write_csv
from bach.data import find_data, list_images
from bach.heatmap import (
    STEP_UM,
    THRESHOLDS,
    areas_mm2,
    cells_to_map,
    heatmap_patches,
    stitch,
    to_classes,
    to_heatmap,
)
from bach.honest.intervals import format_interval, score_interval
from bach.labels import write_class_map
from bach.patches import DENSE_STEP_UM, grid_shape
from bach.scores import joint_counts, score_from_counts
from bach.slides import Slide
from bach.thresholds import dinkelbach
from bach.tissue import slide_masks


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shared_options(parser, run_dir="runs/heatmaps")
    add_device_options(parser)
    add_slide_options(parser)
    parser.add_argument(
        "--model-dir", default="runs/final", help="run folder of the models, or a .keras file"
    )
    parser.add_argument(
        "--part", default="all", choices=("B", "B-test", "all"),
        help="which slides of --data-dir: annotated, test, or all",
    )  # fmt: skip
    parser.add_argument("--slides", nargs="+", default=None, help="slides to use instead")
    parser.add_argument(
        "--tta",
        action="store_true",
        help="mean over the eight orientations, at eight times the cost",
    )
    parser.add_argument(
        "--step-um", type=float, default=None,
        help="side of a cell in um (default: 125.58; dense: 67.2, or multiples)",
    )  # fmt: skip
    parser.add_argument(
        "--thresholds", type=float, nargs=3, default=list(THRESHOLDS),
        metavar=("BENIGN", "INSITU", "INVASIVE"), help="heatmap values where the classes begin",
    )  # fmt: skip
    parser.add_argument(
        "--rule", default="thresholds", choices=("thresholds", "least-cost"),
        help="class map by thresholds on the heatmap, or by least expected cost under the score",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if sorted(args.thresholds) != args.thresholds:
        parser.error(f"--thresholds must ascend. Received: {args.thresholds}.")
    if args.step_um is None:
        args.step_um = STEP_UM if args.mode == "patches" else DENSE_STEP_UM
    if not args.step_um > 0:
        parser.error(f"--step-um must be positive. Received: {args.step_um}.")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    slides = list_slides(args)
    run = Run(args)
    if run.finished:
        print(run.path)
        return 0
    with run.watch():
        # 1. The models, and the slides each was trained on.
        from bach.network import backend
        from bach.network.predict import model_file, trained_slides

        backend.start(args.devices, args.seed, args.precision)
        models, predict = load_predictor(args)
        files = {fold: model_file(args.model_dir, fold) for fold in models}
        seen = {fold: trained_slides(file) for fold, file in files.items()}

        # 2. Slide by slide; one that fails does not stop the rest.
        results, failures = [], {}
        for row in slides.itertuples():
            try:
                results.append(one_slide(row, predict, files, seen, args, run))
            except InputError as error:
                log.error("%s failed: %s", row.image_id, error)
                failures[row.image_id] = str(error)

        # 3. Scores over slides.
        metrics = summarise(results, failures, run)
        if failures:
            write_json(run.path / "failures.json", failures)
            raise InputError(
                f"{len(failures)} of {len(slides)} slides failed, the others are done:\n"
                + "\n".join(failures.values())
                + "\nMend these and run the same command with --resume; or run these alone, with "
                "what they need (--mpp), into another --run-dir."
            )
        (run.path / "failures.json").unlink(missing_ok=True)
        run.finish(metrics)
    print(run.path)
    return 0


def list_slides(args: argparse.Namespace) -> pd.DataFrame:
    """The slides to work on, as an image table."""
    if args.slides is None:
        if args.part != "all":
            return list_images(args.data_dir, args.part, args.limit)
        table = find_data(args.data_dir)
        table = table[table["part"].isin(["B", "B-test"])]
        if table.empty:
            raise InputError(
                f"No slides in {args.data_dir}.\nReceived: --data-dir={args.data_dir}."
            )
    else:
        table = pd.DataFrame({"path": args.slides, "part": "", "label": -1})
        table.insert(0, "image_id", [Path(path).stem for path in args.slides])
    doubled = table.loc[table["image_id"].duplicated(), "image_id"].tolist()
    if doubled:
        raise InputError(
            f"Slides must have different names, since the results are named after them.\n"
            f"Received twice: {', '.join(doubled)}. Rename one, or use two runs."
        )
    return table.head(args.limit).reset_index(drop=True) if args.limit else table


def load_predictor(args: argparse.Namespace) -> tuple[dict, Callable]:
    """Load the models; return them by fold, and how cells are predicted.

    The second is a function of folds, slide, patch table and the grid's shape.
    """
    from bach.network.predict import load_models, predict_slide, prepare

    if args.mode == "dense":
        from bach.network.dense import DenseModel, dense_step_um, predict_dense

        models = load_models(args.model_dir, ready=lambda model: DenseModel(model, args.precision))
        every = dense_step_um(next(iter(models.values())), args.step_um)

        def dense(folds: list, slide: Slide, table: pd.DataFrame, shape: tuple[int, int]):
            wanted = np.zeros(shape, bool)
            wanted[table["row"], table["col"]] = True
            chosen = [models[fold] for fold in folds]
            return predict_dense(chosen, slide, wanted, every, tta=args.tta)

        return models, dense
    models = load_models(args.model_dir, ready=lambda model: prepare(model, args.precision))

    def patches(folds: list, slide: Slide, table: pd.DataFrame, shape: tuple[int, int]):
        chosen = [models[fold] for fold in folds]
        return stitch(table, predict_slide(chosen, slide, table, args.batch_size, args.tta), shape)

    return models, patches


def one_slide(row, predict, files: dict, seen: dict, args: argparse.Namespace, run: Run) -> dict:
    """Make and write everything of one slide, or read it if that was done before."""
    name = row.image_id
    unseen = [fold for fold in files if name not in seen[fold]]
    chosen = unseen or list(files)
    key = {
        "file": _fingerprint(row.path),
        "models": {str(fold): _fingerprint(files[fold]) for fold in chosen},
    }
    done = run.path / "slides" / f"{name}.json"
    if done.exists():
        result = json.loads(done.read_text())
        if result["key"] == key:
            log.info("%s: finished before", name)
            return result
        log.info("%s: the slide or a model has changed; done again", name)
    start = time.monotonic()
    with step(name) as notes, Slide(row.path, mpp=args.mpp) as slide:
        thumbnail, tissue, truth, downsample = slide_masks(slide, args.masks, args.exclude_pen)
        table = heatmap_patches(
            name, slide.width, slide.height, slide.mpp, tissue, downsample, args.step_um
        )
        cell = args.step_um / slide.mpp
        probs = predict(chosen, slide, table, grid_shape(slide.width, slide.height, cell))
        heatmap = to_heatmap(probs)
        if args.rule == "least-cost":
            classes, _ = dinkelbach(probs)  # cells without a prediction stay Normal
        else:
            classes = to_classes(heatmap, tuple(args.thresholds))
        class_map = cells_to_map(classes, cell, downsample, tissue.shape)
        result = {
            "image_id": name,
            "path": str(row.path),
            "part": row.part,
            "width": slide.width,
            "height": slide.height,
            "mpp": slide.mpp,
            "mpp_source": slide.mpp_source,
            "step": cell,
            "downsample": downsample,
            "patches": len(table),
            "models": [str(fold) for fold in chosen],
            "fold": chosen[0] if len(chosen) == 1 and len(files) > 1 else None,
            "in_sample": not unseen,
            "areas_mm2": areas_mm2(class_map, tissue, downsample, slide.mpp),
        }
        if truth is not None:
            result |= score(class_map, truth, tissue)
        pictures = [overlay(thumbnail, class_map, CLASSES, COLORS)]
        if truth is not None:
            pictures.append(overlay(thumbnail, truth, CLASSES, COLORS))
        heat = heat_colors(cells_to_map(heatmap, cell, downsample, tissue.shape))
        blank = np.full((pictures[0].shape[0] - heat.shape[0], heat.shape[1], 3), 255, np.uint8)
        pictures.append(np.concatenate([heat, blank]))
        notes.append(f"{slide.width}x{slide.height} px at {slide.mpp:.3f} um ({slide.mpp_source})")
        notes.append(f"{tissue.mean():.0%} tissue, {len(table):,} patches")
    _save_array(run.path / "heatmaps" / f"{name}.npy", heatmap)
    _save_array(run.path / "probs" / f"{name}.npy", probs)
    write_class_map(run.path / "class_maps" / f"{name}.png", class_map)
    if truth is not None:
        write_class_map(run.path / "truth" / f"{name}.png", truth)
    with atomic_path(run.path / "tissue" / f"{name}.png") as temporary:
        cv2.imwrite(str(temporary), tissue.astype(np.uint8) * 255)
    write_png(run.path / "overlays" / f"{name}.png", side_by_side(pictures))
    result["seconds"] = time.monotonic() - start
    write_json(done, {**result, "key": key})
    return result


def score(class_map: np.ndarray, truth: np.ndarray, tissue: np.ndarray) -> dict:
    """Part B score of a slide, on tissue only too, and that of always benign."""
    benign = np.ones_like(class_map)
    counts = joint_counts(class_map, truth)
    scores = {
        "score": score_from_counts(counts),
        "score_tissue": score_from_counts(joint_counts(class_map, truth, tissue)),
        "baseline": score_from_counts(joint_counts(benign, truth)),
        "baseline_tissue": score_from_counts(joint_counts(benign, truth, tissue)),
    }
    scores = {key: None if np.isnan(value) else value for key, value in scores.items()}
    return {**scores, "counts": counts.tolist()}


def summarise(results: list[dict], failures: dict, run: Run) -> dict:
    """Write slides.csv, print the scores, and return the run's metrics."""
    rows = [
        {
            **{k: r[k] for k in ("image_id", "part", "width", "height", "mpp", "patches", "fold")},
            "models": " ".join(r["models"]),
            "in_sample": r["in_sample"],
            **{f"{name.lower()}_mm2": round(r["areas_mm2"][name], 4) for name in CLASSES},
            **{k: r.get(k) for k in ("score", "score_tissue", "baseline", "baseline_tissue")},
        }
        for r in results
    ]
    write_csv(pd.DataFrame(rows), run.path / "slides.csv")
    metrics = {"slides": len(results), "failed": sorted(failures)}
    scored = [r for r in results if "score" in r]
    for r in scored:
        note = "  in sample: a model was trained on it" if r["in_sample"] else ""
        print(
            f"{r['image_id']:20} score {_number(r['score'])}, tissue only "
            f"{_number(r['score_tissue'])}, always benign {_number(r['baseline'])}{note}"
        )
    honest = [r for r in scored if not r["in_sample"]]
    if honest:
        for key in ("score", "score_tissue", "baseline", "baseline_tissue"):
            # Not a number (both maps empty): the slide says nothing and is left out.
            values = [r[key] for r in honest if r[key] is not None]
            metrics[key] = float(np.mean(values)) if values else None
        pooled = score_from_counts(sum(np.array(r["counts"]) for r in honest))
        metrics["score_pooled"] = None if np.isnan(pooled) else pooled
        metrics["score_interval"] = interval = score_interval(
            [np.array(r["counts"]) for r in honest]
        )
        metrics["per_slide"] = {r["image_id"]: r["score"] for r in honest}
        print(
            f"{'mean of ' + str(len(honest)):20} score {_number(metrics['score'])}, tissue only "
            f"{_number(metrics['score_tissue'])}, always benign {_number(metrics['baseline'])}; "
            f"pooled {_number(metrics['score_pooled'])}\n"
            f"score {format_interval(interval, 3)}"
        )
    if len(honest) < len(scored):
        metrics["in_sample"] = {r["image_id"]: r["score"] for r in scored if r["in_sample"]}
    return json.loads(to_json(metrics))


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _fingerprint(path: str | Path) -> dict:
    """What changes when a file does."""
    if not Path(path).is_file():
        raise InputError(f"No such slide: {path}.\nReceived: path={path}.\nCheck the name.")
    state = Path(path).stat()
    return {"bytes": state.st_size, "changed": state.st_mtime_ns}


def _save_array(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array)


if __name__ == "__main__":
    exit_with(main)
