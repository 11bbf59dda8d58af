"""The one place that knows which backend runs and how many devices there are.

Everything else uses Keras. TensorFlow replicates with `MirroredStrategy`, JAX with
`keras.distribution.DataParallel`; both average gradients over a global batch. In
training, batch normalisation normalises by the statistics of a device's share of the
batch on TensorFlow, and by those of the global batch on JAX.

Several devices serve to train. Slides and photos are predicted by one: TensorFlow uses
the first, and on JAX each device computes the whole batch.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from bach.core.errors import InputError
from bach.core.inputs import reason
from bach.network import processes as together
from bach.network.memory import keep_memory
from bach.network.quiet import without_notices


@dataclasses.dataclass
class _Devices:
    """The devices of this process, as `start` chose them.

    Attributes:
        count: How many are in use, by all processes.
        kind: "CPU" or "GPU".
        strategy: What replicates a model over them on TensorFlow, if there are several.
    """

    count: int = 1
    kind: str = "CPU"
    strategy: Any = None


_devices = _Devices()

SMALLER_BATCH = "Use a smaller --batch-size, or a device with more memory."


def start(
    devices: int = 0, seed: int = 0, precision: str = "float32", processes: bool = False
) -> dict[str, object]:
    """Choose the devices of this process; call once, before a model is built.

    Args:
        devices: How many to use; 0 means every visible GPU, or one CPU. More than
            one on a machine without GPU makes logical CPU devices (for tests).
        seed: Seeds Python, NumPy and the backend.
        precision: Keras dtype policy: "float32", "mixed_bfloat16" or
            "mixed_float16".
        processes: Join the other processes that the environment names, if it names
            any (see `bach.network.processes`); `devices` is then how many each has.

    Returns:
        What `run.json` records: `backend`, `devices` (how many are in use, by all
        processes), `device` (their kind, "CPU" or "GPU"), `precision`.

    Raises:
        InputError: If there are fewer devices than asked for, or several processes
            where they do not serve.
    """
    global _devices
    with without_notices():  # Keras seeds TensorFlow as well, and loads it for that
        keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision)
    backend = keras.backend.backend()
    if together.count() > 1 and (backend != "jax" or not processes):
        raise InputError(
            "Several processes serve only to train, and only on JAX.\n"
            f"Received: KERAS_DISTRIBUTION_NUM_PROCESSES={together.count()}, "
            f"KERAS_BACKEND={backend}.\n"
            "Unset the KERAS_DISTRIBUTION variables, or set KERAS_BACKEND=jax to train."
        )
    if backend not in ("tensorflow", "jax"):
        raise InputError(
            f"The backend must be tensorflow or jax.\nReceived: KERAS_BACKEND={backend}.\n"
            "Set KERAS_BACKEND to one of them."
        )
    _devices = _start_tensorflow(devices) if backend == "tensorflow" else _start_jax(devices)
    return {
        "backend": backend,
        "devices": _devices.count,
        "device": _devices.kind,
        "precision": precision,
    }


def start_model(seed: int) -> None:
    """Forget earlier models and seed anew, so that a model does not depend on them.

    Keras's `clear_session` alone would also forget the precision and, on JAX, the
    devices: every model would be trained in float32 on one device.
    """
    policy, distribution = keras.config.dtype_policy(), keras.distribution.distribution()
    keras.backend.clear_session()
    keras.config.set_dtype_policy(policy)
    if distribution is not None:
        keras.distribution.set_distribution(distribution)
    keras.utils.set_random_seed(seed)


def check_batch_size(batch_size: int) -> None:
    """Refuse a global batch that does not divide over the devices.

    Raises:
        InputError: If it does not.
    """
    if batch_size % _devices.count:
        raise InputError(
            f"The global batch must divide over the {_devices.count} devices.\n"
            f"Received: --batch-size={batch_size}. Use a multiple of {_devices.count}."
        )


def count() -> int:
    """How many devices are in use, by all processes."""
    return _devices.count


def scope() -> contextlib.AbstractContextManager:
    """Context in which models must be built to be replicated."""
    return contextlib.nullcontext() if _devices.strategy is None else _devices.strategy.scope()


def jit() -> bool | str:
    """Whether to compile steps with XLA.

    On a CPU, TensorFlow's own convolutions are many times faster than XLA's.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            return False
    return "auto"


@contextlib.contextmanager
def enough_memory(received: str, remedy: str) -> Iterator[None]:
    """Say of a body that runs out of memory what to do.

    Args:
        received: What asked for so much.
        remedy: What to do, a sentence.

    Raises:
        InputError: If it does.
    """
    try:
        yield
    except Exception as error:  # TensorFlow's and JAX's own, by what they call it
        words = ("ResourceExhausted", "RESOURCE_EXHAUSTED")
        said = f"{type(error).__name__} {error}"
        if not isinstance(error, MemoryError) and not any(word in said for word in words):
            raise
        raise InputError(
            f"What goes through the network at once must fit into memory.\n"
            f"Received: {received}; {reason(error)}.\n{remedy}"
        ) from error


def fuse(function: Callable) -> Callable:
    """Compile a function of tensors with XLA, into as few passes over memory as it can.

    For arithmetic on pixels, whose time is that of the memory; on a CPU too, where `jit`
    says no for the step that it is part of.

    Args:
        function: Of tensors of fixed shape, in Keras's operations.

    Returns:
        A function of the same; the function itself where TensorFlow was built without XLA.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True) if _has_xla() else function
    import jax

    return jax.jit(function)


@functools.cache
def _has_xla() -> bool:
    import tensorflow as tf

    try:
        tf.function(lambda x: x + 1, jit_compile=True)(tf.constant(0))
    except (tf.errors.OpError, ValueError):
        return False
    return True


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


def compiled(model: keras.Model, dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """A model's forward pass, compiled once for inputs of any size.

    Keras traces a TensorFlow model anew for the first two sizes that it sees, and keeps
    both: seconds and tens of megabytes each for a large network.

    Args:
        model: A model whose input has an open height and width.
        dtype: What it will be given, "uint8" or "float32".

    Returns:
        A function from a batch to the model's output, both arrays.
    """
    model.compile(jit_compile=jit())
    if keras.backend.backend() != "tensorflow":
        return lambda inputs: np.asarray(model.predict_on_batch(inputs))
    import tensorflow as tf

    function = tf.function(
        lambda inputs: model(inputs, training=False),
        input_signature=[tf.TensorSpec(model.input_shape, dtype)],
        jit_compile=bool(model.jit_compile),
    )
    return lambda inputs: function(inputs).numpy()


def _start_tensorflow(devices: int) -> _Devices:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # set already in this process
            tf.config.experimental.set_memory_growth(gpu, True)
    kind = "GPU" if gpus else "CPU"
    count = devices or len(gpus) or 1
    if gpus and devices > len(gpus):
        raise _too_few(devices, len(gpus), kind)
    if not gpus:
        keep_memory()
        if count > 1:
            _make_logical_devices(count)
    names = [f"{kind}:{index}" for index in range(count)]
    return _Devices(count, kind, tf.distribute.MirroredStrategy(names) if count > 1 else None)


def _make_logical_devices(count: int) -> None:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError as error:  # TensorFlow has placed something already
        there = len(tf.config.list_logical_devices("CPU"))
        if there < count:
            raise _too_few(count, there, "CPU") from error


def _start_jax(devices: int) -> _Devices:
    import jax

    if devices > 1 or together.count() > 1:
        # Has an effect only before JAX is first used; with GPUs it changes nothing.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", max(devices, 1))
    if together.count() > 1:
        keras.distribution.initialize()
    kind, local = jax.devices()[0].platform.upper(), jax.local_device_count()
    count = devices or (local if kind != "CPU" else 1)
    if count > local:
        raise _too_few(count, local, kind)
    if together.count() > 1 and count < local:
        raise InputError(
            "Of several processes, each must use all devices that it sees.\n"
            f"Received: --devices={devices}, visible: {local} {kind}. Use --devices={local}."
        )
    count *= together.count()
    if count > 1:
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(
                devices=keras.distribution.list_devices()[:count], auto_shard_dataset=False
            )
        )
    return _Devices(count, kind)


def _too_few(wanted: int, visible: int, kind: str) -> InputError:
    text = f"There must be as many devices as asked for.\nReceived: --devices={wanted}, "
    text += f"visible: {visible} {kind}.\nAsk for {visible}"
    if kind == "CPU":
        text += "; or start a new process, for logical devices are made before anything runs"
    return InputError(f"{text}.")
