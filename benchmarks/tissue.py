"""Which rule finds tissue, how much glass does it take, and does it say when it cannot work?

Paints thumbnails of slides with `bach.toy.painter`: pieces of 0.2% to 90% of the slide, in
usual and in pale stain, on glass of seven tinges with light that falls off and noise. Every one
is given to both rules of `--tissue`; the truth is the outline of the piece, fat and ducts
inside it included.

    found    share of the tissue that the rule finds
    glass    share of the glass that it takes for tissue
    warned   share of the thumbnails for which the rule says that it cannot work

Pictures of one's own (thumbnails or tiles) have no truth: of each, the share that either rule
takes for tissue is printed. Of a run of make_heatmap.py, the Part B score is printed of its class
maps as they are, and Normal off the tissue of either rule (`--clip-to-tissue`).

Reads:   --folders, --run and --truth, if given.
Writes:  --csv, --tiles-csv, --clip-csv and --picture, if given.
Command: python benchmarks/tissue.py --csv docs/results/tissue.csv
Time:    2 min on one core; --quick 20 s.
Prints Markdown tables; the last line is JSON.
"""

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.random import Generator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach.classes import CLASSES, NORMAL
from bach.core.drawings import write
from bach.core.errors import exit_with
from bach.core.files import to_json
from bach.core.options import option, parse
from bach.core.pictures import read_rgb, write_png
from bach.core.tables import write_csv
from bach.core.text import markdown
from bach.honest.records import read_slides
from bach.labels import read_class_map
from bach.scores import joint_counts, score_from_counts
from bach.slides import Slide
from bach.tissue import MAP_MPP, find_tissue
from bach.toy import painter

# Red, green, blue of empty glass. The trial data have glass like the first two.
TINGES = {
    "neutral": (243, 243, 243),
    "slightly pink": (242, 240, 243),
    "slightly green": (240, 243, 240),
    "green": (232, 243, 234),
    "yellow": (244, 242, 230),
    "blue": (236, 241, 247),
    "dim": (205, 206, 203),
}
SHARES = (0.002, 0.01, 0.05, 0.2, 0.6, 0.9)
BANDS = {"up to 1%": (0, 0.03), "5% and 20%": (0.03, 0.3), "60% and 90%": (0.3, 1)}
STRENGTHS = (1.0, 0.35)  # of the stain: usual, pale
NOISE = 1.2  # gray levels, of a thumbnail's pixel
SIZE = (400, 300)  # px of the thumbnail, 3.0 x 2.2 mm
FINER = 4  # painted at so many px along a px of the thumbnail
RULES = ("paper", "robust")
SHOWN = (("neutral", 0.01), ("slightly green", 0.01), ("green", 0.6))


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    folders: tuple[str, ...] = option((), "folders of pictures to try both rules on", path=True)
    seeds: int = option(2, "thumbnails for each share of tissue", at_least=1)
    run: str | None = option(
        None,
        "run of make_heatmap.py to clip the class maps of; its slides must be there",
        path=True,
    )
    truth: str | None = option(
        None, "folder of class maps NAME.png, the truth of slides without annotation", path=True
    )
    csv: str | None = option(None, "file for the table of painted slides", path=True)
    tiles_csv: str | None = option(None, "file for the table of the folders' pictures", path=True)
    clip_csv: str | None = option(None, "file for the table of clipped class maps", path=True)
    picture: str | None = option(None, "file for a picture of painted slides", path=True)
    quick: bool = option(False, "one thumbnail for two shares")


class Piece(NamedTuple):
    """Painted tissue on a thumbnail.

    Attributes:
        light: Share of the light that comes through, float `(rows, cols, 3)`.
        truth: Where the piece lies, bool `(rows, cols)`.
    """

    light: np.ndarray
    truth: np.ndarray


def main(argv: list[str] | None = None) -> None:
    args = parse(Options, argv, __doc__)
    shares, seeds = ((0.01, 0.2), 1) if args.quick else (SHARES, args.seeds)
    pieces = {
        (share, seed): paint_piece(np.random.default_rng(100 * seed + index), share)
        for seed in range(seeds)
        for index, share in enumerate(shares)
    }
    table = summarise(measure(pieces))
    show(table, args.csv)
    if args.folders:
        show(of_folders(args.folders), args.tiles_csv)
    if args.run is not None:
        show(clipped(Path(args.run), args.truth), args.clip_csv)
    if args.picture is not None:
        write_png(args.picture, draw(pieces))
    worst = {
        f"{rule}_{what}": float(pick(table[f"{rule}_{what}"].str.rstrip("%").astype(float))) / 100
        for rule in RULES
        for what, pick in (("found", min), ("glass", max))
    }
    print(to_json(worst))


def show(table: pd.DataFrame, file: str | None) -> None:
    """Print a table, and write it if there is a file for it."""
    print(markdown(list(table.columns), table.to_numpy().tolist()), end="\n\n")
    if file is not None:
        write_csv(table, file)


def paint_piece(rng: Generator, share: float) -> Piece:
    """Paint a piece of tissue of one class that covers a share of the thumbnail."""
    cols, rows = SIZE[0] * FINER, SIZE[1] * FINER
    scale = MAP_MPP / FINER
    outline = painter.blob(rng, 1.0, 0.16, 240)
    outline *= (1, rows / cols) if share > 0.3 else (1, 1)
    area = cv2.contourArea(outline.astype(np.float32))
    outline = outline * np.sqrt(share * rows * cols / area) + (cols / 2, rows / 2)
    soft: np.ndarray = np.zeros((rows, cols), np.float32)
    cv2.fillPoly(soft, [np.round(outline).astype(np.int32)], 1)
    soft = cv2.GaussianBlur(soft, (0, 0), 25 / scale)
    ragged = painter.smooth_noise(rng, cols, rows, 30 / scale, 30 / scale)
    tissue = np.clip((soft - 0.5 + 0.12 * ragged) * 6 + 0.5, 0, 1).astype(np.float32)
    look = painter.make_look(rng)._replace(glass=(255.0, 255.0, 255.0), noise=0.0)
    label = int(rng.integers(len(CLASSES)))
    rgb = painter.paint_tissue(rng, label, cols, rows, scale, look, tissue)
    light, truth = (
        cv2.resize(part, SIZE, interpolation=cv2.INTER_AREA)
        for part in (rgb.astype(np.float32) / 255, tissue)
    )
    return Piece(light, truth >= 0.5)


def on_glass(piece: Piece, tinge: str, strength: float) -> np.ndarray:
    """A piece on glass of a tinge, with light that falls off and noise: uint8 RGB."""
    rows, cols = piece.truth.shape
    rgb = np.clip(piece.light, 1e-3, 1) ** strength * np.array(TINGES[tinge])
    fall = np.linspace(-2, 2, rows)[:, None] + np.linspace(-1.5, 1.5, cols)[None, :]
    noise = np.random.default_rng(0).normal(0, NOISE, rgb.shape)
    return np.clip(np.rint(rgb + fall[..., None] + noise), 0, 255).astype(np.uint8)


def measure(pieces: dict[tuple[float, int], Piece]) -> pd.DataFrame:
    """A row for every thumbnail: what either rule finds of it."""
    rows = []
    for (share, _), tinge, strength in itertools.product(pieces, TINGES, STRENGTHS):
        piece = pieces[share, _]
        row = {"tinge": tinge, "share": share}
        for rule in RULES:
            mask, doubts = find_tissue(on_glass(piece, tinge, strength), rule)
            row[f"{rule}_found"] = mask[piece.truth].mean()
            row[f"{rule}_glass"] = mask[~piece.truth].mean()
            row[f"{rule}_warned"] = float(bool(doubts))
        rows.append(row)
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Means over thumbnails of about as much tissue, as per cent."""
    rows = []
    for band, (low, high) in BANDS.items():
        for tinge in TINGES:
            chosen = table[(table["tinge"] == tinge) & table["share"].between(low, high)]
            if len(chosen):
                means = chosen.drop(columns=["tinge", "share"]).mean()
                shown = {name: f"{value:.1%}" for name, value in means.items()}
                rows.append({"tissue": band, "glass": tinge, **shown})
    result = pd.DataFrame(rows)
    return result.drop(columns="robust_warned")  # it knows of no slide that it cannot work on


def of_folders(folders: tuple[str, ...]) -> pd.DataFrame:
    """The share of tissue that the rules find in pictures of one's own."""
    rows = []
    for path in sorted(path for folder in folders for path in Path(folder).glob("*.png")):
        rgb = read_rgb(path, "Leave it out.")
        found = {rule: find_tissue(rgb, rule) for rule in RULES}
        no_pen = {rule: find_tissue(rgb, rule, exclude_pen=True)[0] for rule in RULES}
        rows.append(
            {"picture": path.stem}
            | {rule: f"{found[rule][0].mean():.1%}" for rule in RULES}
            | {f"{rule}_exclude_pen": f"{no_pen[rule].mean():.1%}" for rule in RULES}
            | {"paper_says": "; ".join(found["paper"][1]).split(":")[0]}
        )
    return pd.DataFrame(rows)


def clipped(run: Path, truth: str | None) -> pd.DataFrame:
    """Part B score of the class maps of a run, whole and clipped to the tissue of either rule."""
    scores = []
    for name, record in read_slides(run).items():
        own = run / "truth" / f"{name}.png"
        file = own if own.exists() or truth is None else Path(truth) / own.name
        if not file.exists():
            continue
        true, class_map = (read_class_map(path) for path in (file, run / f"class_maps/{name}.png"))
        with Slide(record.path, mpp=record.mpp) as slide:
            thumbnail = slide.thumbnail(record.downsample * record.mpp)
        masks = [np.ones(true.shape, bool), *(find_tissue(thumbnail, rule)[0] for rule in RULES)]
        maps = [np.where(mask, class_map, np.uint8(NORMAL)) for mask in masks]
        scores.append([score_from_counts(joint_counts(one, true)) for one in maps])
    means = np.mean(scores, axis=0)
    names = ("as they are", *(f"Normal off tissue, {rule} rule" for rule in RULES))
    rows = [(what, f"{mean:.4f}", len(scores)) for what, mean in zip(names, means, strict=True)]
    return pd.DataFrame(rows, columns=["class_maps", "score", "slides"])


def draw(pieces: dict[tuple[float, int], Piece]) -> np.ndarray:
    """Painted slides with the outline of the tissue, and with what either rule takes."""
    rows = []
    for tinge, share in SHOWN:
        piece = pieces.get((share, 0)) or next(iter(pieces.values()))
        rgb = on_glass(piece, tinge, 1.0)
        truth = rgb.copy()
        lines, _ = cv2.findContours(piece.truth.astype(np.uint8), cv2.RETR_LIST, 2)
        cv2.drawContours(truth, lines, -1, (0, 90, 200), 1)
        parts = [_titled(truth, f"{tinge} glass, {share:.0%} tissue")]
        for rule in RULES:
            mask, _ = find_tissue(rgb, rule)
            seen = rgb.copy()
            seen[mask] = (0.35 * seen[mask] + 0.65 * np.array((230, 120, 0))).astype(np.uint8)
            found, glass = mask[piece.truth].mean(), mask[~piece.truth].mean()
            parts.append(_titled(seen, f"{rule}: {found:.0%} found, {glass:.1%} of the glass"))
        rows.append(np.concatenate(parts, axis=1))
    return np.concatenate(rows)


def _titled(rgb: np.ndarray, text: str) -> np.ndarray:
    small = cv2.resize(rgb, (256, 192), interpolation=cv2.INTER_AREA)
    framed = cv2.copyMakeBorder(small, 20, 6, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    write(framed, text, (6, 2), 12)
    return framed


if __name__ == "__main__":
    exit_with(main)
