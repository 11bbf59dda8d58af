"""Does `bach.froc` score lesions as the organisers' evaluation of CAMELYON16 does?

Draws slides with tumour of all sizes and detections with equal scores among them, and gives the
same of them to both. The organisers' script is not part of this project; name a copy of it:
github.com/baidu-research/NCRF, wsi/bin/Evaluation_FROC.py, which is theirs for Python 3.

    masks       slides whose lesions are numbered alike, px by px, with the same isolated
                tumour cells
    hits        slides with the same scores of hits and of false positives
    curves      data sets with the same false positives and sensitivity at every threshold, and
                those that only lack the point that the script leaves out where no lesion was missed
    error       the largest difference of the mean sensitivity

Reads:   --published, if given; without it only the time is measured.
Writes:  --csv, if given.
Command: python benchmarks/froc.py --published Evaluation_FROC.py --csv docs/results/froc.csv
Time:    20 s on one core; --quick 2 s.
Prints a Markdown table; the last line is JSON.
"""

import dataclasses
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.random import Generator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach import froc
from bach.core.errors import exit_with
from bach.core.files import to_json
from bach.core.options import option, parse
from bach.core.tables import write_csv
from bach.core.text import markdown
from bach.toy.painter import blob

LEVEL = 5
SIZE = (260, 340)  # px of level 5: 2.0 x 2.6 mm


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    published: str | None = option(None, "the organisers' Evaluation_FROC.py", path=True)
    data_sets: int = option(60, "data sets to draw", at_least=1)
    slides: int = option(20, "slides of each", at_least=2)
    csv: str | None = option(None, "file for the table", path=True)
    quick: bool = option(False, "two data sets of six slides")


class Case(NamedTuple):
    """A slide: its tumour, bool `(rows, cols)` or None, and detections in level-0 px."""

    mask: np.ndarray | None
    x: np.ndarray
    y: np.ndarray
    score: np.ndarray


def draw_case(rng: Generator, easy: bool) -> Case:
    """Draw a slide; in an easy one all lesions are large, and found."""
    from skimage.draw import polygon

    rows, cols = SIZE
    mask = np.zeros(SIZE, bool) if rng.random() < 0.6 else None
    places = rng.uniform((0, 0), (cols, rows), (rng.integers(0, 30), 2))
    if mask is not None:
        for _ in range(rng.integers(1, 9)):
            centre = rng.uniform((0, 0), (cols, rows))
            outline = centre + blob(rng, np.exp(rng.uniform(3.2 if easy else 0.5, 4)), 0.2)
            mask[polygon(outline[:, 1], outline[:, 0], SIZE)] = True
        inside = np.argwhere(mask)[:, ::-1]
        if len(inside):
            count = len(inside) if easy else min(len(inside), int(rng.integers(0, 12)))
            some = inside[rng.choice(len(inside), min(count, 400), replace=False)]
            places = np.concatenate([places, some + rng.uniform(0, 1, some.shape)])
    x, y = (places * 2**LEVEL).astype(int).T
    # Of few values, so that many are equal; exact in the script's single precision.
    score = rng.integers(1, 65, len(x)) / 64
    return Case(mask, x, y, score)


def load(path: str) -> Any:
    """The functions of the organisers' script, without its command line."""
    module: Any = types.ModuleType("published")
    source = Path(path).read_text(encoding="utf-8").split("if __name__ ==")[0]
    exec(compile(source, path, "exec"), vars(module))
    # Names that its libraries have given up since.
    module.nd = types.SimpleNamespace(
        distance_transform_edt=module.nd.distance_transform_edt,
        morphology=types.SimpleNamespace(binary_fill_holes=module.nd.binary_fill_holes),
    )
    return module


def their_mask(module: Any, mask: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Their numbered lesions, and those of isolated tumour cells."""
    values = np.repeat(mask[..., None].astype(np.uint8) * 255, 4, axis=2)
    slide = types.SimpleNamespace(
        level_dimensions={LEVEL: mask.shape[::-1]}, read_region=lambda at, level, size: values
    )
    module.openslide = types.SimpleNamespace(open_slide=lambda path: slide)
    lesions = module.computeEvaluationMask("mask.tif", froc.MPP, LEVEL)
    return lesions, module.computeITCList(lesions, froc.MPP, LEVEL)


def compare(module: Any, cases: Sequence[Case]) -> dict[str, float]:
    """Both evaluations of a data set: what is equal."""
    masks = alike = tumours = 0
    ours: list[froc.Hits] = []
    theirs = np.empty((4, len(cases)), object)
    for number, case in enumerate(cases):
        some = case.mask is not None and bool(case.mask.any())
        truth = froc.find_lesions(case.mask if some else np.zeros((1, 1), bool))
        col, row = case.x // 2**LEVEL, case.y // 2**LEVEL
        hits = froc.match(truth, row if some else row - 10**9, col, case.score)
        lesions, isolated = their_mask(module, case.mask) if some else (0, [])
        false, found, count, *_ = module.compute_FP_TP_Probs(
            case.y, case.x, case.score.tolist(), some, lesions, isolated, LEVEL
        )
        theirs[:, number] = number, false, found, count
        ours.append(hits)
        tumours += some
        left_out = (np.flatnonzero(~truth.counted[1:]) + 1).tolist()
        masks += some and np.array_equal(truth.lesions, lesions) and left_out == isolated
        kept = np.delete(found, np.array(isolated, int) - 1)
        alike += np.array_equal(kept, hits.found) and false == hits.false.tolist()
    false_positives, sensitivity = module.computeFROC(theirs)
    curve = froc.froc_curve(ours)
    there = [part[::-1] for part in (false_positives, sensitivity)]
    same = all(np.array_equal(a, b) for a, b in zip(curve, there, strict=True))
    shorter = all(np.array_equal(a[:-1], b) for a, b in zip(curve, there, strict=True))
    error = froc.mean_sensitivity(*curve) - froc.mean_sensitivity(*there)
    return {
        "slides": len(cases),
        "with tumour": tumours,
        "lesions": sum(len(one.found) for one in ours),
        "masks": masks,
        "hits": alike,
        "curves": float(same),
        "curves without the lowest point": float(shorter),
        "error": abs(error),
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(Options, argv, __doc__)
    data_sets, slides = (2, 6) if args.quick else (args.data_sets, args.slides)
    start = time.monotonic()
    figures = []
    for number in range(data_sets):
        rng = np.random.default_rng(number)
        cases = [draw_case(rng, easy=number % 4 == 3) for _ in range(slides)]
        if args.published is not None:
            figures.append({"data sets": 1, **compare(load(args.published), cases)})
        else:
            for case in cases:
                froc.find_lesions(np.zeros(SIZE, bool) if case.mask is None else case.mask)
    if not figures:
        print("not compared: name the organisers' script with --published")
        print(to_json({"seconds": round(time.monotonic() - start, 1)}))
        return
    table = pd.DataFrame(figures)
    total = {
        name: table[name].max() if name.startswith("error") else int(table[name].sum())
        for name in table
    }
    shown = [
        ["slides with tumour: lesions, isolated tumour cells", "with tumour", "masks"],
        ["slides: scores of hits and of false positives", "slides", "hits"],
        ["data sets: the whole curve", "data sets", "curves"],
        ["data sets: all but its last point", "data sets", "curves without the lowest point"],
    ]
    rows = [[what, f"{total[drawn]:,}", f"{total[equal]:,}"] for what, drawn, equal in shown]
    header = ["compared", "drawn", "equal"]
    print(markdown(header, rows), end="\n\n")
    if args.csv is not None:
        write_csv(pd.DataFrame(rows, columns=header), args.csv)
    print(to_json(total))


if __name__ == "__main__":
    exit_with(main)
