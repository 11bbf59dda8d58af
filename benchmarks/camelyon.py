"""Are real annotations and real tissue of CAMELYON16 read as they are meant?

Two public copies of parts of the challenge's data, of which nothing is kept here:

    --annotations   outlines of 110 tumour and 158 normal slides as JSON, jsons/ of
                    github.com/baidu-research/NCRF at 111c7d19. Each file is written in ASAP's
                    format with the challenge's groups, read by `bach.annotations` and painted at
                    the scale of the evaluation. Tumour is compared px by px with what scikit-image
                    fills; the outlines of normal slides, which are large, with their areas by the
                    shoelace formula.
    --crops         89 crops of 256 px, data/sample_patches_256 of
                    github.com/DIDSR/DeepLearningCamelyon_II at 1d48032f (CC0). They are laid on
                    glass, which stands for a slide, and the rules of `--tissue` look for them.

Reads:   what is named; without it nothing is measured.
Writes:  --csv, and --picture of the crops on glass with what each rule takes.
Command: python benchmarks/camelyon.py --annotations NCRF/jsons --crops CROPS \
             --csv docs/results/camelyon_annotations.csv
Time:    10 min on one core, most of it scikit-image's; --quick, every tenth file, 20 s.
Prints Markdown tables; the last line is JSON.
"""

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach import froc
from bach.annotations import Region
from bach.annotations.painting import faults, paint, remarks
from bach.annotations.regions import read_annotation
from bach.brightfield import judge
from bach.core.errors import exit_with
from bach.core.files import to_json
from bach.core.options import option, parse
from bach.core.pictures import read_rgb, write_png
from bach.core.tables import write_csv
from bach.core.text import markdown
from bach.tasks import use
from bach.tissue import find_tissue
from bach.toy.nodes import write_asap_xml

DOWNSAMPLE = 32  # level 5
TUMOUR = 1
RULES = ("paper", "robust", "gray")
GLASS, GAP = (243, 242, 243), 128


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    annotations: str | None = option(None, "folder of NCRF's JSON files", path=True)
    crops: str | None = option(None, "folder of crops, PNG", path=True)
    csv: str | None = option(None, "file for the table of annotations", path=True)
    picture: str | None = option(None, "file for a picture of the crops", path=True)
    quick: bool = option(False, "every tenth file")


def outlines(path: Path) -> list[Region]:
    """The outlines of a JSON file, tumour 1 first, then what is none, near the origin."""
    told = json.loads(path.read_text())
    regions = [
        Region(label, np.array(one["vertices"], float).reshape(-1, 2))
        for label, kind in ((1, "positive"), (0, "negative"))
        for one in told[kind]
    ]
    corner = np.concatenate([region.points for region in regions]).min(axis=0)
    # In whole px of the mask, so that the outlines fall on it as they do on the slide.
    corner = (corner // DOWNSAMPLE - 8) * DOWNSAMPLE
    return [region._replace(points=region.points - corner) for region in regions]


def by_others(regions: Sequence[Region], shape: tuple[int, int]) -> np.ndarray:
    """Tumour by scikit-image: bool of a shape."""
    from skimage.draw import polygon

    mask = np.zeros(shape, bool)
    for region in regions:
        if len(region.points) > 2:
            # A px covers 0 to 1 here, and has its centre at 0 there.
            x, y = (region.points / DOWNSAMPLE - 0.5).T
            mask[polygon(y, x, shape)] = region.label == 1
    return mask


def shoelace(region: Region) -> float:
    """The area of an outline in px of the mask."""
    x, y = region.points.T / DOWNSAMPLE
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def measure(path: Path, scratch: Path) -> dict[str, Any]:
    """What is read of a file, and what scikit-image makes of it."""
    regions = outlines(path)
    corners = np.concatenate([region.points for region in regions]).max(axis=0)
    width, height = (int(side) + 8 * DOWNSAMPLE for side in corners)
    file = scratch / f"{path.stem}.xml"
    write_asap_xml(file, regions)
    start = time.perf_counter()
    annotation = read_annotation(file)
    painting = paint(annotation.regions, width, height, DOWNSAMPLE)
    seconds = time.perf_counter() - start
    mask = painting.labels == TUMOUR
    if any(region.label == 1 for region in regions):
        px, others = int(mask.sum()), by_others(regions, mask.shape)
        areas = {"area": px, "of others": int(others.sum()), "differs": int((mask != others).sum())}
    else:
        # Each by itself: some lie in one another.
        each = [fate.area / DOWNSAMPLE**2 for fate in painting.fates]
        others = [shoelace(region) for region in annotation.regions]
        differs = sum(abs(a - b) for a, b in zip(each, others, strict=True))
        areas = {"area": sum(each), "of others": sum(others), "differs": differs}
    truth = froc.find_lesions(mask)
    return {
        "file": path.stem,
        "outlines": len(regions),
        "read": len(annotation.regions),
        "vertices": sum(len(region.points) for region in regions),
        "left out": sum(annotation.skipped.values()),
        "problems": len(faults(annotation.regions, painting.fates)),
        "remarks": len(remarks(annotation.regions, painting.fates)),
        **areas,
        "lesions": int(truth.counted.sum()),
        "isolated tumour cells": int((~truth.counted[1:]).sum()),
        "seconds": seconds,
    }


def of_annotations(folder: Path, quick: bool) -> pd.DataFrame:
    """A row for every file."""
    files = sorted(folder.rglob("*.json"))[:: 10 if quick else 1]
    with tempfile.TemporaryDirectory() as scratch:
        rows = [measure(file, Path(scratch)) for file in tqdm(files, disable=None)]
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> list[list[str]]:
    """Figures of all files, of tumour slides and of normal ones."""
    tumour = table["file"].str.casefold().str.startswith("tumor")
    rows = []
    for name, some in (("tumour", table[tumour]), ("normal", table[~tumour])):
        if not len(some):
            continue
        total = some.drop(columns="file").sum()
        mm2 = total["area"] * (froc.TRUTH_UM / 1000) ** 2
        far = some["differs"] / some["area"].clip(1)
        share = total["differs"] / max(total["area"], 1)
        counts = ("outlines", "vertices", "read", "left out", "problems", "remarks")
        lesions = (f"{total['lesions']:,.0f}", f"{total['isolated tumour cells']:,.0f}")
        row = [name, f"{len(some)}", *(f"{total[one]:,.0f}" for one in counts), f"{mm2:,.1f}"]
        row += [f"{share:.3%}", f"{far.max():.2%}", *lesions, f"{total['seconds']:.1f}"]
        rows.append(row)
    return rows


HEADER = ["slides", "files", "outlines", "vertices", "read", "left out", "problems", "remarks"]
HEADER += ["mm2", "of it different", "most in one file", "lesions"]
HEADER += ["isolated tumour cells", "seconds"]


def on_glass(crops: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Crops in rows on glass, uint8 RGB at the scale of slides' maps, and where they lie."""
    side = crops[0].shape[0]
    across = int(np.ceil(np.sqrt(len(crops))))
    step = side + GAP
    shape = (-(-len(crops) // across) * step + GAP, across * step + GAP)
    rgb = np.full((*shape, 3), GLASS, np.uint8)
    where = np.zeros(shape, bool)
    for number, crop in enumerate(crops):
        top, left = (GAP + part * step for part in divmod(number, across))
        rgb[top : top + side, left : left + side] = crop
        where[top : top + side, left : left + side] = True
    noise = np.random.default_rng(0).normal(0, 1.2, rgb.shape)
    rgb = np.clip(rgb + np.where(where[..., None], 0, noise), 0, 255).astype(np.uint8)
    return rgb, where


def of_crops(folder: Path, picture: str | None) -> list[list[str]]:
    """What each rule takes of the crops, and what it says."""
    crops = [read_rgb(path, "Leave it out.") for path in sorted(folder.rglob("*.png"))]
    whole, where = on_glass(crops)
    # At the scale of the maps that the rules are made for, or nearly.
    rgb = cv2.resize(whole, None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA)
    where = where[8::16, 8::16]
    rows, shown = [], [rgb]
    for rule in RULES:
        mask, doubts = find_tissue(rgb, rule)
        judged = judge(rgb)
        said = "; ".join((*judged.impossible, *judged.doubtful, *doubts))
        rows.append([rule, str(len(crops)), f"{mask[where].mean():.1%}", said])
        shown.append(np.where(mask[..., None], rgb, np.uint8(255)))
    alone = sum(bool(judge(crop).impossible or judge(crop).doubtful) for crop in crops)
    rows.append(["each crop alone", str(len(crops)), "", f"doubted: {alone}"])
    if picture is not None:
        whole = np.concatenate(shown, axis=1)
        write_png(picture, cv2.resize(whole, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(Options, argv, __doc__)
    use("camelyon16")  # whose groups these are
    figures: dict[str, Any] = {}
    if args.annotations is not None:
        table = of_annotations(Path(args.annotations), args.quick)
        rows = summarise(table)
        print(markdown(HEADER, rows), end="\n\n")
        worst = table.loc[(table["differs"] / table["area"].clip(1)).idxmax()]
        figures["worst"] = {name: worst[name] for name in ("file", "area", "of others", "differs")}
        noted = table[(table["problems"] > 0) | (table["left out"] > 0)]
        figures["noted"] = noted["file"].tolist()
        if args.csv is not None:
            across = pd.DataFrame(rows, columns=HEADER).set_index("slides").T
            write_csv(across.rename_axis("of").reset_index(), args.csv)
    if args.crops is not None:
        rows = of_crops(Path(args.crops), args.picture)
        print(markdown(["rule", "crops", "found", "said"], rows), end="\n\n")
        figures["found"] = {row[0]: row[2] for row in rows[:-1]}
    if not figures:
        print("nothing measured: name --annotations and --crops")
    print(to_json(json.loads(json.dumps(figures, default=lambda value: value.item()))))


if __name__ == "__main__":
    exit_with(main)
