"""Batches: their order, their augmentation, and how they are fed to Keras."""

import numpy as np
import pytest

from bach.core.errors import InputError
from bach.network.augment import Augmentation
from bach.network.batches import Batches, Selection


def _batches(batch_size=4, seed=0, augmentation=None):
    first = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(3, axis=3)
    second = first + 100
    photos, slides = np.array([f"n{index}" for index in range(10)]), np.full(10, "A01")
    selections = [
        Selection(first, np.arange(10) % 4, photos, np.array([0, 2, 4, 6, 8])),
        Selection(second, np.full(10, 3), slides, np.array([1, 3])),
    ]
    return Batches(selections, batch_size, seed, augmentation)


def test_prediction_batches_keep_the_order_and_fill_up_the_last():
    batches = _batches()
    seen = np.concatenate([batches[i][0][:, 0, 0, 0] for i in range(len(batches))])
    assert seen.tolist() == [0, 2, 4, 6, 8, 101, 103, 103]
    assert batches.labels.tolist() == [0, 2, 0, 2, 0, 3, 3]
    assert batches.images.tolist() == ["n0", "n2", "n4", "n6", "n8", "A01", "A01"]


def test_training_batches_hold_each_patch_at_most_once_with_its_label():
    batches = _batches(2, augmentation=Augmentation(0, 0, 0))
    seen, labels = [], []
    for index in range(len(batches)):
        (patches, _), one_hot = batches[index]
        assert patches.dtype == np.uint8
        seen += patches[:, 0, 0, 0].tolist()
        labels += one_hot.argmax(axis=1).tolist()
    assert len(seen) == len(set(seen)) == 6
    truth = {0: 0, 2: 2, 4: 0, 6: 2, 8: 0, 101: 3, 103: 3}
    assert [truth[value] for value in seen] == labels


def _same(one, other):
    """Of patches, parameters and labels of two batches, which are the same."""
    (patches, parameters), labels = one
    return [
        np.array_equal(a, b)
        for a, b in zip((patches, parameters, labels), (*other[0], other[1]), strict=True)
    ]


def test_order_and_augmentation_depend_on_seed_and_epoch_only():
    one, other = (_batches(3, augmentation=Augmentation()) for _ in range(2))
    first = one[1]
    one.on_epoch_end()  # Keras says so when it likes; only `start_epoch` counts
    assert all(_same(one[1], first))
    one.start_epoch(1)
    second = one[1]
    other.start_epoch(1)
    assert all(_same(other[1], second))
    assert _same(first, second)[:2] == [False, False]
    assert _same(_batches(3, 1, Augmentation())[1], first)[:2] == [False, False]


def test_an_epoch_draws_so_many_patches_of_an_image_and_in_the_end_all():
    patches = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1).repeat(3, axis=3)
    images = np.array(["a"] * 9 + ["b"] * 10 + ["c"])
    photos = Selection(patches, np.zeros(20, int), images, np.arange(20), per_image=2)
    slides = Selection(patches + 100, np.zeros(20, int), images, np.arange(3))
    batches = Batches([photos, slides], 1, 0, Augmentation(0, 0, 0))
    assert len(batches) == 8
    ever = set()
    for epoch in range(40):
        batches.start_epoch(epoch)
        seen = [int(batches[index][0][0][0, 0, 0, 0]) for index in range(len(batches))]
        assert sorted(number for number in seen if number >= 100) == [100, 101, 102]
        seen = [number for number in seen if number < 100]
        assert sorted(images[seen]) == ["a", "a", "b", "b", "c"]
        assert len(set(seen)) == 5
        ever.update(seen)
    assert ever == set(range(20))


def test_no_patches_is_an_error():
    with pytest.raises(InputError, match="No patches"):
        Batches(
            [Selection(np.zeros((2, 1, 1, 3), np.uint8), *[np.zeros(2)] * 2, np.zeros(0, int))], 4
        )
