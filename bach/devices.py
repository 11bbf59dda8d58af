"""The one place that knows which backend runs and how many devices there are.

Everything else uses Keras. TensorFlow replicates with `MirroredStrategy`, JAX with
`keras.distribution.DataParallel`; both average gradients over a global batch.
"""

import contextlib
import ctypes
import os

import keras
import numpy as np

from bach.runs import InputError, log

# Options of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_strategy = None
_count = 1


def start(devices: int = 0, seed: int = 0, precision: str = "float32") -> int:
    """Choose the devices of this process; call once, before a model is built.

    Args:
        devices: How many to use; 0 means every visible GPU, or one CPU. More than
            one on a machine without GPU makes logical CPU devices (for tests).
        seed: Seeds Python, NumPy and the backend.
        precision: Keras dtype policy: "float32", "mixed_bfloat16" or
            "mixed_float16".

    Returns:
        The number of devices in use.

    Raises:
        InputError: If there are fewer GPUs than asked for.
    """
    global _strategy, _count
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        count, kind, _strategy = _start_tensorflow(devices)
    elif backend == "jax":
        count, kind = _start_jax(devices)
    else:
        raise InputError(
            f"The backend must be tensorflow or jax. Received: KERAS_BACKEND={backend}."
        )
    log.info("devices: %d %s (%s, %s)", count, kind, backend, precision)
    _count = count
    return count


def check_batch_size(batch_size: int) -> None:
    """Refuse a global batch that does not divide over the devices.

    Raises:
        InputError: If it does not.
    """
    if batch_size % _count:
        raise InputError(
            f"The global batch must divide over the {_count} devices.\n"
            f"Received: --batch-size={batch_size}. Use a multiple of {_count}."
        )


def scope() -> contextlib.AbstractContextManager:
    """Context in which models must be built to be replicated."""
    return contextlib.nullcontext() if _strategy is None else _strategy.scope()


def jit() -> bool | str:
    """Whether to compile steps with XLA.

    On a CPU, TensorFlow's own convolutions are many times faster than XLA's.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            return False
    return "auto"


def call(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """Run a model once, in the way that starts soonest.

    TensorFlow runs it operation by operation: tracing a large network takes many times
    as long as running it. JAX would compile every operation for itself.

    Args:
        model: Any model.
        inputs: A batch for it.

    Returns:
        float32 output.
    """
    if keras.backend.backend() == "tensorflow":
        outputs = model(inputs, training=False)
    else:
        outputs = model.predict_on_batch(inputs)
    return keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32"))


def refresh_batch_norm(model: keras.Model, batches: list[np.ndarray]) -> None:
    """Estimate batch-normalisation statistics anew, with the weights as they are.

    The moving averages lag behind weights that still change: 176 steps from scratch
    left Inception-ResNet-v2 at a held-out accuracy of 0.17 with them and at 0.52 with
    statistics estimated anew. The averages are set to zero, the batches are run in
    training mode, and the zero they started from is divided out; that is exact, for
    an exponential average over n batches has weights that sum to 1 - momentum**n.

    Args:
        model: Model to refresh, in place.
        batches: Network inputs `(batch, 299, 299, 3)`, at least one.
    """
    norms = [x for x in flat_layers(model) if isinstance(x, keras.layers.BatchNormalization)]
    norms = [x for x in norms if x.trainable]
    if not norms or not batches:
        return
    # Only the statistics may change: dropout's random state is put back.
    kept = [
        (v, keras.ops.convert_to_numpy(v))
        for x in flat_layers(model)
        if not isinstance(x, keras.layers.BatchNormalization)
        for v in x.non_trainable_variables
    ]
    with scope():
        for norm in norms:
            norm.moving_mean.assign(np.zeros(norm.moving_mean.shape, np.float32))
            norm.moving_variance.assign(np.zeros(norm.moving_variance.shape, np.float32))
        _forward_training(model, batches)
        for norm in norms:
            share = 1 - norm.momentum ** len(batches)
            for variable in (norm.moving_mean, norm.moving_variance):
                variable.assign(keras.ops.convert_to_numpy(variable) / share)
        for variable, value in kept:
            variable.assign(value)


def flat_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """All layers of a model, those of nested models included."""
    found = []
    for layer in model.layers:
        found += flat_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return found


def _forward_training(model: keras.Model, batches: list[np.ndarray]) -> None:
    """Run batches in training mode, which moves the statistics and nothing else."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Kept on the model, so that a later epoch does not trace it again.
        if getattr(model, "_bach_forward", None) is None:
            model._bach_forward = tf.function(
                lambda x: model(x, training=True), reduce_retracing=True
            )
        for batch in batches:
            model._bach_forward(tf.cast(batch, tf.float32))
        return
    import jax

    if getattr(model, "_bach_forward", None) is None:
        model._bach_forward = jax.jit(
            lambda t, n, x: model.stateless_call(t, n, x, training=True)[1]
        )
    trainable = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]
    for batch in batches:
        state = model._bach_forward(trainable, state, batch.astype(np.float32))
    for variable, value in zip(model.non_trainable_variables, state, strict=True):
        variable.assign(value)


def _start_tensorflow(devices: int):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # set already in this process
            tf.config.experimental.set_memory_growth(gpu, True)
    if not gpus:
        _keep_memory()
    if gpus:
        if devices > len(gpus):
            raise InputError(
                f"There are fewer GPUs than asked for.\n"
                f"Received: --devices={devices}, visible: {len(gpus)}."
            )
        names = [f"GPU:{index}" for index in range(devices or len(gpus))]
    elif devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        try:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * devices
            )
        except RuntimeError as error:  # TensorFlow has placed something already
            if len(tf.config.list_logical_devices("CPU")) < devices:
                raise InputError(
                    f"Logical devices must be made before anything else runs ({error}).\n"
                    f"Received: --devices={devices}. Start a new process."
                ) from error
        names = [f"CPU:{index}" for index in range(devices)]
    else:
        return 1, "CPU", None
    strategy = tf.distribute.MirroredStrategy(names) if len(names) > 1 else None
    return len(names), names[0].split(":")[0], strategy


def _keep_memory() -> None:
    """Have the C library keep memory that it was given back, on Linux.

    By default it returns every large block to the system, and each operation of a
    network that runs on the CPU gets its feature maps anew, page by page: a third of the
    time of a large region. One heap, for what one thread frees another asks for.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)):
            mallopt(option, value)


def _start_jax(devices: int):
    import jax

    if devices > 1:
        # Has an effect only before JAX is first used; with GPUs it changes nothing.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", devices)
    visible = jax.devices()
    kind = visible[0].platform.upper()
    count = devices or (len(visible) if kind != "CPU" else 1)
    if count > len(visible):
        raise InputError(
            f"There are fewer devices than asked for.\n"
            f"Received: --devices={devices}, visible: {len(visible)} {kind}."
        )
    if count > 1:
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(
                devices=[f"{kind.lower()}:{i}" for i in range(count)], auto_shard_dataset=False
            )
        )
    return count, kind
