"""Draw the figures of the documentation.

    python docs/figures.py            writes docs/*.svg and, of the runs of `make demo`, pictures
    python docs/figures.py --png DIR  writes all of them as PNG, to look at

Reads    docs/results/audit_*.csv, the imports of bach/; runs/demo, if there is one: trial data
         are ours, the slide in docs/slides is CC0, and no other pixels are shown
"""

import argparse
import ast
import contextlib
import io
import sys
import tempfile
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bach import calibration, heatmap  # noqa: E402
from bach.charts import reliability_figure  # noqa: E402
from bach.core.pictures import read_rgb  # noqa: E402
from bach.core.tables import read_table  # noqa: E402
from bach.honest.records import slide_file  # noqa: E402
from bach.mining import MIN_TISSUE_HARD, draw_grid  # noqa: E402
from bach.patches import read_patches  # noqa: E402

RESULTS = ROOT / "docs" / "results"

# Okabe and Ito 2008: told apart by colour-blind readers, and in grey.
SAFE, LEAKY, TRUTH = "#0072B2", "#D55E00", "#555555"

STYLE = {
    "font.family": "sans-serif",
    "font.size": 11,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bach",  # the same picture is the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
}


# Safe against leaky


# What is told to the cheap model, and the tables of its audits.
AUDITS = {
    "trees": ("audit_photos", "audit_toy"),
    "EfficientNet-Lite0": ("audit_photos_lite0", "audit_toy_lite0"),
}


def safe_against_leaky(figure) -> None:
    """Accuracies under a patient-safe and under a leaky split, of photos and of trial data."""
    figure.set_layout_engine("constrained", w_pad=0.12)
    real, painted = figure.subplots(1, 2, sharey=True)
    splits = [("patient-safe", SAFE, "o"), ("leaky (random)", LEAKY, "D")]
    for model, tables in enumerate(AUDITS.values()):
        photos = read_table(RESULTS / f"{tables[0]}.csv").set_index("split").to_dict("index")
        toy = read_table(RESULTS / f"{tables[1]}.csv").set_index("estimate").to_dict("index")
        hidden = float(toy["hidden test"]["accuracy"])
        for place, (name, colour, mark) in enumerate(splits, start=2 * model):
            row = photos[name]
            low, high = float(row["accuracy_low"]), float(row["accuracy_high"])
            _interval(real, place, float(row["accuracy"]), low, high, colour, mark)
            # What is known here is the interval of the difference from the hidden test.
            row = toy[name]
            low, high = (hidden + float(row[f"minus_hidden_test_{end}"]) for end in ("low", "high"))
            _interval(painted, place, float(row["accuracy"]), low, high, colour, mark)
        ends = [2 * model - 0.45, 2 * model + 1.3]
        painted.plot([hidden] * 2, ends, color=TRUTH, linestyle="--", linewidth=1.5, zorder=0)
        words = f"hidden test\n{hidden:.3f}"
        painted.text(hidden - 0.05, ends[1], words, color=TRUTH, ha="right", va="bottom")
    real.set_title("Real photos: same images, two splits", loc="left", fontsize=11.5)
    painted.set_title("Trial data: the hidden test tells", loc="left", fontsize=11.5)
    names = [f"{name},\n{split}" for name in AUDITS for split in ("patient-safe", "leaky")]
    for axes in (real, painted):
        axes.set_xlim(0.38, 0.9)
        axes.set_ylim(3.6, -0.7)
        axes.set_xlabel("four-class accuracy")
        axes.set_yticks(range(4), names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color="#dddddd", zorder=-1)
        axes.set_axisbelow(True)


def _interval(axes, place, value, low, high, colour, mark) -> None:
    axes.plot([low, high], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
    axes.plot(value, place, mark, color=colour, markersize=9)
    # Over a patch of white, for the line of the hidden test may run there.
    patch = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    words = {"color": colour, "ha": "center", "va": "bottom", "bbox": patch}
    axes.text(value, place - 0.2, f"{value:.3f}", **words)


# Structure


# A room of the picture: where its box stands (left, bottom, width, height) and its colour.
# Whatever stands in no room of its own is on the floor that `room_of` says.
ROOMS = {
    "scripts": (0.0, 6.85, 10.0, 0.7, "#f3e6d0"),
    "commands": (0.0, 5.6, 10.0, 0.8, "#f3e6d0"),
    "upper floor": (0.0, 4.4, 7.2, 0.8, "#dbe9f4"),
    "toy": (7.6, 4.4, 2.4, 0.8, "#eeeeee"),
    "network": (0.0, 2.8, 6.6, 1.2, "#f7d9c8"),
    "points": (6.8, 2.8, 3.2, 1.2, "#d5ecdf"),
    "honest": (0.0, 1.5, 10.0, 0.8, "#d5ecdf"),
    "lower floor": (0.0, 0.3, 10.0, 0.7, "#dbe9f4"),
    "core": (0.0, -0.9, 10.0, 0.7, "#eeeeee"),
}
TITLES = {
    "scripts": "The four scripts",
    "commands": "Commands: python -m bach.NAME",
    "upper floor": "Method, upper floor",
    "network": "bach/network: all that loads Keras",
    "toy": "bach/toy",
    "points": "bach/points, and nuclei",
    "honest": "bach/honest",
    "lower floor": "Method, lower floor",
    "core": "bach/core: imports nothing of ours",
}
SCRIPTS = ("train_part_a", "mine_hard_examples", "train_final", "make_heatmap")
UPPER_FLOOR = {"engine", "heatmap", "mining", "slide_by_slide", "two_stages"}
LOWER_FLOOR = {
    *(
        "annotations",
        "brightfield",
        "charts",
        "classes",
        "data",
        "download",
        "glass",
        "labels",
        "patches",
    ),
    *("scores", "slides", "tasks", "tissue"),
}


def room_of(module: str) -> tuple[str, str]:
    """The room of a module (`bach.network.dense`, `make_heatmap`), and its name in it."""
    package, *names = module.split(".")
    if package != "bach":
        return "scripts", f"{module}.py"
    if names[0] in ROOMS:
        return names[0], ".".join(names[1:])
    floor = {"upper floor": UPPER_FLOOR, "points": {"nuclei"}, "lower floor": LOWER_FLOOR}
    return next((room for room, held in floor.items() if names[0] in held), "commands"), names[0]


def rooms_and_arrows() -> tuple[dict[str, list[str]], set[tuple[str, str]]]:
    """What stands in every room, and which room imports from which, function bodies too.

    Returns:
        {room: modules} and {(room, room it imports from)}; of the latter only those that do
        not follow from others.
    """
    import grimp

    graph = grimp.build_graph("bach", cache_dir=None)
    imports = {
        name: graph.find_modules_directly_imported_by(name)
        for name in sorted(graph.modules)
        if not graph.find_children(name)
    }
    for name in SCRIPTS:
        tree = ast.walk(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8")))
        found = {node.module for node in tree if isinstance(node, ast.ImportFrom) and node.module}
        imports[name] = {module for module in found if module.startswith("bach.")}
    rooms: dict[str, list[str]] = {room: [] for room in ROOMS}
    arrows = set()
    for module, imported in imports.items():
        room, name = room_of(module)
        if name not in ("", "__main__", *rooms[room]):
            rooms[room].append(name)
        # A room's own __init__ holds nothing: what stands in it is named.
        arrows |= {(room, room_of(other)[0]) for other in imported if other != "bach"}
    arrows = {(above, below) for above, below in arrows if above != below}
    implied = {
        (above, below)
        for above, below in arrows
        if any((above, between) in arrows and _leads(arrows, between, below) for between in ROOMS)
    }
    return rooms, arrows - implied


def _leads(arrows: set[tuple[str, str]], start: str, end: str) -> bool:
    return (start, end) in arrows or any(
        _leads(arrows, below, end) for above, below in arrows if above == start
    )


def structure(figure) -> None:
    """The rooms with their modules, and who imports from whom."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-0.12, 10.12)
    axes.set_ylim(-1.0, 7.65)
    rooms, arrows = rooms_and_arrows()
    for room, (left, bottom, width, height, colour) in ROOMS.items():
        box = FancyBboxPatch(
            (left, bottom),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=colour,
            edgecolor="#666666",
            linewidth=0.8,
        )
        axes.add_patch(box)
        lines = textwrap.wrap(", ".join(rooms[room]), width=round(width * 12.5))
        axes.text(left + 0.1, bottom + height - 0.12, TITLES[room], weight="bold", va="top")
        place = left + 0.1, bottom + height - 0.38
        axes.text(*place, "\n".join(lines), va="top", fontsize=9.5, linespacing=1.25)
    for above, below in sorted(arrows):
        arrow = FancyArrowPatch(
            *_ends(ROOMS[above], ROOMS[below]),
            arrowstyle="-|>",
            mutation_scale=13,
            zorder=0.5,
            color="#444444",
            shrinkA=1,
            shrinkB=1,
            gid=f"{above} imports from {below}",
        )
        axes.add_patch(arrow)


def _ends(start: tuple, end: tuple) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where an arrow between two boxes begins and ends: straight down where both are."""
    left, right = max(start[0], end[0]), min(start[0] + start[2], end[0] + end[2])
    middle = (left + right) / 2
    return (middle, start[1]), (middle, end[1] + end[3])


# Pipeline


# A step of the pipeline: its script, what it does, what it reads and what it writes.
STEPS = (
    ("1  train_part_a.py", "one model per fold\nof patients", "photos", "out-of-fold\npredictions"),
    (
        "2  mine_hard_examples.py",
        "patches that step 1\ngets most wrong",
        "slides,\nannotated",
        "hard examples",
    ),
    ("3  train_final.py", "one model per fold\nof slides", "", "models"),
    (
        "4  make_heatmap.py",
        "each slide by models\nthat did not see it",
        "slides",
        "heatmaps, class maps,\nareas, scores",
    ),
)


def pipeline(figure) -> None:
    """The four scripts in a row, what each reads above and what it writes below."""
    from matplotlib.patches import FancyBboxPatch

    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-0.1, 4 * 2.6)
    axes.set_ylim(0, 3.3)
    style = {"boxstyle": "round,pad=0,rounding_size=0.08", "edgecolor": "#666666", "linewidth": 0.8}
    arrow = {
        "arrowstyle": "-|>",
        "color": "#444444",
        "mutation_scale": 13,
        "shrinkA": 1,
        "shrinkB": 1,
    }
    for number, (script, does, reads, writes) in enumerate(STEPS):
        left, middle = 2.6 * number, 2.6 * number + 1.15
        axes.add_patch(FancyBboxPatch((left, 1.2), 2.3, 0.95, facecolor="#dbe9f4", **style))
        axes.text(middle, 1.98, script, weight="bold", ha="center", va="center", fontsize=8.8)
        axes.text(middle, 1.53, does, ha="center", va="center", fontsize=10)
        if reads:
            axes.text(middle, 3.0, reads, ha="center", va="center", fontsize=10, style="italic")
            axes.annotate("", (middle, 2.15), (middle, 2.75), arrowprops=arrow)
        axes.annotate("", (middle, 0.65), (middle, 1.2), arrowprops=arrow)
        axes.text(middle, 0.4, writes, ha="center", va="center", fontsize=10, style="italic")
        if number:
            axes.annotate("", (left, 1.67), (left - 0.3, 1.67), arrowprops=arrow)


# Pictures of runs


SHOWN = "A04"  # the trial slide that is shown


def of_runs(runs: Path, work: Path) -> dict[str, np.ndarray]:
    """The pictures of `make demo`'s runs, as they are drawn now: {name: uint8 RGB}.

    Args:
        runs: Folder of the runs.
        work: An empty folder to work in.
    """
    pictures = {"first_batch.jpg": read_rgb(runs / "final/fold_0/batch.png", "Run the demo.")}
    for name, run, slide in (
        ("demo_overlay.png", "heatmaps", SHOWN),
        ("real_slide.png", "heatmaps_real", "cmu-1-small-region"),
    ):
        with contextlib.redirect_stdout(io.StringIO()):
            words = [str(runs / run), "--rule", "least-cost", "--out", str(work / run)]
            heatmap.main(words)
        pictures[name] = read_rgb(work / run / "overlays" / f"{slide}.png", "Run the demo.")
    source = heatmap.read_source(runs / "heatmaps")
    record = source.slides[SHOWN]
    maps = heatmap.read_maps(source.run, record)[1]
    maps = heatmap.with_background(maps, slide_file(source.run, record))
    patches = read_patches(runs / "hard_examples/slides" / f"{SHOWN}.csv")
    used = patches[patches["tissue"] >= MIN_TISSUE_HARD]
    return pictures | {"mask_and_grid.png": draw_grid(maps, used)}


def reliability(runs: Path):
    """Reliability of the photos' out-of-fold predictions, before and after a temperature."""
    probs, labels, folds = calibration.read_predictions(runs / "part_a")
    scaled, _ = calibration.leave_fold_out(probs, labels, folds)
    tables = {}
    for name, values in (("before", probs), ("after", scaled)):
        error = calibration.expected_calibration_error(values, labels)
        tables[f"{name}: ECE {error:.3f}"] = calibration.reliability(values, labels)
    return reliability_figure(tables)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--png", type=Path, default=None, help="folder for PNG files instead")
    parser.add_argument(
        "--runs",
        type=Path,
        default=ROOT / "runs" / "demo",
        help="folder of the demo's runs (default: runs/demo)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    folder = args.png or ROOT / "docs"
    folder.mkdir(parents=True, exist_ok=True)

    def save(name: str, figure) -> None:
        if args.png is not None:
            figure.savefig(folder / f"{name}.png", dpi=110, facecolor="white")
        else:
            path = folder / f"{name}.svg"
            figure.savefig(path, facecolor="white", metadata={"Date": None})
        print(name)

    with matplotlib.rc_context(STYLE):
        sizes = ((safe_against_leaky, (9.0, 3.8)), (structure, (9.6, 7.6)), (pipeline, (9.6, 3.0)))
        for draw, size in sizes:
            figure = Figure(figsize=size)
            draw(figure)
            save(draw.__name__, figure)
        if not (args.runs / "heatmaps_real" / "metrics.json").exists():
            print(
                f"left as they are: pictures of runs, for there are none in {args.runs}: make demo"
            )
            return
        save("reliability", reliability(args.runs))
    with tempfile.TemporaryDirectory() as work:
        for name, picture in of_runs(args.runs, Path(work)).items():
            Image.fromarray(picture).save(folder / name, optimize=True, quality=88, subsampling=0)
            print(name)


if __name__ == "__main__":
    main()
