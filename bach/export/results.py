"""What a run of make_heatmap.py says about its slides, looked at before it is exported."""

import json
import math
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bach.core.errors import InputError
from bach.core.files import read_array
from bach.core.log import log
from bach.core.run import read_metrics
from bach.core.text import listed
from bach.honest.records import SlideRecord, read_slides
from bach.labels import read_class_map
from bach.patches import grid_shape
from bach.tasks import task

_AGAIN = "Make this heatmap again: delete {}, and run make_heatmap.py with --resume."


class Result(NamedTuple):
    """The maps of a slide.

    Attributes:
        name: Name of the slide in the run.
        record: What the run says about the slide.
        probs: float32 `(rows, cols, classes)` per cell, nan where nothing was predicted; on disk.
        heatmap: float32 `(rows, cols)`, 0..1; on disk.
        class_map: uint8 0..n-1, one px for `record.downsample` level-0 px.
    """

    name: str
    record: SlideRecord
    probs: np.ndarray
    heatmap: np.ndarray
    class_map: np.ndarray

    def uuid(self, what: str) -> uuid.UUID:
        """An id that is the same each time, and another in another run or of another slide."""
        run = json.dumps(self.record.key, sort_keys=True)
        return uuid.uuid5(uuid.NAMESPACE_OID, f"bach {run} {self.name} {what}")


def list_results(run: Path, names: Sequence[str] = ()) -> dict[str, SlideRecord]:
    """The slides of a run that are to be exported, {name: record}.

    Args:
        run: Run folder of make_heatmap.py; of one that is not finished, the slides that are.
        names: Names of slides; all by default.

    Raises:
        InputError: If it is none, or has no slide, or not one that is named.
    """
    found = read_slides(run)
    if not found:
        raise InputError(
            f"{run} must be a run of make_heatmap.py with a slide that is finished.\n"
            f"Received: {'no' if not run.is_dir() else 'a'} folder"
            f"{'' if not run.is_dir() else ' without slides/*.json'}.\n"
            "Name the run folder that make_heatmap.py printed, or finish it with --resume."
        )
    others = [name for name in names if name not in found]
    if others:
        raise InputError(
            f"Slides must be some of {run}: {listed(found)}.\n"
            f"Received: {listed(others)}.\nName them as they stand there, without ending."
        )
    if read_metrics(run) is None:
        log.warning("%s is not finished: only the %d slides that are there", run, len(found))
    return {name: found[name] for name in dict.fromkeys(names or found)}


def read_result(run: Path, name: str, record: SlideRecord) -> Result:
    """The maps of a slide.

    Raises:
        InputError: If one is missing, damaged, or of another size than the record says.
    """
    again = _AGAIN.format(run / "slides" / f"{name}.json")
    probs = read_array(run / "probs" / f"{name}.npy", again, dimensions=3, mapped=True)
    heatmap = read_array(run / "heatmaps" / f"{name}.npy", again, dimensions=2, mapped=True)
    class_map = read_class_map(run / "class_maps" / f"{name}.png")
    _check_record(run, name, record)
    cells = grid_shape(record.width, record.height, record.step)
    pixels = tuple(
        max(1, math.ceil(side / record.downsample - 1e-6)) for side in (record.height, record.width)
    )
    sizes = {
        "probs": (probs.shape, (*cells, task().count)),
        "heatmaps": (heatmap.shape, cells),
        "class_maps": (class_map.shape, pixels),
    }
    faults = [f"{kind} of {is_}, not {must}" for kind, (is_, must) in sizes.items() if is_ != must]
    if faults:
        raise InputError(
            f"The maps of {name} in {run} must be of the size that its record says.\n"
            f"Received: {'; '.join(faults)}.\n{again}"
        )
    return Result(name, record, probs, heatmap, class_map)


def export_each(
    run: Path, slides: dict[str, SlideRecord], out: Path, write: Callable[[Result], list[Path]]
) -> int:
    """Export slide by slide; one that fails does not stop the others.

    Args:
        run: Run folder.
        slides: Records by name.
        out: Folder that is written to, printed at the end.
        write: Writes the files of a slide, and returns them.

    Returns:
        The exit code: 1 if some slides failed.

    Raises:
        InputError: If none could be exported.
    """
    failures: dict[str, str] = {}
    for name, record in slides.items():
        try:
            files = write(read_result(run, name, record))
        except InputError as error:
            log.error("%s failed: %s", name, error)
            failures[name] = str(error)
            continue
        sizes = (f"{file.name} ({file.stat().st_size / 1e3:,.0f} kB)" for file in files)
        log.info("%s: %s", name, ", ".join(sizes))
    if len(failures) == len(slides):
        raise InputError("No slide could be exported:\n" + "\n".join(failures.values()))
    if failures:
        print(f"complete but for {len(failures)} of {len(slides)} slides: {listed(failures)}")
    print(out)
    return 1 if failures else 0


def _check_record(run: Path, name: str, record: SlideRecord) -> None:
    """Refuse sides and steps that are not above 0."""
    sides = {key: getattr(record, key) for key in ("width", "height", "mpp", "step", "downsample")}
    bad = [f"{key}={value}" for key, value in sides.items() if not value > 0]
    if bad:
        raise InputError(
            f"The numbers in {run / 'slides' / f'{name}.json'} must be above 0.\n"
            f"Received: {', '.join(bad)}.\nDelete it, and run make_heatmap.py with --resume."
        )
