"""Features of whole photos by a network that saw none of them."""

import keras
import numpy as np
import pytest

from bach.core.errors import InputError
from bach.network import lite0
from bach.network.photo_features import pooled_features


def test_a_photo_is_described_by_the_mean_of_its_features_at_the_scale_of_the_networks():
    describer = pooled_features(lite0.NAME)
    photo = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    photo = photo.repeat(5, axis=0).repeat(5, axis=1)  # each square one network px
    found = describer.describe(photo)
    network = lite0.build((None, None, 3), "lite0")
    lite0.load_weights(network)
    expected = network.predict_on_batch(photo[None, ::5, ::5].astype(np.float32)).mean(axis=(1, 2))
    assert len(found) == 1280
    assert np.allclose(list(found.values()), expected[0], atol=1e-4)
    assert describer.name == lite0.NAME


def test_a_backbone_without_weights_is_refused():
    with pytest.raises(InputError, match="no ImageNet weights"):
        pooled_features("small")
    with pytest.raises(InputError, match="Unknown backbone"):
        pooled_features("Inception9")
    keras.backend.clear_session()
