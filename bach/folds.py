"""Splits for cross-validation that keep patients whole, and an audit for leaks.

    python -m bach.folds make --images folds/patients.csv --part a --folds 3 --out my_folds.csv
    python -m bach.folds check my_folds.csv --patients folds/patients.csv
    python -m bach.folds audit --data-dir data/BACH --patients folds/patients.csv

`check` takes any table with `image_id` and `fold`; its last line on stdout is
the result as JSON, and its exit code is 1 if a patient stands on both sides. `audit`
measures what a leaky split would have promised, see `bach.honest.audit`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bach import data
from bach.core.errors import InputError, exit_with
from bach.core.files import require_place, to_json
from bach.core.log import log
from bach.core.options import whole
from bach.core.tables import patient_key, write_csv
from bach.core.text import listed
from bach.honest import audit
from bach.honest.features import Describer
from bach.honest.splits import (
    ALWAYS_TRAIN,
    absent_classes,
    check_folds,
    format_counts,
    known_patients,
    leaking_images,
    make_folds,
    read_folds,
    read_image_table,
    read_patients,
    suspects,
    with_patients,
)
from bach.tasks import add_option, task, use


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.folds", description="Make splits that keep patients whole; audit any."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="draw a fold table")
    source = make.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", help="CSV of image_id, label and perhaps patient")
    source.add_argument("--data-dir", help="folder of the challenge data to list instead")
    make.add_argument("--part", choices=("a", "b"), required=True, help="images or slides")
    make.add_argument("--patients", help="CSV of image_id and patient to go by")
    make.add_argument("--folds", type=int, default=3, help="number of folds")
    make.add_argument("--seed", type=whole(0), default=0, help="seed of the draw")
    make.add_argument(
        "--unknown",
        choices=("train", "own"),
        help="images without a patient: always train, or each its own patient "
        "(default: train for part a, own for part b)",
    )
    make.add_argument("--out", required=True, help="CSV file to write")
    add_option(make)
    check = commands.add_parser("check", help="find patients on both sides of a split")
    check.add_argument("folds", help="CSV of image_id and fold")
    check.add_argument("--patients", help="CSV of image_id and patient to go by")
    add_option(check)
    commands.add_parser(
        "audit", help="what a leaky split promises beside what a patient-safe one finds"
    )
    args = parser.parse_args(argv)
    use(args.task)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] == "assume":
        raise InputError(
            "`assume` is a measurement and no step of the method.\nReceived: assume.\n"
            "Run `python benchmarks/assume_patients.py` with the same options."
        )
    if argv and argv[0] == "audit":
        return audit.main(argv[1:], _features_of)
    args = parse_args(argv)
    patients = None if args.patients is None else read_patients(args.patients)
    return _make(args, patients) if args.command == "make" else _check(args, patients)


def _features_of(backbone: str) -> Describer:
    from bach.network.photo_features import pooled_features  # loads Keras

    return pooled_features(backbone)


def _make(args: argparse.Namespace, patients: pd.DataFrame | None) -> int:
    if args.folds < 2:
        raise InputError(
            f"There must be 2 folds or more.\nReceived: --folds={args.folds}.\nAsk for more."
        )
    if args.images is not None:
        table = read_image_table(args.images)
        table["label"] = [_class_name(text) for text in table["label"]]
    else:
        table = data.list_images(args.data_dir, args.part.upper(), all_classes=False)[
            ["image_id", "label", "patient"]
        ]
        table["label"] = ["" if label < 0 else task().classes[label] for label in table["label"]]
    unknown = args.unknown or ("train" if args.part == "a" else "own")
    folds = make_folds(with_patients(table, patients), args.folds, args.seed, unknown)
    check_folds(folds)
    out = Path(args.out)
    require_place(out, "Name another --out.")
    if out.exists() and out.read_bytes() != folds.to_csv(index=False).encode():
        raise InputError(
            f"A fold table is never overwritten by another one.\n"
            f"Received: --out={out}, which holds other folds.\n"
            "Name another file, or delete this one first."
        )
    write_csv(folds, out)
    log.info("folds (-1 is always in training):\n%s", format_counts(folds))
    for line in [*absent_classes(folds), *suspects(folds)]:
        log.warning("%s: %s", out, line)
    print(out)
    return 0


def _class_name(text: str) -> str:
    label = task().parse_label(text)
    return text if label is None else task().classes[label]


def _check(args: argparse.Namespace, patients: pd.DataFrame | None) -> int:
    folds = with_patients(read_folds(args.folds), patients)
    leaking = leaking_images(folds)
    known = folds[known_patients(folds)]
    print(format_counts(folds))
    keys = folds["patient"].map(patient_key)
    for key in sorted(set(keys[leaking.index])):
        rows = folds[keys == key].sort_values("fold")
        parts = [
            f"{'always trained on' if fold == ALWAYS_TRAIN else f'fold {fold}'}: "
            f"{listed(part['image_id'])}"
            for fold, part in rows.groupby("fold")
        ]
        spellings = listed(sorted(set(rows["patient"])))
        print(f"patient {spellings} stands on both sides; {'; '.join(parts)}")
    if len(leaking):
        print(f"{len(leaking)} held-out images leak")
    else:
        print(f"no known patient stands on both sides ({len(folds) - len(known)} images unknown)")
    warnings = [*absent_classes(folds), *suspects(folds)]
    warnings += [] if len(known) else ["no patient is known: nothing was checked"]
    for line in warnings:
        print(f"warning: {line}")
    result = {
        "images": len(folds),
        "known": len(known),
        "patients": known["patient"].map(patient_key).nunique(),
        "leaking": len(leaking),
        "warnings": warnings,
    }
    print(to_json(result))
    return 1 if result["leaking"] else 0


if __name__ == "__main__":
    exit_with(main)
