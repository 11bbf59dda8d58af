"""Painted tissue: what tells classes and patients apart."""

import numpy as np
import pytest

from bach.toy import painter

PLAIN = painter.make_look(np.random.default_rng(0), 0.0)


def test_patients_look_alike_without_stain_shift_and_differ_with_it():
    looks = [painter.make_look(np.random.default_rng(i), 0.0) for i in range(3)]
    assert looks[0] == looks[1] == looks[2]
    assert painter.make_look(np.random.default_rng(0)) != looks[0]


def test_the_same_state_of_chance_paints_the_same_picture_and_another_one_another():
    one, same, other = (
        painter.paint_tissue(np.random.default_rng(seed), 2, 60, 40, 2.1, PLAIN)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_carcinoma_has_more_nuclei_than_normal_tissue():
    def dark(label, seed):
        rng = np.random.default_rng(seed)
        return (painter.paint_tissue(rng, label, 300, 300, 2.1, PLAIN)[..., 0] < 130).mean()

    means = [np.mean([dark(label, seed) for seed in range(8)]) for label in range(4)]
    assert means[0] < means[2]
    assert means[1] < means[3]
    assert 2 * means[0] < means[3]


def test_a_label_map_is_painted_class_by_class():
    labels = np.zeros((400, 600), np.uint8)
    labels[:, 300:] = 3
    rgb = painter.paint_tissue(np.random.default_rng(1), labels, 600, 400, 2.1, PLAIN)
    dark = rgb[..., 0] < 130
    assert dark[:, 320:].mean() > 2 * dark[:, :280].mean()


def test_where_there_is_no_tissue_there_is_glass():
    tissue = np.zeros((50, 80))
    tissue[:, 40:] = 1
    rgb = painter.paint_tissue(np.random.default_rng(0), 1, 80, 50, 2.1, PLAIN, tissue)
    assert rgb[:, :35].min() > 225
    assert rgb[:, 45:, 1].mean() < 215


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (40, 2)])
@pytest.mark.parametrize("label", [0, 3])
def test_the_smallest_pictures_can_be_painted(size, label):
    look = painter.make_look(np.random.default_rng(0))
    rgb = painter.paint_tissue(np.random.default_rng(0), label, *size, 0.5, look)
    assert rgb.shape == (size[1], size[0], 3)


def test_what_cannot_be_painted_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"lie in 0\.\.3"):
        painter.paint_tissue(rng, 4, 10, 10, 0.5, PLAIN)
    with pytest.raises(ValueError, match="map of shape"):
        painter.paint_tissue(rng, np.zeros((3, 3), np.uint8), 10, 10, 0.5, PLAIN)
    with pytest.raises(ValueError, match="above 0"):
        painter.paint_tissue(rng, 0, 10, 10, 0.0, PLAIN)
    with pytest.raises(ValueError, match="shape of the picture"):
        painter.paint_tissue(rng, 0, 10, 10, 0.5, PLAIN, np.ones((3, 3)))
    with pytest.raises(ValueError, match="negative"):
        painter.make_look(rng, -1.0)
