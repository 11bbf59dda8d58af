"""Devices: what is chosen, and what is refused."""

import keras
import numpy as np
import pytest

from bach.core.errors import InputError
from bach.network import backend


@pytest.fixture(autouse=True)
def precision():
    """The precision is that of the process: it is put back."""
    keras.ops.zeros(1)  # from here on the process has the devices that it has
    yield
    keras.config.set_dtype_policy("float32")


def test_what_runs_is_returned_for_the_record_of_the_run():
    device = backend.start(seed=3, precision="mixed_bfloat16")
    assert device["backend"] == keras.backend.backend()
    assert device["devices"] == backend.count() >= 1
    assert device["device"] in ("CPU", "GPU")
    assert device["precision"] == keras.config.dtype_policy().name == "mixed_bfloat16"


def test_the_seed_decides_what_is_drawn():
    drawn = []
    for seed in (1, 1, 2):
        backend.start(seed=seed)
        numbers = keras.ops.convert_to_numpy(keras.random.normal((5,)))
        drawn.append(numbers.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_more_devices_than_there_are_are_refused():
    with pytest.raises(InputError, match=r"as many devices[\s\S]*--devices=99, visible: \d"):
        backend.start(devices=99)


def test_several_processes_are_refused_where_they_do_not_serve(monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    with pytest.raises(InputError, match="only on JAX"):
        backend.start()  # a script that does not train
    if keras.backend.backend() == "tensorflow":
        with pytest.raises(InputError, match=r"only on JAX[\s\S]*KERAS_BACKEND=tensorflow"):
            backend.start(processes=True)


def test_a_new_model_is_built_in_the_precision_that_was_chosen():
    keras.config.set_dtype_policy("mixed_bfloat16")
    backend.start_model(seed=0)
    assert keras.layers.Dense(1).compute_dtype == "bfloat16"


def test_a_new_model_does_not_depend_on_those_before_it():
    def kernel():
        layer = keras.layers.Dense(4)
        layer.build((None, 3))
        return layer.get_weights()[0]

    backend.start_model(seed=3)
    one = kernel()
    assert not np.array_equal(kernel(), one)
    backend.start_model(seed=3)
    assert np.array_equal(kernel(), one)


def test_a_compiled_model_takes_inputs_of_any_size():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    forward = backend.compiled(model, "uint8")
    for rows, cols in ((8, 9), (12, 7)):
        image = np.random.default_rng(0).integers(0, 256, (1, rows, cols, 3), np.uint8)
        assert forward(image).shape == (1, rows - 2, cols - 2, 2)
        assert np.allclose(forward(image), backend.call(model, image), atol=1e-3)
