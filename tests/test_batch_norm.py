"""Statistics of batch normalisation, estimated anew."""

import keras
import numpy as np
import pytest

from bach.core.errors import InputError
from bach.network.batch_norm import freeze_batch_norm, refresh_batch_norm, training_pass


def test_refreshed_statistics_are_those_of_the_training_patches():
    inputs = keras.Input((4,))
    norm = keras.layers.BatchNormalization(momentum=0.9)
    dropped = keras.layers.Dropout(0.5)
    model = keras.Model(inputs, dropped(norm(inputs)))
    rng = np.random.default_rng(0)
    batches = [rng.normal(5, 2, (32, 4)).astype(np.float32) for _ in range(7)]
    state = keras.ops.convert_to_numpy(dropped.non_trainable_variables[0])
    refresh_batch_norm(model, batches, training_pass(model))
    decay = 0.9 ** np.arange(6, -1, -1)
    share = decay / decay.sum()
    expected = sum(w * batch.mean(axis=0) for w, batch in zip(share, batches, strict=True))
    assert np.allclose(norm.moving_mean, expected, atol=1e-5)
    expected = sum(w * batch.var(axis=0) for w, batch in zip(share, batches, strict=True))
    assert np.allclose(norm.moving_variance, expected, rtol=1e-4)
    # Nothing else has moved: the random stream of training goes on undisturbed.
    assert np.array_equal(state, dropped.non_trainable_variables[0])


def test_what_has_no_batch_normalisation_cannot_keep_it():
    inputs = keras.Input((4,))
    with pytest.raises(InputError, match="--frozen-bn"):
        freeze_batch_norm(keras.Model(inputs, keras.layers.Dense(4)(inputs)))
