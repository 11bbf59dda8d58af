"""Which backbone serves in which mode, and how much surroundings does it need densely?

Every network is built with random weights; its batch normalisation and the last layer are set so
that probabilities differ from place to place as those of a trained one. Then it is saved and
loaded, and:

    halo     surroundings that a region needs, as measured on noise (see `bach.network.dense`)
    regions  largest difference of probabilities on a real slide field between a region and the
             same place of a larger one
    patches  largest difference between dense prediction and patches with a margin of the halo
    seconds  that the measurement of the halo took

Reads:   docs/slides.
Writes:  --csv, if given.
Command: python benchmarks/backbones.py --csv docs/results/backbones.csv
Time:    25 min on two cores; --quick 1 min.
Prints a Markdown table; the last line is JSON.
"""

import dataclasses
import math
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras
import numpy as np

from bach.core.errors import InputError, exit_with
from bach.core.files import to_json
from bach.core.options import option, parse
from bach.core.tables import write_csv
from bach.core.text import markdown
from bach.network.batch_norm import refresh_batch_norm, training_pass
from bach.network.dense import DenseModel
from bach.network.patch_network import build_model, load_model
from bach.patches import View
from bach.slides import Slide
from bach.tasks import BACH

# One of every family of keras.applications, and ours.
FAMILIES = (
    "small",
    "EfficientNetLite0",
    "ConvNeXtTiny",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "NASNetMobile",
    "ResNet50",
    "ResNet50V2",
    "VGG16",
    "Xception",
)
FIELD = Path(__file__).resolve().parent.parent / "docs" / "slides" / "cmu-1-small-region.svs"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    backbones: tuple[str, ...] = option((), "which to measure; one of every family if not said")
    csv: str | None = option(None, "CSV file for the table", path=True)
    quick: bool = option(False, "the two of our own only")


def measure(backbone: str) -> dict:
    """Measure one backbone with random weights.

    Returns:
        A row of the table; where `dense` is "no", `reason` in place of figures.

    Raises:
        AssertionError: If the saved network is another function than the one that was built.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    field = _field()
    model = _sharp(build_model(backbone, "none"), field)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.keras")
        loaded = load_model(Path(folder) / "model.keras")
    seen = field[None, : BACH.side_px, : BACH.side_px].astype(np.float32)
    np.testing.assert_allclose(
        loaded.predict_on_batch(seen), model.predict_on_batch(seen), atol=1e-6
    )
    row = {"backbone": backbone, "window": model.get_layer("pool").input.shape[1]}
    start = time.perf_counter()
    try:
        dense = DenseModel(loaded)
    except InputError as error:
        return row | {"dense": "no", "reason": str(error)}
    row |= {"dense": "yes", "halo": dense.halo * dense.stride}
    row["seconds"] = round(time.perf_counter() - start, 1)
    row["regions"] = _gap_of_regions(dense, field)
    row["patches"] = _gap_of_patches(backbone, model, dense, field)
    return row


def _sharp(model: keras.Model, field: np.ndarray) -> keras.Model:
    """Give random weights the statistics and the differences of trained ones.

    Batch normalisation is that of patches of the field and of noise; the logits of patches of
    the field get mean 0 and spread 1, or probabilities would hardly differ.
    """
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (4, 38, 38, 3)).repeat(8, axis=1).repeat(8, axis=2)
    places = rng.integers(0, min(field.shape[:2]) - BACH.side_px, (8, 2))
    seen = np.stack([field[y : y + BACH.side_px, x : x + BACH.side_px] for y, x in places])
    batch = np.concatenate([seen, noise[:, : BACH.side_px, : BACH.side_px]]).astype(np.float32)
    for layer in model._flatten_layers():
        if type(layer).__name__ == "LayerScale":  # ConvNeXt's blocks do next to nothing at first
            layer.gamma.assign(layer.gamma * 0 + 0.3)
    refresh_batch_norm(model, [batch], training_pass(model))
    last = model.get_layer("classes")
    before = keras.Model(model.input, last.input).predict_on_batch(batch[: len(places)])
    kernel = keras.ops.convert_to_numpy(last.kernel)
    logits = before @ kernel
    kernel = kernel / logits.std(axis=0)
    last.set_weights([kernel, -(before @ kernel).mean(axis=0)])
    return model


def _field() -> np.ndarray:
    """A real slide field of 2,000 px and more, repeated: uint8 `(rows, cols, 3)`."""
    with Slide(FIELD) as slide:
        scale = 1 / slide.mpp
        pixels = slide.read(0, 0, int(slide.width / scale), int(slide.height / scale), 1.0)
    return np.tile(
        pixels, (math.ceil(2000 / pixels.shape[0]), math.ceil(2000 / pixels.shape[1]), 1)
    )


def _gap_of_regions(dense: DenseModel, field: np.ndarray) -> float:
    """Difference between a region and the same place of one with 6 features more on each side."""
    more = 6
    inner, outer = dense.region_px(dense.window + 2), dense.region_px(dense.window + 2 + 2 * more)
    first = more * dense.stride
    small = dense.top(dense.features(field[first:, first:][:inner, :inner]))
    large = dense.top(dense.features(field[:outer, :outer]))
    return float(np.abs(large[more:-more, more:-more] - small).max())


def _gap_of_patches(
    backbone: str, model: keras.Model, dense: DenseModel, field: np.ndarray
) -> float | str:
    """Difference between dense prediction and a patch, with a margin of the halo."""
    margin = max(dense.halo, 1) * dense.stride
    wide = build_model(backbone, "none", view=View(margin))
    wide.set_weights(model.get_weights())
    side = BACH.side_px + 2 * margin
    patch = wide.predict_on_batch(field[None, :side, :side].astype(np.float32))[0]
    try:
        same = DenseModel(wide)
    except InputError as error:
        return str(error)
    around = same.halo * same.stride - margin
    px = same.region_px(same.window)
    region = np.roll(field, (around, around), (0, 1))[:px, :px]
    return float(np.abs(same.top(same.features(region))[0, 0] - patch).max())


def main(argv: list[str] | None = None) -> int:
    args = parse(Options, argv, __doc__)
    rows = []
    for name in FAMILIES[:2] if args.quick else args.backbones or FAMILIES:
        row = measure(name)
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    columns = ["backbone", "window", "dense", "halo", "regions", "patches", "seconds"]
    cells = [[_shown(row.get(column)) for column in columns] for row in rows]
    print(markdown(columns, cells))
    if args.csv is not None:
        import pandas as pd

        write_csv(pd.DataFrame(cells, columns=columns), args.csv)
    print(to_json({row["backbone"]: row for row in rows}))
    return 0


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" if isinstance(value, float) and value < 0.05 else str(value)


if __name__ == "__main__":
    exit_with(main)
