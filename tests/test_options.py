"""Options: one definition gives parser, help, resume check, words to pass on, and table."""

import dataclasses

import pytest

import make_heatmap
import mine_hard_examples
import train_final
import train_part_a
from bach.core import options
from bach.core.options import again, option

SCRIPTS = [train_part_a, mine_hard_examples, train_final, make_heatmap]


@dataclasses.dataclass(frozen=True)
class Options(options.Devices):
    """Options of a test."""

    batch_size: int = again(options.Devices, "batch_size", 8)
    share: float = option(0.5, "a share, 100% at most", above=0, most=1)
    names: tuple[str, ...] = option((), "some names", path=True)
    three: tuple[float, ...] = option((1.0, 2.0, 3.0), "three numbers")
    rate: int = option(0, "a rate", bare=64, metavar="BATCH")
    quick: bool = option(False, "be quick", where=True)
    folder: str | None = option(None, "a folder", path=True)


def _parse(*words):
    return options.parse(Options, list(words), "A test.")


def test_defaults_are_those_of_the_dataclass():
    assert _parse() == Options()
    assert _parse().batch_size == 8


def test_words_become_values_of_the_type_of_their_field():
    words = ["--share", "0.25", "--names", "a", "b", "--three", "4", "5", "6", "--rate", "--quick"]
    args = _parse(*words, "--folder", "x", "--batch-size", "2")
    assert args == Options(
        batch_size=2,
        share=0.25,
        names=("a", "b"),
        three=(4.0, 5.0, 6.0),
        rate=64,
        quick=True,
        folder="x",
    )


def test_values_may_be_given_at_once_or_one_by_one():
    assert _parse("--names", "a", "b", "--names", "c").names == ("a", "b", "c")
    assert _parse("--three", "1", "2", "3", "--three", "4", "5", "6").three == (4.0, 5.0, 6.0)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_the_words_of_options_give_the_same_options(script):
    kind = script.Options
    changes: dict = {}
    for field in dataclasses.fields(kind):
        other = {bool: True, int: 1, float: 0.5, str: "other"}.get(type(field.default))
        choices = field.metadata["choices"]
        if choices:
            other = choices[-1]
        if other is not None:
            changes[field.name] = other
    changed = dataclasses.replace(kind(), **changes)
    parsed = options.parse(kind, options.words(changed), None)
    assert parsed == changed
    assert options.words(kind()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--batch-size", "0"],
        ["--batch-size", "-5"],
        ["--share", "0"],
        ["--share", "1.5"],
        ["--share", "nan"],
        ["--devices", "-1"],
        ["--precision", "float8"],
        ["--three", "1", "2"],
        ["--three", "1", "2", "inf"],
        ["--batch-size", "9" * 30],
        ["--batch-size", "1e3"],
        ["--devices", "999999"],
    ],
    ids=" ".join,
)
def test_a_value_out_of_bounds_ends_with_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        _parse(*words)
    assert end.value.code == 2
    assert f"argument {words[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (train_part_a, ["--epochs", "0"]),
        (train_final, ["--epochs", "-1"]),
        (train_part_a, ["--limit", "-1"]),
        (train_part_a, ["--learning-rate", "nan"]),
        (train_part_a, ["--learning-rate", "inf"]),
        (train_part_a, ["--seed", "4294967296"]),
        (train_part_a, ["--hue", "7"]),
        (train_final, ["--saturation", "1e30"]),
        (make_heatmap, ["--mpp", "inf"]),
        (mine_hard_examples, ["--stride-um", "inf"]),
        (mine_hard_examples, ["--hardest", "7"]),
        (mine_hard_examples, ["--batch-size", "-5"]),
        (make_heatmap, ["--step-um", "0"]),
        (make_heatmap, ["--thresholds", "nan", "0.5", "0.6"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value.__name__,
)
def test_the_scripts_refuse_numbers_that_mean_nothing(script, words, capsys):
    with pytest.raises(SystemExit) as end:
        script.parse_args(words)
    assert end.value.code == 2


def test_the_help_shows_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit):
        _parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "a share, 100% at most (default: 0.5)" in text
    assert "three numbers (default: 1.0 2.0 3.0)" in text
    assert "patches per batch, all devices together (default: 8)" in text
    assert "options of scripts that run a network:" in text
    assert "options of a test:" in text


def test_only_a_group_is_passed_on_if_one_is_named():
    args = Options(batch_size=4, precision="mixed_bfloat16", share=0.1)
    words = options.words(args, options.Devices, devices=3)
    assert words == ["--batch-size", "4", "--devices", "3", "--precision", "mixed_bfloat16"]


def test_what_says_where_may_change_and_what_decides_may_not():
    old = dataclasses.asdict(Options(quick=True, names=("a",)))
    assert options.changed(old, Options(names=("./a",))) == []
    lines = options.changed(old, Options(names=("b",), share=1.0))
    assert lines == ["  --names: ['a'] then, ['b'] now", "  --share: 0.5 then, 1.0 now"]


def test_only_what_decides_by_its_value_is_part_of_a_fingerprint():
    decisive = options.decisive(Options())
    assert "share" in decisive
    assert not {"quick", "names", "folder"} & set(decisive)


def test_the_table_lists_each_option_once_with_its_default():
    rows = options.table(train_part_a.Options, train_final.Options)
    names = [row[0] for row in rows]
    assert len(set(names)) == len(names)
    assert ["`--epochs`", "25", "passes over the patches"] in rows
    assert any(name.startswith("`--head` sigmoid, softmax") for name in names)


@dataclasses.dataclass(frozen=True)
class Named:
    source: str = option("", "the run", name="RUN", path=True)
    run_dir: str = option("", "the new one", name="--out", where=True)
    size: int = option(1, "size")


def test_an_option_can_have_another_name_or_none_and_must_then_be_given(capsys):
    words = ["--size", "2", "here", "--out", "there"]
    args = options.parse(Named, words, "")
    assert args == Named("here", "there", 2)
    assert options.parse(Named, options.words(args), "") == args
    for less in (words[:3], words[3:]):
        with pytest.raises(SystemExit):
            options.parse(Named, less, "")
    assert options.changed({"source": "other", "run_dir": "x", "size": 2}, args) == [
        "  RUN: other then, here now"
    ]
    assert [row[0] for row in options.table(Named)] == ["`RUN`", "`--out`", "`--size`"]
