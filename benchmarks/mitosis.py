"""Mitotic figures: what is a split by patch worth, and what does a detector of two stages gain?

Four measurements, each by its name:

    leak     Real crops of the data set AMi-Br (normal or atypical mitotic figure), classified by a
             logistic regression on features of EfficientNetLite0 with ImageNet weights, split by
             patch and by case. Its authors' own notebooks report a balanced accuracy of 0.794 by
             patch and 0.646 by patient (fine-tuned EfficientNetV2-S and DenseNet121).
    stage1   Share of the real figures that blobs of hematoxylin propose, and how many proposals.
    stage2   Mitotic figures against the nuclei around them, in windows of 64 px. AMi-Br holds no
             imposters, only figures: what is told apart from them here are the other blobs of
             hematoxylin in the same crops, which are easier. F1 on held-out cases, the threshold
             searched on other held-out cases.
    fields   Painted slides: proposals and a network for each of them, against the same network at
             every place of a grid (sliding window), and densely. Time, recall of stage one, F1
             before and after false positives of the first model are added. With --amibr the
             figures are real crops, pasted in: of other cases in training and in the test.

Reads:   --amibr, a copy of github.com/DeepMicroscopy/AMi-Br at 20a217b3 (it states no licence, and
         asks to be cited: Bertram et al. 2025, doi:10.1007/978-3-658-47422-5_25). Without it only
         `fields` is measured, all painted.
Writes:  --cache, features of the crops, if given.
Command: python benchmarks/mitosis.py --amibr data/AMi-Br
Time:    20 min on one core; --quick 1 min, painted slides alone.
Prints a Markdown table per measurement; the last line is JSON.
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach import nuclei, points
from bach.core.errors import InputError, exit_with
from bach.core.files import to_json
from bach.core.log import log
from bach.core.options import option, parse
from bach.core.pictures import read_rgb
from bach.core.tables import read_table
from bach.core.text import markdown
from bach.honest.intervals import format_interval, jackknife, kish, unit_sums
from bach.honest.learners import Linear, fit_logistic
from bach.scores import ratio
from bach.slides import Slide
from bach.toy import figures, painter
from bach.toy.aperio import write_slide

PARTS = ("leak", "stage1", "stage2", "fields")
BACKBONE = "EfficientNetLite0"

MPP = 0.25  # um per px of the crops, and of the windows
WINDOW = 64
RADIUS_UM = 7.5  # TUPAC16
GRID_UM = 4.0  # step of the sliding window
_SIDE = 128  # px of a crop
_OVER = 16  # px that a window may reach beyond it
# Enlarged twice, frozen features give the same F1 of stage two at four times the cost: 0.786
# against 0.784.
_STRIDE = 32  # px between features


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    amibr: str | None = option(None, "folder of AMi-Br", path=True)
    parts: tuple[str, ...] = option((), f"which of {', '.join(PARTS)} (default: all)")
    cache: str | None = option(None, "folder to keep features of the crops in", path=True)
    epochs: int = option(0, "fine-tune the network, too, for so many epochs", at_least=0)
    crop_px: int = option(_SIDE, "side of the crops that the leak is fine-tuned on", at_least=32)
    draws: int = option(5, "draws of both splits, for the leak", at_least=1)
    folds: int = option(5, "folds by case", at_least=3)
    slides: int = option(
        8, "painted slides to train on, and to search the threshold on", at_least=2
    )
    test_slides: int = option(6, "painted slides to test on", at_least=2)
    quick: bool = option(False, "a few small painted slides")


# The network


class Features:
    """EfficientNetLite0 without its top, with ImageNet weights."""

    def __init__(self) -> None:
        import keras

        from bach.network import backend
        from bach.network.fold_norms import fast_clone
        from bach.network.patch_network import build_model

        model = fast_clone(build_model(BACKBONE, "imagenet", fields=True), any_size=True)
        pooled = keras.Model(model.input, model.get_layer("pool").output)
        # A network of its own, for two functions of one would share what is compiled.
        maps = keras.Model(model.input, model.get_layer("pool").input)
        self._pooled, self._maps = (backend.compiled(m, "uint8") for m in (pooled, maps))

    def of(self, windows: np.ndarray) -> np.ndarray:
        """Pooled features float32 `(n, 1280)` of windows uint8 `(n, side, side, 3)`."""
        parts = [self._pooled(windows[n : n + 64]) for n in range(0, len(windows), 64)]
        return np.concatenate(parts) if parts else np.zeros((0, 1280), np.float32)

    def dense(self, picture: np.ndarray) -> np.ndarray:
        """Mean features of all windows of a picture, at a step of `_STRIDE` px.

        The window whose features are at (row, col) begins at that times the step.
        """
        maps = self._maps(picture[None])[0]
        side = WINDOW // _STRIDE
        total = np.cumsum(np.cumsum(np.pad(maps, ((1, 0), (1, 0), (0, 0))), 0, np.float64), 1)
        boxes = total[side:, side:] - total[:-side, side:] - total[side:, :-side]
        return ((boxes + total[:-side, :-side]) / side**2).astype(np.float32)


def fine_tuned(pixels: np.ndarray, label: np.ndarray, epochs: int) -> Any:
    """The whole network trained on pictures of two classes.

    Classes weigh the same; every picture is turned and mirrored anew in every epoch.
    """
    import keras

    from bach.network.augment import ORIENTATIONS, orient
    from bach.network.patch_network import build_model

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = build_model(BACKBONE, "imagenet", fields=True, linear=True)
    model.compile(keras.optimizers.Adam(3e-4), "sparse_categorical_crossentropy")
    weight = len(label) / 2 / np.bincount(label)[label]
    for epoch in range(epochs):
        start, turn = time.perf_counter(), rng.integers(0, ORIENTATIONS, len(label))
        seen = pixels.copy()
        for n in range(ORIENTATIONS):
            seen[turn == n] = orient(pixels[turn == n], n)
        if epoch == epochs // 2:
            model.optimizer.learning_rate = 1e-4
        fit = model.fit(seen, label, 32, 1, verbose=0, sample_weight=weight)
        loss, seconds = fit.history["loss"][0], time.perf_counter() - start
        log.info("fine-tuned: epoch %d, loss %.3f, %.0f s", epoch + 1, loss, seconds)
    return model


def asked(model: Any, pixels: np.ndarray) -> np.ndarray:
    """Probabilities of class 1."""
    return model.predict(pixels, batch_size=64, verbose=0)[:, 1]


def asked_in_training_mode(model: Any, pixels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The same of a network that was never told that it is not training: batch normalisation
    then takes the mean of the very batch. 32 pictures at a time, in this order, as the authors
    of AMi-Br ask theirs.
    """
    kept = [np.array(value) for value in model.non_trainable_variables]
    probs = np.zeros(len(pixels))
    for start in range(0, len(pixels), 32):
        rows = order[start : start + 32]
        probs[rows] = np.array(model(pixels[rows].astype(np.float32), training=True))[:, 1]
    for value, before in zip(model.non_trainable_variables, kept, strict=True):
        value.assign(before)
    return probs


# AMi-Br


def read_amibr(folder: str | Path) -> tuple[pd.DataFrame, np.ndarray]:
    """The crops: a table of `slide, x, y, atypical`, and their pixels, uint8 (n, 128, 128, 3).

    Raises:
        InputError: If it is another data set.
    """
    folder = Path(folder)
    needed = ("slide", "dataset", "uid", "x", "y", "majority_atypical")
    table = read_table(folder / "AMI-BR.csv", needed)
    atypical = (table["majority_atypical"] == "True").astype(int)
    kinds = np.where(atypical, "atypical", "normal")
    names = table["dataset"] + "_" + table["uid"] + ".png"
    files = [folder / "patches" / k / n for k, n in zip(kinds, names, strict=True)]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise InputError(
            f"{folder} must hold AMi-Br with all its patches.\n"
            f"Received: no {missing[0]} ({len(missing)} missing).\n"
            "Clone github.com/DeepMicroscopy/AMi-Br anew."
        )
    pixels = np.stack([read_rgb(file, "Clone the data set anew.") for file in files])
    places = table[["x", "y"]].astype(float)
    case = table["dataset"] + " " + table["slide"]
    return pd.DataFrame({"case": case, **places, "atypical": atypical}), pixels


def case_folds(cases: pd.Series, weights: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Folds of about even weight that keep cases whole: the largest first, to the lightest."""
    rng = np.random.default_rng(seed)
    sums = pd.Series(weights, cases.index).groupby(cases).sum().sample(frac=1, random_state=seed)
    load, fold_of = rng.random(k) * 1e-3, {}
    for case, weight in sums.sort_values(ascending=False, kind="stable").items():
        fold_of[case] = int(load.argmin())
        load[fold_of[case]] += weight
    return cases.map(fold_of).to_numpy()


# The leak


def measure_leak(table: pd.DataFrame, features: np.ndarray, args: Options) -> dict:
    """Balanced accuracy of a split by case and of one by patch, and the gap, over cases."""
    label = table["atypical"].to_numpy()
    cases, _ = pd.factorize(table["case"])
    sums = {}
    for split in ("case", "patch"):
        rows = np.zeros((len(table), 4))
        for draw in range(args.draws):
            groups = table["case"] if split == "case" else pd.Series(np.arange(len(table)))
            fold = case_folds(groups, np.ones(len(table)), args.folds, draw)
            predicted = np.zeros(len(table), int)
            for k in range(args.folds):
                known = fold != k
                inner = cases if split == "case" else np.arange(len(table))
                probs = fit_logistic(features[known], label[known], inner[known])
                share = label[known].mean()
                # Of even cost: what is twice as rare counts twice.
                found = probs.probs(features[~known])[:, :2] / (1 - share, share)
                predicted[~known] = found.argmax(axis=1)
            rows += np.eye(4)[2 * label + predicted] / args.draws
            log.info("leak: %s, draw %d of %d", split, draw + 1, args.draws)
        sums[split] = unit_sums(rows, cases)
    both = np.concatenate([sums["case"], sums["patch"]], axis=1)
    shares = sums["case"].reshape(-1, 2, 2).sum(axis=2)
    worth = kish((shares / shares.sum(axis=0) ** 2).sum(axis=1))
    pick: dict[str, Callable] = {
        "case": lambda s: _balanced(s[..., :4]),
        "patch": lambda s: _balanced(s[..., 4:]),
        "gap": lambda s: _balanced(s[..., 4:]) - _balanced(s[..., :4]),
    }
    return {
        name: jackknife(both, of, worth, lowest=-1.0 if name == "gap" else 0.0, unit="cases")
        for name, of in pick.items()
    }


def measure_fine_tuned(table: pd.DataFrame, pixels: np.ndarray, args: Options) -> dict:
    """Balanced accuracy of a fine-tuned network on one fold by case and one by patch.

    Also as the authors of AMi-Br asked theirs: in training mode, batches of mixed classes by
    patch, and by patient, where files are listed by class, of one class.
    """
    label, result = table["atypical"].to_numpy(), {}
    for split in ("case", "patch"):
        groups = table["case"] if split == "case" else pd.Series(np.arange(len(table)))
        out = case_folds(groups, np.ones(len(table)), args.folds, 0) == 0
        test, true = pixels[out], label[out]
        model = fine_tuned(pixels[~out], label[~out], args.epochs)
        mixed = np.random.default_rng(0).permutation(len(true))
        probs = {
            split: asked(model, test),
            f"{split}, training mode, mixed": asked_in_training_mode(model, test, mixed),
            f"{split}, training mode, by class": asked_in_training_mode(
                model, test, np.argsort(true, kind="stable")
            ),
        }
        for name, prob in probs.items():
            rows = np.eye(4)[2 * true + (prob >= 0.5)]
            sums = unit_sums(rows, pd.factorize(table["case"][out])[0])
            result[name] = jackknife(sums, _balanced, kish(sums.sum(axis=1)), unit="cases")
            log.info("fine-tuned by %s: %s", name, format_interval(result[name], 3))
    return result


def _balanced(sums: np.ndarray) -> np.ndarray:
    counts = sums.reshape(*sums.shape[:-1], 2, 2)
    return ratio(counts[..., (0, 1), (0, 1)], counts.sum(axis=-1)).mean(axis=-1)


# Stage one and two on real crops


def propose_in_crops(table: pd.DataFrame, pixels: np.ndarray) -> pd.DataFrame:
    """Proposals of every crop: `crop`, `row`, `col` (px), `away_um` from the nearest figure."""
    parts = []
    for number, crop in enumerate(pixels):
        if (crop.max(axis=2) == 0).mean() > 0.01:
            continue  # beyond the edge of its slide
        half = cv2.resize(crop, (_SIDE // 2, _SIDE // 2), interpolation=cv2.INTER_AREA)
        cells = points.of_cells(nuclei.blobs(half), "crop", step=2, mpp=MPP)
        found = points.apart(cells, nuclei.APART_UM)
        parts.append(found.assign(crop=number, row=found["y"], col=found["x"]))
    found = pd.concat(parts, ignore_index=True)
    away = np.full(len(found), np.inf)
    case = table["case"].to_numpy()
    places = table[["x", "y"]].to_numpy()
    for number, rows in found.groupby("crop").groups.items():
        same = places[case == case[number]] - places[number] + _SIDE / 2
        own = found.loc[rows, ["x", "y"]].to_numpy()
        apart = np.hypot(*(own[:, None] - same[None]).transpose(2, 0, 1))
        away[rows] = apart.min(axis=1) * MPP
    return found.assign(away_um=away)[["crop", "row", "col", "score", "away_um"]]


def measure_stage1(found: pd.DataFrame) -> dict:
    """Recall at distances from the figure in the middle of each crop, and proposals per mm2."""
    middle = np.hypot(found["row"] - _SIDE / 2, found["col"] - _SIDE / 2) * MPP
    nearest = middle.groupby(found["crop"]).min()
    crops = found["crop"].nunique()
    density = len(found) / (crops * (_SIDE * MPP / 1000) ** 2)
    # What proposals at random places would reach at that density.
    chance = {r: 1 - np.exp(-density * np.pi * (r / 1000) ** 2) for r in (4.0, RADIUS_UM)}
    return {
        "figures": crops,
        "per_mm2": density,
        "recall": {str(r): float((nearest <= r).mean()) for r in chance},
        "at_random": {str(r): float(value) for r, value in chance.items()},
    }


def choose_windows(found: pd.DataFrame) -> pd.DataFrame:
    """Figures (proposals within 4 um, the nearest of each) and other nuclei (7.5 um away).

    A window may reach `_OVER` px beyond its crop, where it is mirrored. Those of figures never
    do, which would give them away: they are mirrored as the window of some other nucleus is, whose
    place in its crop stands in `edge_row` and `edge_col`.
    """
    middle = found[["row", "col"]].sub(_SIDE / 2).abs().max(axis=1)
    inside = middle <= _SIDE / 2 - WINDOW // 2 + _OVER
    figure = found["away_um"] <= 4.0
    chosen = found[inside & (figure | (found["away_um"] > RADIUS_UM))]
    chosen = chosen.assign(figure=figure[chosen.index].astype(int))
    first = chosen.sort_values("away_um").drop_duplicates(["crop", "figure"])
    keep = (chosen["figure"] == 0) | chosen.index.isin(first.index)
    chosen = chosen[keep].reset_index(drop=True)
    others = chosen.loc[chosen["figure"] == 0, ["row", "col"]]
    like = others.sample(len(chosen), replace=True, random_state=0).to_numpy()
    own = chosen[["row", "col"]].to_numpy()
    edges = np.where(chosen[["figure"]] == 1, like, own)
    return chosen.assign(edge_row=edges[:, 0], edge_col=edges[:, 1])


def windows_of(pixels: np.ndarray, chosen: pd.DataFrame) -> np.ndarray:
    """Windows around proposals: uint8 (n, 64, 64, 3); see `choose_windows`."""
    half, parts = WINDOW // 2, []
    places = chosen[["crop", "row", "col", "edge_row", "edge_col"]].to_numpy()
    for crop, *centre_and_edge in places:
        row, col, edge_row, edge_col = (round(v) for v in centre_and_edge)
        before = [max(0, half - v) for v in (edge_row, edge_col)]
        after = [max(0, v + half - _SIDE) for v in (edge_row, edge_col)]
        # Of a figure near an edge less is seen than there is; of another nucleus all.
        top, left = (max(v - half + cut, 0) for v, cut in zip((row, col), before, strict=True))
        bottom, right = (
            min(v + half - cut, _SIDE) for v, cut in zip((row, col), after, strict=True)
        )
        seen = pixels[int(crop)][top:bottom, left:right]
        rim = (top - row + half, row + half - bottom, left - col + half, col + half - right)
        parts.append(cv2.copyMakeBorder(seen, *rim, cv2.BORDER_REFLECT_101))
    return np.stack(parts)


def measure_stage2(chosen: pd.DataFrame, table: pd.DataFrame, features: np.ndarray, k: int) -> dict:
    """F1 of figures against other nuclei: fold n is tested, n + 1 gives the threshold."""
    case = table["case"].to_numpy()[chosen["crop"]]
    label = chosen["figure"].to_numpy()
    fold = case_folds(pd.Series(case), np.ones(len(case)), k, 0)
    groups, _ = pd.factorize(case)
    counts, thresholds = [], []
    for n in range(k):
        test, search = fold == n, fold == (n + 1) % k
        known = ~(test | search)
        top = fit_logistic(features[known], label[known], groups[known])
        prob = top.probs(features)[:, 1]
        marked = pd.DataFrame({"score": prob[search], "hit": label[search] == 1})
        threshold, _ = points.best_threshold(marked, int(label[search].sum()))
        thresholds.append(threshold)
        counts.append(_counted(case[test], label[test] == 1, prob[test] >= threshold))
    every = pd.concat(counts)
    result = {name: points.interval(every, name, unit="cases") for name in points.FIGURES}
    always = _counted(case, label == 1, np.ones(len(label), bool))
    return result | {
        "figures": int(label.sum()),
        "others": int((label == 0).sum()),
        "thresholds": thresholds,
        "f1_of_always_yes": points.interval(always, unit="cases")["value"],
    }


def measure_stage2_fine_tuned(
    chosen: pd.DataFrame, table: pd.DataFrame, windows: np.ndarray, args: Options
) -> dict:
    """As `measure_stage2`, of a fine-tuned network and the first fold alone."""
    case = table["case"].to_numpy()[chosen["crop"]]
    label = chosen["figure"].to_numpy()
    fold = case_folds(pd.Series(case), np.ones(len(case)), args.folds, 0)
    known, search, test = fold > 1, fold == 1, fold == 0
    prob = np.zeros(len(label))
    prob[~known] = asked(fine_tuned(windows[known], label[known], args.epochs), windows[~known])
    marked = pd.DataFrame({"score": prob[search], "hit": label[search] == 1})
    threshold, _ = points.best_threshold(marked, int(label[search].sum()))
    counts = _counted(case[test], label[test] == 1, prob[test] >= threshold)
    found = {name: points.interval(counts, name, unit="cases") for name in points.FIGURES}
    log.info("fine-tuned stage two: F1 %s", format_interval(found["f1"], 3))
    return found | {"thresholds": [threshold]}


def _counted(case: np.ndarray, there: np.ndarray, found: np.ndarray) -> pd.DataFrame:
    """Counts per case of a decision per window."""
    values = {"tp": there & found, "fp": ~there & found, "fn": there & ~found}
    return pd.DataFrame(values).astype(int).groupby(case).sum()


# Painted fields


class Field:
    """A painted slide, with what is known of it."""

    def __init__(self, folder: Path, number: int, size: tuple[int, int], crops: np.ndarray | None):
        self.name = f"F{number:02}"
        look = painter.make_look(np.random.default_rng([7, number]))
        rng = np.random.default_rng([8, number])
        count = max(2, round(size[0] * size[1] / 5e5))
        painted = figures.paint_figures(rng, look, 0 if crops is not None else count, count, size)
        self.rgb, table = painted
        if crops is not None:
            free = np.full(self.rgb.shape[:2], 1, np.float32)
            for x, y in table[["x", "y"]].to_numpy():
                cv2.circle(free, (round(x), round(y)), 160, 0, -1)
            _, tissue = figures.paint_bare(np.random.default_rng([8, number]), look, size)
            places = figures.find_room(rng, free * tissue, count)
            for place, crop in zip(places, rng.permutation(len(crops)), strict=False):
                figures.paste(self.rgb, crops[crop], place)
            real = pd.DataFrame(places, columns=["x", "y"]).assign(name=figures.FIGURE)
            table = pd.concat([table, real], ignore_index=True)
        table = table.assign(image_id=self.name, x_um=table["x"] * MPP, y_um=table["y"] * MPP)
        self.truth = table[table["name"] == figures.FIGURE].reset_index(drop=True)
        self.path = folder / f"{self.name}.svs"
        write_slide(self.path, self.rgb, MPP)

    def windows(self, places: np.ndarray) -> np.ndarray:
        """Windows around x, y in px, uint8 (n, 64, 64, 3)."""
        half = WINDOW // 2
        with Slide(self.path) as slide:
            read = [slide.read(x - half, y - half, WINDOW, WINDOW, MPP) for x, y in places]
        return np.stack(read) if read else np.zeros((0, WINDOW, WINDOW, 3), np.uint8)

    def proposals(self) -> pd.DataFrame:
        with Slide(self.path) as slide:
            return nuclei.propose(slide)


def _far(places: np.ndarray, truth: pd.DataFrame) -> np.ndarray:
    """The places x, y in px that are farther from every figure than a hit may be."""
    apart = places[:, None] - truth[["x", "y"]].to_numpy()[None]
    return places[np.hypot(*apart.transpose(2, 0, 1)).min(axis=1, initial=np.inf) > RADIUS_UM / MPP]


def training_places(field: Field, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Places of figures, each eight times a bit aside; of some others; and of many more.

    Half of the others are proposals, half lie anywhere: a sliding window meets both.
    """
    truth = field.truth[["x", "y"]].to_numpy()
    own = np.repeat(truth, 8, axis=0) + rng.normal(0, 1.5 / MPP, (8 * len(truth), 2))
    anywhere = rng.uniform((0, 0), field.rgb.shape[1::-1], (2000, 2))
    kinds = [field.proposals()[["x", "y"]].to_numpy(), anywhere]
    kinds = [rng.permutation(_far(places, field.truth)) for places in kinds]
    few = 4 * len(truth)
    return own, np.concatenate([k[:few] for k in kinds]), np.concatenate([k[few:] for k in kinds])


def train(fields: Sequence[Field], seen: Callable[[Field, np.ndarray], np.ndarray]) -> dict:
    """The first model, and the one that its false positives were added to.

    Args:
        fields: Painted slides.
        seen: Features of places of a field.
    """
    rng = np.random.default_rng(0)
    places = [training_places(field, rng) for field in fields]
    features, labels, groups = [], [], []
    for number, (field, (own, others, _)) in enumerate(zip(fields, places, strict=True)):
        features.append(seen(field, np.concatenate([own, others])))
        labels += [1] * len(own) + [0] * len(others)
        groups += [number] * (len(own) + len(others))
    first = fit_logistic(np.concatenate(features), np.array(labels), np.array(groups))
    for number, (field, (_, _, more)) in enumerate(zip(fields, places, strict=True)):
        found = seen(field, more)
        wrong = found[first.probs(found)[:, 1] >= 0.5]
        features.append(wrong)
        labels += [0] * len(wrong)
        groups += [number] * len(wrong)
    added = sum(map(len, features[len(fields) :]))
    log.info("fields: %d windows, %d false positives added", len(labels) - added, added)
    second = fit_logistic(np.concatenate(features), np.array(labels), np.array(groups))
    return {"first": first, "added": second}


def two_stages(field: Field, net: Features, top: Linear) -> pd.DataFrame:
    """Proposals, each looked at."""
    found = field.proposals()
    score = top.probs(net.of(field.windows(found[["x", "y"]].to_numpy())))[:, 1]
    return points.apart(found.assign(score=score), RADIUS_UM)


def sliding(field: Field, net: Features, top: Linear) -> pd.DataFrame:
    """The same network at every place of a grid."""
    step = round(GRID_UM / MPP)
    rows, cols = (side // step for side in field.rgb.shape[:2])
    centres = (np.stack(np.indices((rows, cols))[::-1], axis=-1).reshape(-1, 2) + 0.5) * step
    score = np.concatenate(
        [
            top.probs(net.of(field.windows(centres[start : start + 4096])))[:, 1]
            for start in range(0, len(centres), 4096)
        ]
    )
    return _maxima(field, score.reshape(rows, cols), step, 0.0)


def dense(field: Field, net: Features, top: Linear) -> pd.DataFrame:
    """The network once over the field, with a top that was trained on such features."""
    features = dense_features(field, net)
    score = top.probs(features.reshape(-1, features.shape[-1]))[:, 1]
    return _maxima(field, score.reshape(features.shape[:2]), _STRIDE, -0.5)


def dense_features(field: Field, net: Features) -> np.ndarray:
    """Features of the windows with their middles at row, col times `_STRIDE` px.

    The field is read in strips with surroundings.
    """
    height, width = field.rgb.shape[:2]
    strips, halo, tall = [], 128, 1024
    with Slide(field.path) as slide:
        for upper in range(0, height, tall):
            picture = slide.read(-halo, upper - halo, width + 2 * halo, tall + 2 * halo, MPP)
            found = net.dense(picture)
            first = halo // _STRIDE - WINDOW // _STRIDE // 2
            rows, cols = (-(-side // _STRIDE) for side in (min(tall, height - upper), width))
            strips.append(found[first : first + rows, first : first + cols])
    return np.concatenate(strips)


def _maxima(field: Field, score: np.ndarray, step: int, shift: float) -> pd.DataFrame:
    """Points of a map whose cells' middles are moved by a part of a cell."""
    found = points.maxima(score, 0.01, RADIUS_UM / (step * MPP))
    found = found.assign(row=found["row"] + shift, col=found["col"] + shift)
    return points.of_cells(found, field.name, step, MPP)


def measure_fields(args: Options, crops: tuple | None, net: Features) -> dict:
    """Time, recall of stage one, and F1 of all methods, of the first and the second model."""
    size = (1024, 768) if args.quick else (2048, 1536)
    with tempfile.TemporaryDirectory() as folder:
        fields = []
        for number in range(args.slides + args.test_slides):
            chosen = None if crops is None else crops[0 if number < args.slides else 1]
            fields.append(Field(Path(folder), number, size, chosen))
        known, test = fields[: args.slides], fields[args.slides :]
        # Half to train on, half to search the threshold on.
        half = (len(known) + 1) // 2
        models = train(known[:half], lambda field, places: net.of(field.windows(places)))
        densely = train(known[:half], lambda field, places: _at(dense_features(field, net), places))
        hits = np.array([nuclei.recall(f.proposals(), f.truth, RADIUS_UM) for f in test])
        result: dict = {"recall_of_stage_1": hits.sum(axis=0).tolist()}
        result["proposals"] = sum(len(f.proposals()) for f in test)
        for name, model, method, top in (
            ("two stages", "first", two_stages, models["first"]),
            ("two stages", "added", two_stages, models["added"]),
            ("sliding window", "added", sliding, models["added"]),
            ("dense", "added", dense, densely["added"]),
        ):
            result[f"{name}, {model}"] = judge(name, method, known[half:], test, net, top)
    result["mm2"] = len(test) * size[0] * size[1] * (MPP / 1000) ** 2
    return result


def _at(features: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Dense features of the windows whose middles are nearest to places x, y in px."""
    most = np.array(features.shape[1::-1]) - 1
    cols, rows = np.clip(np.round(places / _STRIDE).astype(int), 0, most).T
    return features[rows, cols]


def judge(
    name: str,
    method: Callable,
    search: Sequence[Field],
    test: Sequence[Field],
    net: Features,
    top: Linear,
) -> dict:
    """F1 on test slides by the threshold of others, and seconds on the test slides."""
    marked, truth = _found(method, search, net, top)
    threshold, _ = points.best_threshold(marked, len(truth))
    start = time.perf_counter()
    marked, truth = _found(method, test, net, top)
    seconds = time.perf_counter() - start
    counts = points.count(marked, truth, {f.name: f.name for f in test}, threshold)
    log.info("fields: %s in %.1f s", name, seconds)
    figures_ = {kind: points.interval(counts, kind, unit="slides") for kind in points.FIGURES}
    return figures_ | {"threshold": threshold, "seconds": seconds}


def _found(
    method: Callable, fields: Sequence[Field], net: Features, top: Linear
) -> tuple[pd.DataFrame, pd.DataFrame]:
    found = pd.concat([method(field, net, top) for field in fields], ignore_index=True)
    truth = pd.concat([field.truth for field in fields], ignore_index=True)
    return points.mark_hits(found, truth, RADIUS_UM), truth


# The tool


def main(argv: list[str] | None = None) -> None:
    args = parse(Options, argv, __doc__)
    if args.quick:
        args = dataclasses.replace(args, slides=4, test_slides=2, parts=("fields",), amibr=None)
    parts = set(args.parts or PARTS) & set(PARTS if args.amibr else ("fields",))
    if not parts:
        raise InputError(
            "Real crops are measured on a copy of AMi-Br.\n"
            f"Received: --parts {' '.join(args.parts)} without --amibr.\n"
            "Clone github.com/DeepMicroscopy/AMi-Br and name its folder with --amibr."
        )
    net, results = Features(), {}
    crops = None
    if args.amibr:
        table, pixels = read_amibr(args.amibr)
        log.info("%d crops of %d cases", len(table), table["case"].nunique())
        if "leak" in parts:
            features = kept(args, "crops", lambda: net.of(pixels))
            results["leak"] = measure_leak(table, features, args)
            if args.epochs:
                side = (args.crop_px, args.crop_px)
                shrunk = [cv2.resize(one, side, interpolation=cv2.INTER_AREA) for one in pixels]
                small = np.stack(shrunk)
                results["leak, fine-tuned"] = measure_fine_tuned(table, small, args)
        if {"stage1", "stage2"} & parts:
            found = propose_in_crops(table, pixels)
            results["stage1"] = measure_stage1(found)
        if "stage2" in parts:
            chosen = choose_windows(found)
            features = kept(args, "windows", lambda: net.of(windows_of(pixels, chosen)))
            results["stage2"] = measure_stage2(chosen, table, features, args.folds)
            if args.epochs:
                tuned = measure_stage2_fine_tuned(chosen, table, windows_of(pixels, chosen), args)
                results["stage2, fine-tuned"] = tuned
        halves = case_folds(table["case"], np.ones(len(table)), 2, 0)
        crops = pixels[halves == 0], pixels[halves == 1]
    if "fields" in parts:
        results["fields"] = measure_fields(args, crops, net)
    report(results)


def kept(args: Options, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Features, from the cache if they are there."""
    file = None if args.cache is None else Path(args.cache) / f"{name}.npy"
    if file is not None and file.exists():
        return np.load(file)
    start = time.perf_counter()
    features = compute()
    log.info("%s: %s features in %.0f s", name, features.shape, time.perf_counter() - start)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, features)
    return features


def report(results: dict) -> None:
    """Print a table per measurement, and all of it as JSON."""
    for leak in (results[key] for key in ("leak", "leak, fine-tuned") if key in results):
        rows = [[name, format_interval(value, 3)] for name, value in leak.items()]
        print(markdown(["split by", "balanced accuracy"], rows), end="\n\n")
    if "stage1" in results:
        one = results["stage1"]
        rows = [
            [f"{radius} um", f"{value:.4f}", f"{one['at_random'][radius]:.2f}"]
            for radius, value in one["recall"].items()
        ]
        print(f"{one['figures']} figures, {one['per_mm2']:,.0f} proposals per mm2")
        print(markdown(["within", "recall of stage one", "at random places"], rows), end="\n\n")
    if "stage2" in results:
        two = results["stage2"]
        rows = [[name, format_interval(two[name], 3)] for name in points.FIGURES]
        print(f"{two['figures']} figures, {two['others']} other nuclei; always yes: ", end="")
        print(f"F1 {two['f1_of_always_yes']:.3f}")
        print(markdown(["stage two", "held-out cases"], rows), end="\n\n")
    if "fields" in results:
        _report_fields(results["fields"])
    print(to_json(results))


def _report_fields(fields: dict) -> None:
    hits, every = fields["recall_of_stage_1"]
    print(f"{fields['mm2']:.1f} mm2, {fields['proposals']} proposals, recall {hits} of {every}")
    fastest = fields["two stages, added"]["seconds"]
    rows = [
        [
            name,
            *(format_interval(value["f1"], 2), f"{value['precision']['value'] or 0:.2f}"),
            *(f"{value['recall']['value'] or 0:.2f}", f"{value['seconds']:.1f}"),
            f"{value['seconds'] / fastest:.1f}",
        ]
        for name, value in fields.items()
        if isinstance(value, dict)
    ]
    print(markdown(["method, model", "F1", "precision", "recall", "s", "times"], rows), end="\n\n")


if __name__ == "__main__":
    exit_with(main)
