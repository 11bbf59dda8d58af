"""Charts: the course of a training, lesions that are found, and reliability.

Each is a Matplotlib figure without pyplot, which keeps figures, asks for a screen and is one
for all threads. `pixels` turns it into a picture; `figure.savefig` writes it as SVG.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from bach.core.errors import InputError

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008, told apart by colour-blind readers.
_BLUE, _SKY, _VERMILLION, _GREEN = "#0072B2", "#56B4E9", "#D55E00", "#009E73"

# Column of the history that is there, and 1, where a network had stopped learning.
STOPPED = "stopped_learning"

# With more epochs than this, a mark at each would hide the line.
_MOST_MARKS = 40
# A loss that is so many times the median, of an epoch or two, would flatten all others.
_STEEP = 10
# Beyond this no axis can be drawn; what is damaged may hold it.
_MOST = 1e100


class _Line(NamedTuple):
    column: str
    name: str
    color: str
    style: str
    mark: str


# Lines differ in colour, in style and in mark, so that any one of the three will do.
_LOSS = (
    _Line("loss", "training", _BLUE, "-", "o"),
    _Line("heldout_loss", "held out", _VERMILLION, "--", "s"),
)
_ACCURACY = (
    _Line("accuracy", "training", _BLUE, "-", "o"),
    _Line("heldout_accuracy", "held out", _VERMILLION, "--", "s"),
    _Line("heldout_image_accuracy", "held out, whole images", _GREEN, "-.", "^"),
)
_RATE = (_Line("learning_rate", "learning rate", "0.3", "-", "o"),)


# A training


def best_mode(monitor: str, mode: str = "auto") -> str:
    """Whether more or less of a metric is better, told by its name.

    Raises:
        InputError: If the name tells neither.

    Example:
        >>> best_mode("heldout_image_accuracy")
        'max'
    """
    if mode in ("min", "max"):
        return mode
    words = set(monitor.lower().split("_"))
    if words & {"loss", "error", "mae", "mse", "ece", "nll", "difficulty"}:
        return "min"
    if words & {"accuracy", "acc", "auc", "score", "f1", "sensitivity", "specificity", "recall"}:
        return "max"
    raise InputError(
        f"Whether more of {monitor!r} is better cannot be told by its name.\n"
        f"Received: monitor={monitor}, mode={mode}. Say min or max."
    )


def kept_epoch(
    history: pd.DataFrame, keep: str = "last", monitor: str = "heldout_loss", mode: str = "auto"
) -> int | None:
    """The epoch whose model a fold keeps, by its history.

    Args:
        history: Table of `history.csv`, a row per epoch.
        keep: "last", or "best" by `monitor`; the last where nothing was held out.
        monitor, mode: As `--monitor` and `--monitor-mode`.

    Returns:
        Number of the epoch, from 1; None of an empty history.
    """
    epochs = _epochs(history)
    heldout = any(str(name).startswith("heldout_") for name in history)
    if keep == "best" and heldout and monitor in history:
        values = _numbers(history[monitor]) * {"min": -1, "max": 1}[best_mode(monitor, mode)]
        if np.isfinite(values).any():
            return int(epochs[np.nanargmax(values)])
    return int(epochs[-1]) if len(epochs) else None


def history_figure(history: pd.DataFrame, kept: int | None = None, title: str = "") -> "Figure":
    """Draw the course of a training: loss, accuracy and learning rate over the epochs.

    Args:
        history: Table of `history.csv`, a row per epoch. What has no column is left out, and
            a value that is not finite is a gap.
        kept: Number of the epoch whose model is kept, which is marked; None marks none.
        title: Stands above, for example `fold 0`.

    Returns:
        The figure, 8 inches wide.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = [("loss", _LOSS, 3), ("accuracy", _ACCURACY, 3)]
    if _has(history, "learning_rate"):
        panels.append(("rate", _RATE, 1))
    heights = [height for *_, height in panels]
    figure = Figure(figsize=(8, 0.9 + 0.9 * sum(heights)), dpi=100, layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    epochs = _epochs(history)
    for panel, (name, lines, _) in zip(axes, panels, strict=True):
        drawn = [
            _draw(panel, epochs, history, line) for line in lines if _has(history, line.column)
        ]
        _mark_epochs(panel, epochs, history, kept)
        _scale(panel, name, np.concatenate(drawn) if drawn else np.zeros(0))
        if name != "rate" and panel.get_legend_handles_labels()[0]:
            panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        if not drawn:
            panel.text(0.5, 0.5, "no values", transform=panel.transAxes, ha="center", color="0.4")
    first, last = (epochs.min(), epochs.max()) if len(epochs) else (1, 1)
    axes[-1].set(xlabel="epoch", xlim=(first - 0.5, last + 0.5 + 0.01 * (last - first)))
    axes[-1].xaxis.set_major_locator(
        MaxNLocator(nbins=12, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    figure.suptitle(title)
    return figure


def _draw(panel: "Axes", epochs: np.ndarray, history: pd.DataFrame, line: _Line) -> np.ndarray:
    """Draw one column; its values."""
    values = _numbers(history[line.column])
    marked = np.ones(len(values), bool)
    if len(epochs) > _MOST_MARKS:  # a value between two gaps has no line, only its mark
        known = np.pad(np.isfinite(values), 1)
        marked = known[1:-1] & ~known[:-2] & ~known[2:]
    panel.plot(
        epochs,
        values,
        line.style,
        color=line.color,
        label=line.name,
        linewidth=1.6,
        marker=line.mark,
        markevery=np.flatnonzero(marked).tolist(),
        markersize=4,
    )
    return values


def _mark_epochs(
    panel: "Axes", epochs: np.ndarray, history: pd.DataFrame, kept: int | None
) -> None:
    """Mark the epoch that is kept, and those after which the network had stopped learning."""
    if STOPPED in history:
        for index, epoch in enumerate(epochs[_numbers(history[STOPPED]) == 1]):
            name = "_" * bool(index) + "has stopped learning"
            panel.axvspan(epoch - 0.5, epoch + 0.5, color="0.85", linewidth=0, label=name)
    if kept is not None:
        panel.axvline(
            kept, color="black", linestyle=":", linewidth=1.4, label=f"kept: epoch {kept}"
        )


def _scale(panel: "Axes", name: str, values: np.ndarray) -> None:
    """Give a panel its name and an axis on which its values can be read."""
    values = values[np.isfinite(values)]
    label = {"rate": "learning\nrate"}.get(name, name)
    panel.set_ylabel(label)
    panel.grid(axis="y", color="0.9")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    if not len(values):
        panel.set_yticks([])
    elif name == "accuracy":
        low = max(0.0, math.floor(10 * values.min() - 0.5) / 10)
        panel.set_ylim(low - 0.02 * (1 - low), 1 + 0.02 * (1 - low))
    elif name == "loss" and values.min() > 0 and values.max() > _STEEP * np.median(values):
        panel.set_yscale("log")
        panel.set_ylabel("loss (logarithmic)")
    else:
        # From 0, unless that would press the curves into a corner.
        low, high = float(values.min()), float(values.max())
        low = low - 0.2 * (high - low) if 0 < 0.5 * high < low < high else min(0.0, low)
        panel.set_ylim(low, high + 0.1 * (high - low) or 1)
    if name == "rate":
        panel.yaxis.set_major_formatter("{x:g}")


def _epochs(history: pd.DataFrame) -> np.ndarray:
    """Numbers of the epochs, from 1."""
    if "epoch" in history:
        numbers = _numbers(history["epoch"])
        if ((numbers >= 1) & (numbers < 2**31)).all():
            return numbers.astype(int)
    return np.arange(1, len(history) + 1)


def _has(history: pd.DataFrame, column: str) -> bool:
    return column in history and bool(np.isfinite(_numbers(history[column])).any())


def _numbers(values: pd.Series) -> np.ndarray:
    """float64, nan for what is no finite number."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    return np.where(np.abs(numbers) < _MOST, numbers, np.nan)


# Lesions


def froc_figure(curve: pd.DataFrame, marked: Sequence[float]) -> "Figure":
    """Draw the share of lesions found against the false positives per slide.

    Args:
        curve: Table of `false_positives` and `sensitivity`, ascending from 0, 0.
        marked: False positives per slide, ascending, that the score is the mean at.

    Returns:
        The figure, 6 inches wide; its axis is logarithmic, from half of the first mark on.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    x, y = _numbers(curve["false_positives"]), _numbers(curve["sensitivity"])
    low, high = marked[0] / 2, marked[-1] * 1.25
    if np.isfinite(y).any():
        # Beyond the last detection nothing more is found.
        axes.plot([*x, max(high, x[-1])], [*y, y[-1]], color=_BLUE, linewidth=1.6)
        at = np.interp(marked, x, y)
        axes.plot(marked, at, "o", color=_VERMILLION, label=f"mean {at.mean():.3f}")
        axes.legend(loc="lower right", frameon=False)
    else:
        axes.text(0.5, 0.5, "no lesion", transform=axes.transAxes, ha="center", color="0.4")
    axes.set_xscale("log", base=2)
    axes.set(xlim=(low, high), ylim=(0, 1.02))
    axes.set_xticks(marked, [f"{value:g}" for value in marked])
    axes.set(xlabel="false positives per slide", ylabel="share of lesions found")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# Reliability


def reliability_figure(tables: Mapping[str, pd.DataFrame], of: str = "image") -> "Figure":
    """Draw reliability tables side by side.

    Above, a bar is the share of right answers in a bin and the line across it their mean
    confidence; where a network means what it says, the two meet. Below is how many images
    a bin holds.

    Args:
        tables: {title: table of `bach.scores.reliability`}.
        of: What is answered about, in the singular.

    Returns:
        The figure, 4.4 inches wide for each table.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.6 + 4.4 * len(tables), 6), dpi=120, layout="constrained")
    axes = figure.subplots(
        2, len(tables), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1)
    )
    for (above, below), (title, table) in zip(axes.T, tables.items(), strict=True):
        low, high, count = table["low"], table["high"], table["count"]
        bars = {"x": low, "width": high - low, "align": "edge", "edgecolor": "white"}
        above.bar(height=table["accuracy"], color=_SKY, label="share right", **bars)
        above.hlines(
            table["confidence"], low, high, _VERMILLION, label="mean probability", linewidth=3
        )
        above.plot([0, 1], [0, 1], "--", color="0.4", linewidth=1, label="calibrated")
        above.set(title=title, xlim=(0, 1), ylim=(0, 1.02))
        gray = below.bar(height=count, color="0.7", **bars)
        below.bar_label(gray, [str(n or "") for n in count], fontsize=7)
        below.set(xlabel=f"largest probability of {'an' if of[0] in 'aeiou' else 'a'} {of}")
        below.margins(y=0.25)
    axes[0, 0].set_ylabel("share of answers that are right")
    axes[1, 0].set_ylabel(f"{of}s")
    figure.suptitle("Are the answers as often right as the network is sure?")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


# Pictures


def pixels(figure: "Figure") -> np.ndarray:
    """A figure as picture: uint8 `(height, width, 3)`, RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
