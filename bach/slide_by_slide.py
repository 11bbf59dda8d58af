"""One slide after the other: what two of the scripts do with slides, and parts of them.

A slide that fails does not stop the others. It is named in `failures.json`, and `--resume`
tries it again.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import pandas as pd
from tqdm import tqdm

from bach.annotations.checks import slide_labels
from bach.core.errors import InputError
from bach.core.files import write_json
from bach.core.log import log
from bach.core.options import SlideScript
from bach.core.run import Run
from bach.core.shards import failures_of, require_all, shard_of
from bach.data import check_annotation_files
from bach.slides import Slide
from bach.tissue import check_pixels, map_downsample, map_files

T = TypeVar("T")


class NotDone(Exception):  # noqa: N818 (it is no error)
    """Raised for a slide that is to be read only, and is not there."""


def over_slides(
    slides: pd.DataFrame, args: SlideScript, run: Run, work: Callable[[Any], T]
) -> tuple[dict[str, T], dict[str, str]]:
    """Do every slide, or those of a part, or read all where parts are brought together.

    Args:
        slides: Table of `image_id` and `path`, and of what else `work` wants.
        args: Options of the script.
        run: The run; `failures.json` is written.
        work: Does the slide of a row, or reads what is there. With `--collect` it raises
            `NotDone` where there is nothing.

    Returns:
        What came of each slide, and why the others failed, by name.

    Raises:
        InputError: If no slide could be used, or a slide is missing that nobody has done.
    """
    slides = share(slides, args)
    if run.shard is not None:
        log.info("part %d of %d: %d slides", *run.shard, len(slides))
    before = failures_of(run.path) if run.collect else {}
    failures = {} if run.collect else check_slides(slides, args)
    done: dict[str, T] = {}
    missing = []
    usable = slides[~slides["image_id"].isin(failures)]
    for row in tqdm(usable.itertuples(), "slides", len(usable), disable=None):
        name = str(row.image_id)
        try:
            done[name] = work(row)
        except NotDone:
            if name in before:
                failures[name] = before[name]
            else:
                missing.append(name)
        except InputError as error:
            log.error("%s failed: %s", name, error)
            failures[name] = str(error)
    require_all(run.path, missing, "slide")
    write_json(run.home / "failures.json", failures)
    if not done and failures:
        raise InputError("No slide could be used:\n" + "\n".join(failures.values()))
    return done, failures


def share(slides: pd.DataFrame, args: SlideScript) -> pd.DataFrame:
    """The slides that are to be done: all, or those of the part that `--shard` names."""
    shard = shard_of(args)
    if shard is None:
        return slides
    return slides.iloc[shard.share(range(len(slides)), map(_size, slides["path"]))]


def mpp_of(row: Any, args: SlideScript) -> float | None:
    """um per px that a slide is said to have: by its row, else by `--mpp`, else nothing."""
    own = getattr(row, "mpp", None)
    return args.mpp if own is None or pd.isna(own) else float(own)


def _size(path: str) -> int:
    """Bytes of a slide, which tell about how much work it is; 0 if it is not there."""
    return os.path.getsize(path) if os.path.isfile(path) else 0


def check_slides(slides: pd.DataFrame, args: SlideScript) -> dict[str, str]:
    """Open every slide and what belongs to it before the first is predicted.

    Args:
        slides: Table of `image_id` and `path`, and of `mpp` where that is known.
        args: Options of the script.

    Returns:
        Why a slide cannot be used, by its name; all of them are logged.

    Raises:
        InputError: If the class map cannot be read.
    """
    check_annotation_files(slides["path"].tolist(), args.class_map)
    failures = {}
    for row in tqdm(slides.itertuples(), "checking", len(slides), leave=False, disable=None):
        try:
            with Slide(row.path, mpp_of(row, args), row.image_id) as slide:
                slide.check()
                check_pixels(slide, args.masks, args.not_brightfield)
                annotation = map_files(row.path, args.masks, args.class_map)["annotation"]
                if annotation is not None:
                    slide_labels(annotation, slide, map_downsample(slide.mpp), args.class_map)
        except InputError as error:
            log.error("%s failed: %s", row.image_id, error)
            failures[row.image_id] = str(error)
    return failures
