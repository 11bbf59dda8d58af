"""Write what is sent to the challenge, and check it before it is sent.

    python -m bach.submission part-a --data-dir data/BACH --model-dir runs/part_a \\
        --out submissions/part_a.csv
    python -m bach.submission part-b --run-dir runs/heatmaps --out submissions/part_b.zip
    python -m bach.submission check part-a submissions/part_a.csv
    python -m bach.submission template > template.json

Reads:   the models of a training run and the test photos, or a predictions table;
         the class maps of a heatmap run
Writes:  the submission, for Part A also <out>_predictions.csv (image_id, predicted,
         prob_normal ...) for scoring. An --out that ends in .zip, or --zip, makes a
         flat archive.
Time:    Part A is that of 1,400 patches for each model; all else takes seconds

Part A has two dialects: "2018", rows `test0.tif,Benign` without header, and
"probabilities", rows `0,2,0.1,0.7,0.1,0.1` under the header
`case,class,P(Normal),P(Benign),P(In Situ),P(Invasive)` with classes 1..4.

Part B follows a template, since names, size and pixel values that the server wants
are not known. It is JSON with the keys name (with {slide}), mode (L, gray, or P,
palette), values (pixel values of Normal, Benign, InSitu, Invasive), downsample
(level-0 px per px of the map, or null) and size ([width, height], or null). The
default keeps the class maps as they are: {slide}.png, 8-bit gray, values 0..3.

A written submission is always checked; one with faults is not left behind. `check`
prints one line a fault and then their number; its exit code is 0 if there is none,
1 if there are some and 2 if there was nothing to check.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from bach import calibration, data
from bach.classes import CLASSES, COLORS, PROB_COLUMNS
from bach.core.errors import InputError, exit_with
from bach.core.files import atomic_path
from bach.core.log import log, step
from bach.core.tables import image_key
from bach.labels import read_class_map, same_proportions
from bach.slides import Slide
from bach.validation import (
    DIALECTS,
    HEADER,
    SUM_TOLERANCE,
    TEMPLATE,
    TEST_IDS,
    Size,
    complete_template,
    faults_part_a,
    faults_part_b,
    map_size,
    part_a_name,
    read_template,
)

_ID_COLUMNS = ("image_id", "image", "id", "case", "file", "filename", "name", "slide")
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can hold


# Writing


def write_part_a(
    predictions: pd.DataFrame,
    path: str | os.PathLike,
    dialect: str = "2018",
    ids: Iterable[str] = TEST_IDS,
    store: bool = True,
) -> None:
    """Write a Part A submission and check it.

    Args:
        predictions: Table with `image_id` (without ending) and the four `prob_`
            columns, in any order of rows; sorted naturally in the file.
        path: File to write, `.csv`, or `.zip` for an archive of it.
        dialect: See `faults_part_a`.
        ids: Ids of the images that must be in it.
        store: Also write `<stem>_predictions.csv` beside: `image_id, predicted`
            and the `prob_` columns.

    Raises:
        InputError: If the submission has faults, all of which are named; then
            nothing is written and what was there stays as it was.
    """
    path = Path(path)
    _check_part_a_path(path)
    table = _checked_predictions(predictions)
    text = part_a_text(table, dialect)
    with contextlib.ExitStack() as files:
        temporary = files.enter_context(atomic_path(path))
        if store:
            beside = files.enter_context(atomic_path(predictions_path(path)))
            table.to_csv(beside, index=False)
        if path.suffix == ".zip":
            _write_zip(temporary, {f"{path.stem}.csv": text.encode()})
        else:
            temporary.write_bytes(text.encode())
        _refuse(faults_part_a(temporary, dialect, ids), path)


def _check_part_a_path(path: Path) -> None:
    if path.suffix not in (".csv", ".zip"):
        raise InputError(f"A Part A submission must end in .csv or .zip.\nReceived: --out={path}.")


def predictions_path(path: str | os.PathLike) -> Path:
    """Where `write_part_a` puts the predictions of the submission at `path`."""
    return Path(path).with_name(f"{Path(path).stem}_predictions.csv")


def part_a_text(predictions: pd.DataFrame, dialect: str) -> str:
    """Lay predictions out in a dialect; the class is that of the largest probability."""
    lines = [",".join(HEADER)] if dialect == "probabilities" else []
    probs = predictions[list(PROB_COLUMNS)].to_numpy(float)
    for image_id, row in zip(predictions["image_id"], probs, strict=True):
        name, label = part_a_name(image_id, dialect), int(row.argmax())
        if dialect == "2018":
            lines.append(f"{name},{CLASSES[label]}")
        else:
            lines.append(",".join([name, str(label + 1), *(f"{prob:.6f}" for prob in row)]))
    return "\n".join(lines) + "\n"


def _checked_predictions(predictions: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in ("image_id", *PROB_COLUMNS) if name not in predictions]
    if missing:
        raise InputError(
            "Predictions must have the columns image_id and prob_normal ... prob_invasive.\n"
            f"Received: {', '.join(map(str, predictions.columns))} "
            f"(missing: {', '.join(missing)})."
        )
    table = predictions[["image_id", *PROB_COLUMNS]].copy()
    table["image_id"] = [_stem(image_id) for image_id in table["image_id"]]
    probs = table[list(PROB_COLUMNS)].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    table[list(PROB_COLUMNS)] = probs
    sums = probs.sum(axis=1)
    lines = []
    for image_id, row, total in zip(table["image_id"], probs, sums, strict=True):
        if not np.isfinite(row).all():
            lines.append(f"{image_id}: a probability is not a number")
        elif row.min() < 0:
            lines.append(f"{image_id}: a probability is negative")
        elif abs(total - 1) > SUM_TOLERANCE:
            lines.append(f"{image_id}: probabilities sum to {total:.6g}, must be 1")
    double = table.loc[table["image_id"].duplicated(), "image_id"].unique()
    lines += [f"{image_id}: more than one row" for image_id in double]
    if lines:
        raise InputError(
            "Predictions must be four probabilities for each image.\n"
            f"Received {_faults(len(lines))}:\n  " + "\n  ".join(lines)
        )
    table.insert(1, "predicted", probs.argmax(axis=1))
    keys = [data.natural_key(image_id) for image_id in table["image_id"]]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return table.iloc[order].reset_index(drop=True)


def write_part_b(
    class_maps: Mapping[str, str | os.PathLike],
    out: str | os.PathLike,
    template: Mapping | None = None,
    slides: Mapping[str, Size | None] | None = None,
    allow_uniform: bool = False,
) -> None:
    """Write a Part B submission and check it.

    Args:
        class_maps: PNG of the class map by name of the slide, see
            `bach.labels.read_class_map`.
        out: Folder to make, or a file that ends in `.zip`.
        template: See `complete_template`; resized by nearest neighbour.
        slides: The slides that must be in it, name to (width, height) in level-0
            px, or to None where unknown. By default those of `class_maps`.
        allow_uniform: Let a map pass that is of one class everywhere.

    Raises:
        InputError: If the submission has faults, all of which are named, or `out`
            is a folder that is not empty; then nothing is written.
    """
    out = Path(out)
    template = complete_template(template)
    slides = dict.fromkeys(class_maps) if slides is None else dict(slides)
    zipped = out.suffix.lower() == ".zip"
    if out.exists() and not zipped and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(
            f"A submission folder must be new.\nReceived: --out={out}, which is there already.\n"
            "Name another one, or delete it first."
        )
    files, faults, broken = {}, [], set()
    for slide, path in class_maps.items():
        try:
            class_map = read_class_map(path)
        except InputError as error:
            faults.append(f"{slide}: {' '.join(str(error).splitlines())}")
            broken.add(slide)
            continue
        size, l0_size = class_map.shape[::-1], slides.get(slide)
        # Resizing would hide a map that does not show the whole slide.
        if l0_size is not None and not same_proportions(size, l0_size):
            faults.append(
                f"{slide}: class map of {size[0]}x{size[1]} px is not in proportion to the "
                f"slide, {l0_size[0]}x{l0_size[1]}"
            )
            broken.add(slide)
            continue
        name = template["name"].replace("{slide}", slide)
        if slide in slides:
            size = map_size(template, size, l0_size)
        files[name] = encode_map(class_map, template, size)
    wanted = {slide: size for slide, size in slides.items() if slide not in broken}
    with atomic_path(out) if zipped else _new_folder(out) as temporary:
        if zipped:
            _write_zip(temporary, files)
        else:
            for name, content in files.items():
                (temporary / name).write_bytes(content)
        faults += faults_part_b(temporary, template, wanted, allow_uniform)
        _refuse(faults, out)


def encode_map(class_map: np.ndarray, template: Mapping, size: Size) -> bytes:
    """Encode a class map as PNG.

    Args:
        class_map: uint8 0..3, (height, width).
        template: A complete template.
        size: (width, height) of the PNG; reached by nearest neighbour.

    Returns:
        The bytes of the file.
    """
    if class_map.shape[::-1] != tuple(size):
        # INTER_NEAREST_EXACT samples at pixel centres; INTER_NEAREST shifts the map.
        class_map = cv2.resize(class_map, tuple(size), interpolation=cv2.INTER_NEAREST_EXACT)
    image = Image.fromarray(np.array(template["values"], np.uint8)[class_map])
    if template["mode"] == "P":
        palette = np.zeros((256, 3), np.uint8)
        palette[template["values"]] = COLORS
        image.putpalette(palette.ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _refuse(faults: list[str], path: Path) -> None:
    if faults:
        raise InputError(
            f"The submission must be without faults; {path} was not written.\n"
            f"Received {_faults(len(faults))}:\n  " + "\n  ".join(faults)
        )


def _faults(count: int) -> str:
    return f"{count} fault{'' if count == 1 else 's'}"


def _write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """A flat archive that is the same bytes for the same files, whenever made."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(files, key=data.natural_key):
            info = zipfile.ZipInfo(name, _ZIP_TIME)
            info.create_system = 3  # Unix also where it is not, for the same bytes
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, files[name])


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """As `atomic_path`, for a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)  # mkdtemp makes folders only their owner can read
        if path.is_dir():
            path.rmdir()  # empty; Windows does not rename onto it
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# Reading


def read_ids(path: str | os.PathLike) -> dict[str, Size | None]:
    """Read the ids that a submission must hold.

    Args:
        path: Text file with an id a line, or a CSV table with a header whose
            first column holds them (`image_id`); with the columns `width` and
            `height`, also the sizes of slides in level-0 px. Endings such as
            .tif are left off.

    Returns:
        Size by id, in the order of the file; None where it is not given.

    Raises:
        InputError: If the file cannot be read, is empty or names an id twice.
    """
    remedy = "Write one id a line, or a table with the columns image_id,width,height."
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--ids must be a readable text file.\nReceived: --ids={path} ({error}).\n{remedy}"
        ) from error
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
    header = []
    if rows and rows[0][0].lower() in _ID_COLUMNS:
        header = [cell.lower() for cell in rows.pop(0)]
    ids = [_stem(row[0]) for row in rows]
    double = [name for name, count in Counter(ids).items() if count > 1]
    if not ids or double:
        raise InputError(
            "--ids must name every image once.\n"
            f"Received: --ids={path} with {'twice: ' + ', '.join(double) if double else 'no id'}."
            f"\n{remedy}"
        )
    if "width" not in header or "height" not in header:
        return dict.fromkeys(ids)
    columns = header.index("width"), header.index("height")
    try:
        sizes = [tuple(int(row[column]) for column in columns) for row in rows]
    except (ValueError, IndexError) as error:
        raise InputError(
            f"Width and height must be whole numbers.\nReceived: --ids={path} ({error}).\n{remedy}"
        ) from error
    return dict(zip(ids, sizes, strict=True))


def read_predictions(path: str | os.PathLike) -> pd.DataFrame:
    """Read a predictions table: `image_id` and the four `prob_` columns.

    Raises:
        InputError: If the file cannot be read or a column is missing.
    """
    try:
        return pd.read_csv(path, dtype={"image_id": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--predictions must be a readable CSV file.\n"
            f"Received: --predictions={path} ({' '.join(str(error).split())})."
        ) from error


def read_heatmap_run(run_dir: str | os.PathLike) -> tuple[dict[str, Path], dict[str, Size]]:
    """Find the class maps of a heatmap run that make up a submission.

    Args:
        run_dir: Run folder of `make_heatmap.py`.

    Returns:
        PNG by slide, and (width, height) in level-0 px by slide: those with part
        "B-test" if there are any, else all. A slide without a map is only in the
        second.

    Raises:
        InputError: If there is no class map, or a slide's JSON is missing or
            cannot be read.
    """
    run_dir = Path(run_dir)
    class_maps = {path.stem: path for path in _listed(run_dir / "class_maps", ".png")}
    if not class_maps:
        raise InputError(
            f"There must be class maps in {run_dir / 'class_maps'}.\n"
            f"Received: --run-dir={run_dir}.\nMake them first: `python make_heatmap.py --help`."
        )
    slides, parts, faults = {}, {}, []
    for path in _listed(run_dir / "slides", ".json"):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            slides[path.stem] = (int(values["width"]), int(values["height"]))
            parts[path.stem] = values.get("part")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            faults.append(f"{path.name}: {type(error).__name__}: {error}")
    unread = [slide for slide in class_maps if not (run_dir / "slides" / f"{slide}.json").exists()]
    faults += [f"{slide}.json: missing" for slide in unread]
    if faults:
        raise InputError(
            f"Every slide must have its size in {run_dir / 'slides'}.\nReceived:\n  "
            + "\n  ".join(faults)
            + "\nFinish the run with --resume."
        )
    if not (run_dir / "metrics.json").exists():
        log.warning("the run %s is not finished", run_dir)
    test = [slide for slide, part in parts.items() if part == "B-test"]
    chosen = sorted(test or slides, key=data.natural_key)
    log.info(
        "%s: %d of %d slides (%s)",
        run_dir, len(chosen), len(slides), "test slides" if test else "no test slides: all",
    )  # fmt: skip
    return (
        {slide: class_maps[slide] for slide in chosen if slide in class_maps},
        {slide: slides[slide] for slide in chosen},
    )


def _listed(folder: Path, suffix: str) -> list[Path]:
    if not folder.is_dir():
        return []
    paths = [path for path in folder.glob(f"*{suffix}") if not path.name.startswith(".")]
    return sorted(paths, key=data.natural_key)


def _stem(name: object) -> str:
    """An image id without folder and ending, its case as it is."""
    base = str(name).strip().replace("\\", "/").rsplit("/", 1)[-1]
    return base[: len(image_key(base))]


def _test_slides(data_dir: str) -> dict[str, Size]:
    sizes = {}
    for row in data.list_images(data_dir, "B-test").itertuples():
        # Only the size is asked for, which is not to fail for want of a scale.
        with Slide(row.path, mpp=1.0) as slide:
            sizes[row.image_id] = (slide.width, slide.height)
    return sizes


def _test_photos(data_dir: str) -> list[str]:
    ids = data.list_images(data_dir, "A-test")["image_id"].tolist()
    if len(ids) != len(TEST_IDS):
        log.warning("%d test photos; the challenge has %d", len(ids), len(TEST_IDS))
    return ids


# The tool


def predict_part_a(
    data_dir: str, model_dir: str, tta: bool = False, calibrated: bool = False
) -> pd.DataFrame:
    """Predict the test photos with the mean of all models of a training run.

    Args:
        data_dir: Folder of the data set.
        model_dir: Run folder of `train_part_a.py`.
        tta: Mean over the eight orientations too.
        calibrated: Scale by the temperature that `bach.calibration` stored in the run
            folder; the predicted classes stay the same.
    """
    images = data.list_images(data_dir, "A-test")
    temperature = calibration.stored_temperature(model_dir) if calibrated else None
    # Here and not above: checking and --help need no framework.
    from bach.network import backend, predict

    backend.start()
    models = predict.load_models(model_dir, whole_photos=True)
    with step("predictions") as notes:
        table = predict.predict_photos(list(models.values()), images, tta)
        if temperature is not None:
            columns = list(PROB_COLUMNS)
            table[columns] = calibration.apply_temperature(table[columns].to_numpy(), temperature)
            notes.append(f"temperature {temperature:.3f}")
        notes.append(f"{len(table)} photos by {len(models)} models")
    return table


def _add_ids(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--data-dir", help=f"folder of the challenge data; expect its {what}")
    parser.add_argument("--ids", help="file of the ids to expect instead, one a line")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.submission",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    part_a = commands.add_parser("part-a", help="write the answer for the test photos")
    _add_ids(part_a, "test photos (to predict: data/BACH)")
    part_a.add_argument("--model-dir", default="runs/part_a", help="run folder of the models")
    part_a.add_argument("--tta", action="store_true", help="mean over the eight orientations")
    part_a.add_argument(
        "--calibrated", action="store_true",
        help="scale by the temperature that python -m bach.calibration stored in --model-dir",
    )  # fmt: skip
    part_a.add_argument("--predictions", help="CSV of predictions to use instead of models")
    part_a.add_argument("--out", required=True, help=".csv or .zip file to write")
    part_b = commands.add_parser("part-b", help="write the class maps of the test slides")
    _add_ids(part_b, "test slides")
    part_b.add_argument("--run-dir", default="runs/heatmaps", help="run folder of the class maps")
    part_b.add_argument("--out", required=True, help="folder to make, or .zip file to write")
    check = commands.add_parser("check", help="name every fault of a submission")
    checks = check.add_subparsers(dest="part", required=True)
    check_a = checks.add_parser("part-a", help="check a CSV file or an archive of one")
    check_a.add_argument("file", help=".csv or .zip file")
    _add_ids(check_a, "test photos (else test0 ... test99)")
    check_b = checks.add_parser("part-b", help="check a folder or an archive of maps")
    check_b.add_argument("file", help="folder or .zip file")
    _add_ids(check_b, "test slides")
    check_b.add_argument("--run-dir", help="heatmap run whose slides to expect instead")
    for command in (part_a, check_a):
        command.add_argument(
            "--dialect",
            choices=DIALECTS,
            default=DIALECTS[0],
            help="rows `test0.tif,Benign`, or `case,class,P(Normal)...` with classes 1..4",
        )
    for command in (part_b, check_b):
        command.add_argument("--template", help="JSON file as printed by the command template")
        command.add_argument(
            "--allow-uniform", action="store_true", help="let maps of a single class pass"
        )
    for command in (part_a, part_b):
        command.add_argument("--zip", action="store_true", help="write an archive, --out as .zip")
    commands.add_parser("template", help="print the default Part B template")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.command == "template":
        print(json.dumps(TEMPLATE, indent=2))
        return 0
    if args.command == "check":
        faults = _check_part_a(args) if args.part == "part-a" else _check_part_b(args)
        print("\n".join([*faults, _faults(len(faults))]))
        return 1 if faults else 0
    out = Path(args.out)
    if args.zip and out.suffix != ".zip":
        out = out.with_suffix(".zip") if out.suffix == ".csv" else Path(f"{out}.zip")
    if args.command == "part-a":
        _write_part_a(args, out)
    else:
        _write_part_b(args, out)
    print(out)
    return 0


def _expected_photos(args: argparse.Namespace) -> Sequence[str]:
    if args.ids is not None:
        return list(read_ids(args.ids))
    return TEST_IDS if args.data_dir is None else _test_photos(args.data_dir)


def _write_part_a(args: argparse.Namespace, out: Path) -> None:
    if args.predictions is None:
        args.data_dir = args.data_dir or "data/BACH"
    elif Path(args.predictions).resolve() == out.resolve():
        raise InputError(
            "The submission must not replace the predictions.\n"
            f"Received: --predictions={args.predictions} --out={args.out}.\nName another --out."
        )
    _check_part_a_path(out)
    ids = _expected_photos(args)
    if args.predictions is None:
        table = predict_part_a(args.data_dir, args.model_dir, args.tta, args.calibrated)
    else:
        table = read_predictions(args.predictions)
    given = args.predictions and Path(args.predictions).resolve()
    replaced = out.exists()
    with step(f"part a -> {out}") as notes:
        write_part_a(table, out, args.dialect, ids, store=predictions_path(out).resolve() != given)
        notes.append(
            f"{len(table)} images, dialect {args.dialect}" + ", old file replaced" * replaced
        )


def _write_part_b(args: argparse.Namespace, out: Path) -> None:
    template = read_template(args.template)
    class_maps, slides = read_heatmap_run(args.run_dir)
    if args.ids is not None:
        slides = {slide: size or slides.get(slide) for slide, size in read_ids(args.ids).items()}
    elif args.data_dir is not None:
        slides = _test_slides(args.data_dir)
    replaced = out.is_file()
    with step(f"part b -> {out}") as notes:
        write_part_b(class_maps, out, template, slides, args.allow_uniform)
        notes.append(f"{len(class_maps)} class maps" + ", old file replaced" * replaced)


def _check_part_a(args: argparse.Namespace) -> list[str]:
    return faults_part_a(args.file, args.dialect, _expected_photos(args))


def _check_part_b(args: argparse.Namespace) -> list[str]:
    slides = None
    if args.ids is not None:
        slides = read_ids(args.ids)
    elif args.data_dir is not None:
        slides = _test_slides(args.data_dir)
    elif args.run_dir is not None:
        slides = read_heatmap_run(args.run_dir)[1]
    else:
        log.warning(
            "missing and extra maps and proportions are not checked; "
            "name --data-dir, --run-dir or --ids"
        )
    return faults_part_b(args.file, read_template(args.template), slides, args.allow_uniform)


if __name__ == "__main__":
    exit_with(main)
