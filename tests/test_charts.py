"""Charts: what is drawn of a training and of reliability."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from commands import ROOT

from bach.charts import best_mode, history_figure, kept_epoch, pixels, reliability_figure
from bach.core.errors import InputError
from bach.scores import reliability

pytestmark = pytest.mark.filterwarnings("error")


def history(epochs=5):
    """A history whose held-out loss is least after the third epoch."""
    epoch = np.arange(1, epochs + 1)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "loss": 1 / epoch,
            "accuracy": 1 - 0.5 / epoch,
            "learning_rate": 0.001,
            "heldout_loss": 0.5 + abs(epoch - 3),
            "heldout_accuracy": 0.6,
            "heldout_image_accuracy": 0.7,
        }
    )


def lines(figure, panel=0):
    """The lines of a panel by their names, as arrays (x, y)."""
    return {line.get_label(): line.get_xydata().T for line in figure.axes[panel].lines}


# A training


def test_every_curve_is_drawn_where_its_values_are():
    figure = history_figure(history(), kept=3, title="fold 0")
    loss, accuracy, rate = (lines(figure, panel) for panel in range(3))
    assert loss["training"].tolist() == [[1, 2, 3, 4, 5], [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]]
    assert loss["held out"][1].tolist() == [2.5, 1.5, 0.5, 1.5, 2.5]
    assert loss["kept: epoch 3"][0].tolist() == [3, 3]
    assert set(accuracy) == {"training", "held out", "held out, whole images", "kept: epoch 3"}
    assert rate["learning rate"][1].tolist() == [0.001] * 5
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["training", "held out", "kept: epoch 3"]


@pytest.mark.parametrize("epochs", [1, 2, 41, 400])
def test_a_training_of_any_length_can_be_read(epochs):
    figure = history_figure(history(epochs), kept=epochs)
    assert pixels(figure).shape == (720, 800, 3)
    ticks = figure.axes[-1].get_xticks()
    low, high = figure.axes[-1].get_xlim()
    shown = [tick for tick in ticks if low <= tick <= high]
    assert 1 <= len(shown) <= 14
    assert all(tick == int(tick) for tick in shown)
    assert low < 1 <= epochs < high


def test_a_single_epoch_is_a_mark_and_hundreds_are_a_line():
    one, many = (history_figure(history(n)).axes[0].lines[0] for n in (1, 400))
    assert one.get_markevery() == [0]
    assert many.get_markevery() == []


def test_columns_that_are_missing_leave_their_curve_out():
    table = history()[["epoch", "loss", "accuracy"]].assign(strength=1.0)
    figure = history_figure(table, kept=5)
    assert len(figure.axes) == 2
    assert set(lines(figure)) == {"training", "kept: epoch 5"}


def test_values_that_are_not_finite_are_gaps_and_a_lone_value_is_seen():
    table = history(60)
    table.loc[3:9, "heldout_loss"] = np.nan
    table.loc[6, "heldout_loss"] = 1.0
    table.loc[20, "heldout_loss"] = np.inf
    figure = history_figure(table)
    held = figure.axes[0].lines[1]
    assert np.flatnonzero(np.isnan(held.get_ydata())).tolist() == [3, 4, 5, 7, 8, 9, 20]
    assert held.get_markevery() == [6]
    pixels(figure)


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame(),
        pd.DataFrame({"epoch": [1], "loss": ["word"], "accuracy": [None]}),
        pd.DataFrame({"epoch": ["x", 1e30], "loss": [1e308, 0.0], "accuracy": [-1.0, 7.0]}),
        pd.DataFrame({"loss": [0.0, 0.0], "accuracy": [0.0, 0.0], "learning_rate": [0.0, 0.0]}),
        history().assign(heldout_loss=np.nan, learning_rate=np.nan),
    ],
)
def test_a_history_without_values_is_drawn_all_the_same(table):
    assert pixels(history_figure(table, kept_epoch(table, "best"))).std() > 0


def test_one_loss_far_above_all_others_does_not_flatten_them():
    table = history()
    assert history_figure(table).axes[0].get_yscale() == "linear"
    table.loc[0, "loss"] = 900.0
    assert history_figure(table).axes[0].get_yscale() == "log"


def test_a_loss_that_hardly_moves_is_not_pressed_into_a_corner():
    def low(*losses):
        table = pd.DataFrame({"loss": losses, "accuracy": 0.5})
        return history_figure(table).axes[0].get_ylim()[0]

    assert low(1.4, 0.2) == 0
    assert low(1.386, 1.38, 1.36) > 1.3
    assert low(1.386) == 0


def test_epochs_after_which_the_network_had_stopped_learning_are_marked_once_in_the_legend():
    figure = history_figure(history().assign(stopped_learning=[None, None, None, 1, 1]))
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names.count("has stopped learning") == 1
    assert len(figure.axes[0].patches) == 2


def test_curves_differ_for_those_who_see_no_colours():
    drawn = history_figure(history()).axes[1].lines
    assert len({line.get_linestyle() for line in drawn}) == len(drawn) == 3
    assert len({line.get_marker() for line in drawn}) == 3


def test_a_chart_is_written_as_svg():
    stream = io.StringIO()
    history_figure(history(), 3).savefig(stream, format="svg")
    assert stream.getvalue().startswith("<?xml")


def test_charts_do_without_pyplot_and_are_drawn_by_several_threads_alike():
    code = (
        "import concurrent.futures, sys, pandas\n"
        "from bach.charts import history_figure, pixels\n"
        "table = pandas.DataFrame({'epoch': [1, 2], 'loss': [1.0, 0.5], 'accuracy': [0.5, 0.7]})\n"
        "with concurrent.futures.ThreadPoolExecutor(4) as pool:\n"
        "    drawn = list(pool.map(lambda n: pixels(history_figure(table)).tobytes(), range(8)))\n"
        "assert len(set(drawn)) == 1\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_kept_epoch_is_the_last_or_the_best_by_the_monitor():
    table = history()
    assert kept_epoch(table) == 5
    assert kept_epoch(table, "best") == 3
    assert kept_epoch(table, "best", "accuracy") == 5
    assert kept_epoch(table, "best", "heldout_accuracy") == 1  # the first of equals
    assert kept_epoch(table, "best", "heldout_loss", "max") == 1
    assert kept_epoch(table.drop(columns="heldout_loss"), "best") == 5
    assert kept_epoch(table[["epoch", "loss"]], "best", "loss") == 5  # nothing was held out
    assert kept_epoch(table[:0]) is None


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("loss", "min"),
        ("heldout_loss", "min"),
        ("accuracy", "max"),
        ("val_auc", "max"),
        ("heldout_image_accuracy", "max"),
        ("part_b_score", "max"),
        ("calibration_error", "min"),
    ],
)
def test_better_is_told_by_the_name_of_the_metric(name, mode):
    assert best_mode(name) == mode
    assert best_mode(name, "min") == "min"


def test_a_name_that_tells_nothing_is_refused():
    with pytest.raises(InputError, match="Say min or max"):
        best_mode("quality")


# Reliability


def test_the_picture_has_a_panel_for_each_table_and_bars_as_high_as_the_share_that_is_right():
    probs = np.tile([0.7, 0.1, 0.1, 0.1], (4, 1))

    def blue(*answers):
        tables = {str(n): reliability(probs[: len(one)], one) for n, one in enumerate(answers)}
        picture = pixels(reliability_figure(tables))
        assert picture.dtype == np.uint8
        return picture.shape[1], (picture == (0x56, 0xB4, 0xE9)).all(axis=-1).sum()

    none, half, right, empty = (np.array(labels) for labels in ([1] * 4, [0, 0, 1, 1], [0] * 4, []))
    width, legend = blue(none)
    wide, _ = blue(none, empty.astype(int))
    assert 1.5 * width < wide <= 2 * width
    bar = blue(right)[1] - legend
    assert bar > 1000
    assert blue(half)[1] - legend == pytest.approx(bar / 2, rel=0.1)
