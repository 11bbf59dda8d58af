import itertools
import json
import re

import numpy as np
import pytest

from bach import tasks
from bach.annotations.regions import read_class_map_file
from bach.core.errors import InputError
from bach.heatmap import MapRule, to_classes, to_heatmap
from bach.honest.intervals import accuracy_sums
from bach.labels import read_class, read_class_map, read_labels, write_class_map
from bach.mining import difficulty
from bach.patches import SlideMaps, slide_patches
from bach.scores import accuracy_from_counts, dinkelbach, joint_counts, part_b_score
from bach.tasks import BACH, read_task, task, use
from bach.thresholds import SCALE, counts_of_thresholds, fit_thresholds

LEAST = 'photo_mpp = 0.5\nclasses = ["Fat", "Gland", "Tumour"]\n'


def written(tmp_path, text):
    path = tmp_path / "my task.toml"
    path.write_text(text)
    return str(path)


def test_the_least_that_a_file_must_say(tmp_path):
    mine = use(written(tmp_path, LEAST))
    assert mine is task()
    assert mine.name == "my task"
    assert mine.columns == ("prob_fat", "prob_gland", "prob_tumour")
    assert (mine.side_px, mine.patch_px, mine.mpp) == (299, 299, 0.5)
    assert (mine.ordered, mine.label, mine.thresholds) == (False, "point", ())
    assert (mine.split, mine.split_name, mine.always) == (1, "Gland or not", "always Gland")
    assert len(set(mine.colors)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("classes = []", "name 2 to 15 classes"),
        (f"classes = {[f'c{k}' for k in range(16)]}", "name 2 to 15 classes"),
        ("classes = [1, 2]", "name 2 to 15 classes"),
        ('classes = "ab"', "name 2 to 15 classes"),
        ('classes = ["A", "a "]', "letters, digits"),
        ('classes = ["A", "a-"]', "a name mean one class"),
        ('classes = ["A", "../b"]', "letters, digits"),
        ('classes = ["A", {name = "B", spellings = ["a"]}]', "a name mean one class"),
        ('classes = ["1", "2"]', "a number mean no class but that"),
        ('classes = ["A", {name = "B", spellings = ["0"]}]', "a number mean no class but that"),
        ('classes = ["A", {name = "B", color = "red"}]', "colours as #rrggbb"),
        ('classes = ["A", {name = "B", colour = "#000000"}]', "have only the keys"),
        ('classes = ["A", {name = 3}]', "give name as str"),
        ('classes = ["A", "B"]\nspllit = "B"', "have only the keys"),
        ('classes = ["A", "B"]\nsplit = "C"', "name a class in split"),
        ('classes = ["A", "B"]\nordered = 1', "give ordered as bool"),
        ('classes = ["A", "B"]\npatch_px = true', "give patch_px as a number"),
        ('classes = ["A", "B"]\npatch_px = 300', "multiple of side_px"),
        ('classes = ["A", "B"]\nside_px = 0', "whole sides"),
        ('classes = ["A", "B"]\nphoto_size_px = [3]', "two numbers in photo_size_px"),
        ('classes = ["A", "B"]\nstep_um = 900', "a step_um up to the side of a patch"),
        ('classes = ["A", "B"]\nlabel = "median"', "label patches by"),
        ('classes = ["A", "B"]\nlabel = "centre"', "label patches by"),
        ('classes = ["A", "B", "C"]\nlabel = "mean"', "label patches by"),
        ('classes = ["A", "B"]\nthresholds = [0.5, 0.6]', "1 ascending thresholds"),
        ('classes = ["A", "B", "C"]\nthresholds = [0.5, 0.6]', "0 ascending thresholds"),
        ('classes = ["A", "B", "C"]\nordered = true\nthresholds = [0.7, 0.6]', "2 ascending"),
        ('classes = ["A", "B"]\npoint_threshold = 0.5', "both point_threshold"),
        ('classes = ["A", "B"]\npatient = "P[0-9]+"', "pattern with a group"),
        ('classes = ["A", "B"]\npatient = "("', "pattern with a group"),
        ("classes = [", "be a task file"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_its_name(tmp_path, change, message):
    path = written(tmp_path, f"photo_mpp = 0.5\n{change}\n")
    with pytest.raises(InputError, match=r"my task\.toml must(?s:.)*Received") as refused:
        read_task(path)
    assert message in str(refused.value)


@pytest.mark.parametrize("scale", ["", "photo_mpp = 0", "photo_mpp = nan", "photo_mpp = inf"])
def test_the_scale_of_photos_must_be_stated(tmp_path, scale):
    with pytest.raises(InputError, match="photo_mpp"):
        read_task(written(tmp_path, f'{scale}\nclasses = ["A", "B"]\n'))


def test_names_that_are_no_task_are_refused_with_those_that_are(tmp_path):
    with pytest.raises(InputError, match="bach, bracs, bracs4, breakhis, camelyon16, mitosis"):
        use("bahc")
    with pytest.raises(InputError, match=r"none\.toml must"):
        use(str(tmp_path / "none.toml"))
    assert task() is BACH


@pytest.mark.parametrize("name", ["bach", "camelyon16", "mitosis", "bracs", "bracs4", "breakhis"])
def test_every_task_goes_into_a_record_and_back(name, tmp_path):
    one = use(name)
    record = json.loads(json.dumps({"arguments": {}, "starts": [], "folder": "", **one.record}))
    (tmp_path / "run.json").write_text(json.dumps(record))
    back = tasks.stated_task(tmp_path)
    assert back.spec == one.spec
    assert [back.parse_label(text) for text in one.classes] == list(range(one.count))
    assert [back.parse_label(text) for text in one.spellings] == list(one.spellings.values())
    use()
    assert use(None, tmp_path).name == name
    with pytest.raises(InputError, match="must be of its task"):
        use("mitosis" if name != "mitosis" else "bach", tmp_path)


@pytest.mark.parametrize("stated", [3, {}, {"name": "x"}, {"name": "x", "spec": {"classes": 1}}])
def test_a_record_that_states_no_task_is_refused(stated, tmp_path):
    record = {"arguments": {}, "starts": [], "task": stated}
    (tmp_path / "run.json").write_text(json.dumps(record))
    if stated == {}:
        assert tasks.stated_task(tmp_path) is BACH
        return
    with pytest.raises(InputError, match="task"):
        tasks.stated_task(tmp_path)


def test_patients_of_breakhis_stand_in_the_names():
    one = read_task("breakhis")
    names = {
        "SOB_B_F-14-25197-40-023": "14-25197",
        "SOB_B_A-14-22549AB-40-001": "14-22549AB",
        "SOB_M_DC-14-2523-400-010": "14-2523",
        "other": "",
    }
    assert {name: one.patient_of(name) for name in names} == names
    assert one.parse_label("phyllodes_tumor") == one.parse_label("PT") == 2


def test_groups_of_annotations_are_meant_to_the_letter():
    one = read_task("camelyon16")
    names = {"_0": 1, "_1": 1, "_2": 0, "Tumor": 1, "0": None}
    assert {name: one.parse_group(name) for name in names} == names
    assert one.parse_label("_0") is None  # in tables a 0 is a number


def labels_of(annotation, step=8.0):
    maps = SlideMaps("one", 64, 64, task().mpp, 1.0, np.ones((64, 64), bool), annotation)
    return slide_patches(maps, step)


def test_the_label_of_a_patch_by_each_rule(tmp_path):
    text = 'photo_mpp = 1\nside_px = 16\nclasses = ["A", "B", "C"]\nordered = true\n'
    annotation = np.zeros((64, 64), np.uint8)
    annotation[:, 30:34] = 2
    by_rule = {}
    for rule in ('"mean"', '"point"', '"centre"\ncentre_um = 4'):
        use(written(tmp_path, f"{text}label = {rule}\n"))
        table = labels_of(annotation, 2.0)
        by_rule[rule[1:3]] = table[table["y"] == 0].set_index("x")["label"]
    middle = by_rule["me"].index + 8
    assert set(middle[by_rule["po"] == 2]) == {30, 32}
    # A square of 4 from -2 to 2 around the middle touches 30..34.
    assert set(middle[by_rule["ce"] == 2]) == {30, 32, 34}
    assert set(middle[by_rule["me"] == 1]) == set(range(26, 39, 2))
    assert not (by_rule["me"] == 2).any()


def test_of_classes_without_order_every_mistake_costs_the_same(tmp_path):
    use(written(tmp_path, LEAST))
    truth, called = np.array([[0, 1, 2, 2]]), np.array([[0, 2, 2, 0]])
    assert part_b_score(called, truth) == pytest.approx(1 - 2 / 3)
    probs = np.array([[[0.4, 0.3, 0.3], [0.1, 0.2, 0.7]]])
    assert to_heatmap(probs).tolist() == [[pytest.approx(0.6), pytest.approx(0.9)]]
    assert MapRule().decide(probs, to_heatmap(probs)).tolist() == [[0, 2]]
    assert difficulty([0, 1, 2, 2], [0, 2, 2, 0], 0.5).tolist() == [0, 0.5, 0, 0.5]
    with pytest.raises(InputError, match="say where no class begin"):
        MapRule(thresholds=(0.5,))
    # Least expected cost: whatever is called, no choice has a higher expected score.
    flat = np.random.default_rng(0).dirichlet(np.ones(3), 6)
    _, ratio = dinkelbach(flat)
    ratios = []
    for choice in itertools.product(range(3), repeat=6):
        error = sum(1 - p[k] for p, k in zip(flat, choice, strict=True))
        worst = sum(1 if k else 1 - p[0] for p, k in zip(flat, choice, strict=True))
        ratios.append(error / worst)
    assert ratio == pytest.approx(min(ratios))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_fitted_thresholds_of_any_number_of_classes_are_the_best_there_are(tmp_path, count):
    names = [f"c{k}" for k in range(count)]
    use(written(tmp_path, f"photo_mpp = 1\nordered = true\nclasses = {names}\n"))
    rng = np.random.default_rng(count)
    hists = rng.integers(0, 6, (2, 9, count))
    thresholds, score = fit_thresholds(hists)
    best = max(
        np.nanmean([_score(hist, choice) for hist in hists])
        for choice in itertools.combinations_with_replacement(range(1, 10), count - 1)
    )
    assert score == pytest.approx(best)
    assert len(thresholds) == count - 1


def _score(hist, places):
    """The score where class k begins at the step `places[k - 1]` of a coarse scale."""
    from bach.scores import score_from_counts

    joint = np.zeros((task().count, task().count), int)
    for step, truths in enumerate(hist):
        joint[:, sum(step >= place for place in places)] += truths
    return score_from_counts(joint)


def test_two_class_accuracy_is_that_of_the_split():
    use("bracs")
    counts = joint_counts(np.array([0, 4, 6, 5]), np.array([3, 5, 5, 2]))
    assert accuracy_from_counts(counts, "binary_accuracy") == 0.5
    assert accuracy_from_counts(counts) == 0


def test_every_class_may_be_written_as_its_number(tmp_path):
    use(written(tmp_path, f"photo_mpp = 0.5\nclasses = {[*'01', *'cdefghijklm', '13', 'o²']}\n"))
    assert [read_class(str(label)) for label in range(-1, 16)] == [None, *range(15), None]
    assert [read_class(text) for text in ("13.0", "007", "o²", "1e0")] == [13, 7, 14, None]


def test_two_classes_have_one_threshold():
    use("camelyon16")
    probs = np.array([[[0.6, 0.4], [0.5, 0.5], [np.nan, np.nan]]])
    assert to_heatmap(probs) == pytest.approx(np.array([[0.4, 0.5, 0]]))
    assert to_classes(to_heatmap(probs)).tolist() == [[0, 1, 0]]
    assert counts_of_thresholds(np.ones((SCALE + 1, 2), int), (0.5,)).sum() == 2 * (SCALE + 1)


def test_a_file_may_not_take_the_name_of_a_task_that_comes_along(tmp_path):
    (tmp_path / "bach.toml").write_text(LEAST)
    with pytest.raises(InputError, match="a file of another name"):
        use(str(tmp_path / "bach.toml"))


def test_other_words_for_the_same_do_not_make_another_task(tmp_path):
    spec = {**BACH.spec, "title": "as an earlier version had it"}
    record = {"arguments": {}, "starts": [], "task": {"name": "bach", "spec": spec}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert use(None, tmp_path) is BACH
    use("bracs4", tmp_path)  # sees the same, and has the same classes
    with pytest.raises(InputError, match="must be of its task"):
        use("bracs", tmp_path)


def test_messages_name_the_classes_of_the_task(tmp_path):
    table, mask, empty = tmp_path / "t.csv", tmp_path / "m.png", tmp_path / "e.csv"
    table.write_text("Tumor,Elsewhere\n")
    write_class_map(mask, np.array([[0, 3]], np.uint8))
    empty.write_text("only\n")
    use("camelyon16")
    for read, path, named in (
        (read_class_map_file, table, "Tumor,Tumor"),
        (read_class_map, mask, "0..1"),
        (lambda path: read_labels(path, "truth"), empty, "test0.tif,Tumor"),
        (lambda _: accuracy_sums([2], [0]), None, "0..1"),
    ):
        with pytest.raises((InputError, ValueError)) as refused:
            read(path)
        assert named in str(refused.value)
        assert not re.search(r"Benign|Invasive|0\.\.3", str(refused.value))
