"""The one place that knows which backend runs and how many devices there are.

Everything else uses Keras. TensorFlow replicates with `MirroredStrategy`, JAX with
`keras.distribution.DataParallel`; both average gradients over a global batch. In
training, batch normalisation normalises by the statistics of a device's share of the
batch on TensorFlow, and by those of the global batch on JAX.

Several processes, on one machine or on many that share a disk, train one model on JAX.
Each runs the same command with Keras's own variables set:

    KERAS_BACKEND=jax KERAS_DISTRIBUTION_JOB_ADDRESSES=host0:1234 \\
    KERAS_DISTRIBUTION_NUM_PROCESSES=2 KERAS_DISTRIBUTION_PROCESS_ID=0 \\
        python train_part_a.py ...

Each gives its share of every global batch to its devices; only process 0 writes files.
"""

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator

import keras
import numpy as np

from bach.core.errors import InputError
from bach.core.files import first_process

# Options of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

READ_AHEAD = 8  # batches

_strategy = None
_count = 1
_processes = 1


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
            any; `devices` is then how many each of them has.

    Returns:
        What `run.json` records: `backend`, `devices` (how many are in use, by all
        processes), `device` (their kind, "CPU" or "GPU"), `precision`.

    Raises:
        InputError: If there are fewer GPUs than asked for, or several processes where
            they do not serve.
    """
    global _strategy, _count, _processes
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision)
    backend = keras.backend.backend()
    _processes = int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", 1))
    if _processes > 1 and (backend != "jax" or not processes):
        raise InputError(
            "Several processes serve only to train, and only on JAX.\n"
            f"Received: KERAS_DISTRIBUTION_NUM_PROCESSES={_processes}, KERAS_BACKEND={backend}.\n"
            "Unset the KERAS_DISTRIBUTION variables, or set KERAS_BACKEND=jax to train."
        )
    if backend == "tensorflow":
        count, kind, _strategy = _start_tensorflow(devices)
    elif backend == "jax":
        count, kind = _start_jax(devices)
    else:
        raise InputError(
            f"The backend must be tensorflow or jax. Received: KERAS_BACKEND={backend}."
        )
    _count = count
    return {"backend": backend, "devices": count, "device": kind, "precision": precision}


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
    if batch_size % _count:
        raise InputError(
            f"The global batch must divide over the {_count} devices.\n"
            f"Received: --batch-size={batch_size}. Use a multiple of {_count}."
        )


def share(size: int) -> slice:
    """The part of a global batch of `size` that this process gives to its devices."""
    if _processes == 1:
        return slice(0, size)
    index = int(os.environ["KERAS_DISTRIBUTION_PROCESS_ID"])
    return slice(index * size // _processes, (index + 1) * size // _processes)


def count() -> int:
    """How many devices are in use, by all processes."""
    return _count


def processes() -> int:
    """How many processes train the model together."""
    return _processes


@contextlib.contextmanager
def first_process_first(name: str) -> Iterator[None]:
    """Context that the other processes enter when process 0 has left it.

    Args:
        name: Anything; the same in all processes.
    """
    if _processes == 1:
        yield
        return
    from jax.experimental import multihost_utils

    if not first_process():
        multihost_utils.sync_global_devices(name)
    yield
    if first_process():
        multihost_utils.sync_global_devices(name)


def feed(batches: keras.utils.PyDataset):
    """What `fit` and `predict` must be given to see every batch once, in order, read ahead.

    Keras's own way from a `PyDataset` to TensorFlow does neither well. With one worker it
    lets tf.data tune itself, and every epoch waits for the tuning thread to wake, up to a
    minute. With several it keeps what was read ahead of an epoch that was left early, as
    it leaves one before the first on several devices, and the next epoch begins with it.

    Args:
        batches: All of one size; `batches.workers` threads read them.

    Returns:
        A `tf.data.Dataset` on TensorFlow, else the batches as they are.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    like = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), batches[0])
    types = [x.dtype for x in tf.nest.flatten(like)]

    def read(index: tf.Tensor):
        arrays = tf.numpy_function(lambda i: tf.nest.flatten(batches[int(i)]), [index], types)
        arrays = tf.nest.pack_sequence_as(like, arrays)
        return tf.nest.map_structure(lambda a, x: tf.ensure_shape(a, x.shape), arrays, like)

    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = batches.workers
    dataset = tf.data.Dataset.range(len(batches))
    dataset = dataset.map(read, num_parallel_calls=batches.workers, deterministic=True)
    return dataset.prefetch(READ_AHEAD).with_options(options)


def build_metrics(model: keras.Model) -> None:
    """Build loss and metrics of a compiled model before `fit` does.

    On JAX `fit` would read a first batch to build them, and the batches that its threads
    had read ahead by then would come again in the next epoch.
    """
    if keras.backend.backend() != "tensorflow":
        example = np.full((1, *model.output_shape[1:]), 1 / model.output_shape[-1], np.float32)
        model.compute_loss(y=example, y_pred=example)
        model.compute_metrics(None, example, example)
        model.reset_metrics()


def predict(model: keras.Model, batches: keras.utils.PyDataset) -> np.ndarray:
    """What `model.predict` returns, in every process, also if there are several.

    Args:
        model: A compiled model.
        batches: Batches `(patches,)`, all of one size, of this process's share each.
    """
    if _processes == 1:
        return np.asarray(model.predict(feed(batches), verbose=0))
    # Keras's own predict asks for the whole result where only a share of it is.
    import jax
    from jax.experimental import multihost_utils

    forward = jax.jit(lambda t, n, x: model.stateless_call(t, n, x, training=False)[0])
    trainable = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]
    found = []
    for index in range(len(batches)):
        patches = batches[index][0].astype(np.float32)
        layout = keras.distribution.distribution().get_data_layout(patches.shape)
        patches = jax.make_array_from_process_local_data(layout.backend_layout, patches)
        probs = forward(trainable, state, patches)
        found.append(np.asarray(multihost_utils.process_allgather(probs, tiled=True)))
    return np.concatenate(found)


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
    norms = [x for x in _flat_layers(model) if isinstance(x, keras.layers.BatchNormalization)]
    if not norms or not batches:
        return
    # Only the statistics may change: dropout's random state is put back.
    kept = [
        (v, keras.ops.convert_to_numpy(v))
        for x in _flat_layers(model)
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


def _flat_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """All layers of a model, those of nested models included."""
    found = []
    for layer in model.layers:
        found += _flat_layers(layer) if isinstance(layer, keras.Model) else [layer]
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
    time of a large region. One heap, for what one thread frees another asks for. See
    `release_memory` for its end.
    """
    if (library := _c_library()) is not None:
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)):
            library.mallopt(option, value)


def release_memory() -> None:
    """Give back to the system what is not in use; to be called where that pays.

    Regions of other sizes leave holes in the heap that the next one does not fit in;
    kept for good, they would add up over a large slide.
    """
    if (library := _c_library()) is not None:
        library.malloc_trim(0)


def _c_library() -> ctypes.CDLL | None:
    """glibc, or None on another system or with another C library."""
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "malloc_trim") else None
    except OSError:
        return None


def _start_jax(devices: int):
    import jax

    if devices > 1 or _processes > 1:
        # Has an effect only before JAX is first used; with GPUs it changes nothing.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", max(devices, 1))
    if _processes > 1:
        keras.distribution.initialize()
    visible = jax.devices()
    kind = visible[0].platform.upper()
    count = devices or (jax.local_device_count() if kind != "CPU" else 1)
    if count > jax.local_device_count() or (_processes > 1 and count < jax.local_device_count()):
        raise InputError(
            "There must be as many devices as asked for"
            + (", and several processes use all of theirs.\n" if _processes > 1 else ".\n")
            + f"Received: --devices={devices}, visible: {jax.local_device_count()} {kind}."
        )
    count *= _processes
    if count > 1:
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(
                devices=keras.distribution.list_devices()[:count], auto_shard_dataset=False
            )
        )
    return count, kind
