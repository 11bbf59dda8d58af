"""Training on logits: the loss that it was, and a gradient where that had none."""

import importlib.util

import commands
import keras
import numpy as np
import pytest
from keras import layers, ops

from bach.core.options import Training
from bach.network import training
from bach.network.augment import PARAMETERS, with_augmentation
from bach.network.batches import one_hot
from bach.network.image_network import build_image_network
from bach.network.patch_network import build_model, probabilities, with_logits

HEADS = {"sigmoid": "log_sigmoid", "softmax": None}
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

ORDINARY = np.random.default_rng(0).normal(scale=3, size=(8, 4)).astype(np.float32)
# The class of the first column is the true one; the exact gradients of all are within float32.
EXTREME = np.array(
    [
        [-100, -100, -100, -100],
        [-100, 0, 0, 0],
        [-100, 100, 0, 0],
        [0, 100, 0, 0],
        [-100, 100, 100, 100],
        [-30, 1, 2, 3],
    ],
    np.float32,
)


@pytest.fixture(params=PRECISIONS)
def precision(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def _inner(logits):
    """What gives the rows of `logits`, which it learns: number of a row in, its logits out."""
    numbers = keras.Input((), dtype="int32")
    rows = layers.Embedding(len(logits), 4, dtype="float32", name="rows")
    outputs = rows(numbers)
    rows.set_weights([logits])
    return numbers, outputs


def _network(head, logits):
    """A network of given logits, with our head."""
    numbers, x = _inner(logits)
    last = layers.Dense(4, HEADS[head], dtype="float32", kernel_initializer="identity")
    return keras.Model(numbers, probabilities(last(x), last))


def _old_network(head, logits):
    """The same as it was trained before: on probabilities."""
    numbers, x = _inner(logits)
    x = layers.Dense(4, head, kernel_initializer="identity")(x)
    if head == "sigmoid":
        x = x / ops.maximum(ops.sum(x, axis=-1, keepdims=True), 1e-7)
    return keras.Model(numbers, x)


def _probs(network, logits):
    return network.predict_on_batch(np.arange(len(logits)))


def _loss_and_gradients(model, loss, logits, labels):
    """Mean loss, and the gradient of the loss of each example by its logits, `(n, 4)`."""
    count = len(logits)
    model.compile(keras.optimizers.SGD(float(count)), loss, jit_compile=False)
    value = model.train_on_batch(np.arange(count), one_hot(labels))
    return np.ravel(value)[0], logits - model.get_layer("rows").get_weights()[0]


def _new_loss_and_gradients(head, smoothing, logits, labels):
    model = with_logits(_network(head, logits))
    training.compile_learner(model, Training(label_smoothing=smoothing), 1.0)
    return _loss_and_gradients(model, model.loss, logits, labels)


def _exact(head, smoothing, logits, label):
    """Loss and gradient of one example by their formulas, float64."""
    z = logits.astype(np.float64)
    a = -np.logaddexp(0, -z) if head == "sigmoid" else z
    log_probs = a - np.logaddexp.reduce(a)
    target = np.eye(4)[label] * (1 - smoothing) + smoothing / 4
    slope = 1 / (1 + np.exp(z)) if head == "sigmoid" else 1
    return -(target * log_probs).sum(), (np.exp(log_probs) - target) * slope


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_at_ordinary_logits_loss_and_gradient_are_those_of_probabilities(head, smoothing):
    labels = np.arange(8) % 4
    loss, gradients = _new_loss_and_gradients(head, smoothing, ORDINARY, labels)
    old_loss, old_gradients = _loss_and_gradients(
        _old_network(head, ORDINARY),
        keras.losses.CategoricalCrossentropy(label_smoothing=smoothing),
        ORDINARY,
        labels,
    )
    assert loss == pytest.approx(old_loss, abs=1e-6)
    assert np.allclose(gradients, old_gradients, rtol=0, atol=1e-6)
    assert (np.abs(gradients).max(axis=1) > 1e-3).all()
    new, old = (_probs(make(head, ORDINARY), ORDINARY) for make in (_network, _old_network))
    assert np.allclose(new, old, rtol=0, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_at_extreme_logits_loss_and_gradient_are_exact(head, smoothing, precision):
    labels = np.zeros(len(EXTREME), int)
    loss, gradients = _new_loss_and_gradients(head, smoothing, EXTREME, labels)
    losses, exact = zip(*(_exact(head, smoothing, row, 0) for row in EXTREME), strict=True)
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert np.allclose(gradients, exact, rtol=1e-4, atol=1e-4)  # of logits of 100 in float32
    assert (np.abs(gradients).max(axis=1) > 0.1).all()


@pytest.mark.parametrize("head", HEADS)
def test_at_extreme_logits_probabilities_still_sum_to_1(head, precision):
    rows = [*EXTREME, np.full(4, 100), np.array([-100, -101, -102, -103])]
    rows = np.array(rows, np.float32)
    probs = _probs(_network(head, rows), rows)
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-5)
    expected = np.exp([0, -1, -2, -3])
    assert np.allclose(probs[-1], expected / expected.sum(), atol=1e-5)


@pytest.mark.parametrize("kind", ["patch", "image"])
@pytest.mark.parametrize("head", HEADS)
def test_a_network_that_is_wrong_and_sure_of_it_learns(kind, head):
    network = build_model("small", "none", head)
    classes = network.get_layer("classes")
    if kind == "image":
        network = build_image_network(network, 2048, 1536)
        classes = network.get_layer("judge")
    kernel = classes.get_weights()[0]
    classes.set_weights([kernel, np.array([-100, 100, -100, -100], np.float32)])
    learner = with_augmentation(with_logits(network))
    assert [v.path for v in learner.trainable_variables] == [
        v.path for v in network.trainable_variables
    ]
    training.compile_learner(learner, Training(), 0.1)
    patches = np.random.default_rng(0).integers(0, 256, (2, *network.input_shape[1:]), np.uint8)
    neutral = np.tile(np.array([[0, 0, 0, 0, 1, 1]], np.float32), (2, 1))
    assert neutral.shape[1] == PARAMETERS
    loss = learner.train_on_batch((patches, neutral), one_hot(np.array([0, 0])))[0]
    assert 90 < loss < 210
    change = classes.get_weights()[1] - [-100, 100, -100, -100]
    assert change[0] > 0.01
    probs = network.predict_on_batch(patches.astype(np.float32))
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-5)


def test_a_network_that_ends_in_anything_else_is_trained_on_its_probabilities():
    network = _old_network("sigmoid", ORDINARY)
    logits = _probs(with_logits(network), ORDINARY)
    assert np.allclose(np.exp(logits), _probs(network, ORDINARY), atol=1e-6)


@pytest.mark.slow
def test_the_same_holds_on_jax():
    if importlib.util.find_spec("jax") is None or keras.backend.backend() == "jax":
        pytest.skip("jax is not installed, or this is it")
    words = ["-m", "pytest", __file__, "-k", "extreme or ordinary or patch"]
    process = commands.start(words, {"KERAS_BACKEND": "jax"})
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert " passed" in out
