"""Models for other runtimes, by Keras's own export, each believed only after it was asked.

What is written is run by its own runtime on real patches; if its answers differ from Keras's,
nothing is kept.
"""

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from bach.core.errors import InputError
from bach.core.files import atomic_folder, atomic_path
from bach.core.inputs import understood
from bach.core.log import log, step
from bach.core.run import patch_folder, read_record
from bach.core.text import listed
from bach.data import read_photo
from bach.honest.seen import Seen, add_seen
from bach.network import backend
from bach.network.fold_norms import resized_clone
from bach.network.image_network import is_image_network, photo_input
from bach.network.patch_network import load_model, source_of, view_of
from bach.network.predict import check_probabilities, model_files
from bach.network.quiet import without_notices
from bach.network.stores import PatchStore, photo_to_patches, store_exists
from bach.patches import photo_patches
from bach.tasks import task

TOLERANCE = 1e-4  # of a probability
PATCHES = 16  # that both are asked about
_BATCH = 8
_OPENVINO = "model.xml"  # its weights lie beside it

# Steps of the pipeline that a run's model was trained on the patches of, by their option.
_BEFORE = ("part_a_dir", "hard_examples_dir", "model_dir")


class Format(NamedTuple):
    """A format of models.

    Attributes:
        keras: What Keras calls it.
        ending: Ending of its file; "" if it is a folder.
        packages: What must be installed, {module: package}.
        run: Runs a model of it: file and patches, to probabilities batch by batch.
        inner: What Keras writes inside the folder, if it is not the folder itself.
        backends: Those of Keras that it is exported from.
    """

    keras: str
    ending: str
    packages: Mapping[str, str]
    run: Callable[[Path, np.ndarray], Iterator[np.ndarray]]
    inner: str = ""
    backends: tuple[str, ...] = ("tensorflow",)


def _batches(patches: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(patches), _BATCH):
        yield patches[start : start + _BATCH].astype(np.float32)


def _run_savedmodel(path: Path, patches: np.ndarray) -> Iterator[np.ndarray]:
    import tensorflow as tf

    served = tf.saved_model.load(os.fspath(path))
    for batch in _batches(patches):
        yield served.serve(batch).numpy()


def _run_onnx(path: Path, patches: np.ndarray) -> Iterator[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    for batch in _batches(patches):
        yield session.run(None, {given.name: batch})[0]


def _run_litert(path: Path, patches: np.ndarray) -> Iterator[np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=os.fspath(path))
    [given], [answer] = interpreter.get_input_details(), interpreter.get_output_details()
    for batch in _batches(patches):
        interpreter.resize_tensor_input(given["index"], batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], batch)
        interpreter.invoke()
        yield interpreter.get_tensor(answer["index"])


def _run_openvino(path: Path, patches: np.ndarray) -> Iterator[np.ndarray]:
    import openvino

    # By itself it computes in bfloat16 where the processor can: probabilities then differ by 0.04.
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path / _OPENVINO, "CPU", hint)
    for batch in _batches(patches):
        yield compiled(batch)[0]


def _run_keras(path: Path, patches: np.ndarray) -> Iterator[np.ndarray]:
    model = keras.saving.load_model(path, compile=False)
    for batch in _batches(patches):
        yield backend.call(model, batch)


FORMATS = {
    "onnx": Format(
        "onnx", ".onnx", {"tf2onnx": "tf2onnx", "onnxruntime": "onnxruntime"}, _run_onnx
    ),
    "savedmodel": Format(
        "tf_saved_model",
        "",
        {"tensorflow": "tensorflow"},
        _run_savedmodel,
        backends=("tensorflow", "jax"),
    ),
    "litert": Format("litert", ".tflite", {"ai_edge_litert": "ai-edge-litert"}, _run_litert),
    "openvino": Format("openvino", "", {"openvino": "openvino"}, _run_openvino, _OPENVINO),
}

# What Keras itself loads, as it lies on Hugging Face.
_HUB = Format("keras", "", {}, _run_keras, backends=("tensorflow", "jax"))


class Source(NamedTuple):
    """A model that is to be exported.

    Attributes:
        file: Its file.
        model: The model, in float32.
        run: Run folder of the training that made it, or None.
        fold: Number of its fold; -1 if nothing was held out, or if that is not known.
    """

    file: Path
    model: keras.Model
    run: Path | None
    fold: int

    @property
    def um_per_px(self) -> float:
        """Scale of what the model sees."""
        whole = is_image_network(self.model)
        return task().mpp / (1 if whole else view_of(self.model).zoom)


def open_source(path: str | os.PathLike, fold: int | None = None) -> Source:
    """Load the model that is to be exported.

    Args:
        path: A `.keras` file, or a run folder.
        fold: Which of a run; may be left out if there is one.

    Raises:
        InputError: If there is none, several, or it cannot be loaded.
    """
    files = model_files(path)
    if fold is not None:
        files = {key: file for key, file in files.items() if key == fold}
    if len(files) != 1:
        found = listed(model_files(path).values()) or "no finished model"
        raise InputError(
            f"There must be one model to export: a .keras file, or a run with --fold.\n"
            f"Received: {path}{'' if fold is None else f' --fold {fold}'}; there: {found}.\n"
            "Name the file of one of them."
        )
    [file] = files.values()
    model = load_model(file)
    if not is_image_network(model):
        view_of(model)  # refuses what is no classifier of ours
    run, name = file.parent.parent, file.parent.name.removeprefix("fold_")
    known = (run / "run.json").is_file()
    return Source(
        file, _in_float32(model), run if known else None, int(name) if name.isdigit() else -1
    )


def _in_float32(model: keras.Model) -> keras.Model:
    """A model that computes in float32, as it is exported; those of mixed precision are copied."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model
    log.info("%s computes in half precision: exported in float32", source_of(model))
    return resized_clone(model, *model.input_shape[1:3])


# Patches that both are asked about


def sample_patches(
    source: Source, store: str | os.PathLike | None = None, photos: Sequence[str] = ()
) -> np.ndarray:
    """Real patches, as the model takes them.

    Args:
        source: The model.
        store: A patch store, or a run folder that has one; by default that of the model's run,
            or of the steps before it.
        photos: Photos at 0.42 um per px to cut patches from instead.

    Returns:
        uint8 `(n, rows, cols, 3)`, n up to 16; spread over the store or photos.

    Raises:
        InputError: If there are none, or they are not such as the model sees.
    """
    if photos:
        patches = _of_photos(source.model, photos)
    else:
        folder = Path(store) if store else _store_of(source)
        if not store_exists(folder) and store_exists(folder / "patches"):
            folder = folder / "patches"
        every = PatchStore(folder).patches
        patches = np.array(every[np.linspace(0, len(every) - 1, PATCHES).astype(int)])
        log.info("%d patches of %s", len(patches), folder)
    wanted = source.model.input_shape[1:3]
    if wanted[0] is not None and patches.shape[1:3] != wanted:
        raise InputError(
            f"Patches to check the model with must be of {wanted[0]}x{wanted[1]} px.\n"
            f"Received: patches of {patches.shape[1]}x{patches.shape[2]} px.\n"
            "Name the --patches of the run that the model is of, or --photos."
        )
    return patches


def _store_of(source: Source) -> Path:
    """The patches that a model was trained on, as its run tells."""
    record = (read_record(source.run) if source.run else None) or {}
    arguments = record.get("arguments") or {}
    began = Path(record.get("folder") or ".")
    runs = [source.run] if source.run else []
    for name in _BEFORE:
        if arguments.get(name):
            runs += [Path(arguments[name]), began / arguments[name]]
    for run in runs:
        if store_exists(folder := patch_folder(run)):
            return folder
    raise InputError(
        "An exported model is believed only after it was asked about real patches.\n"
        f"Received: {source.file}, whose run has no patches (looked into: "
        f"{listed(runs) or 'none, for no run.json lies above it'}).\n"
        "Name a folder of patches or a run with --patches, or photos with --photos."
    )


def _of_photos(model: keras.Model, photos: Sequence[str]) -> np.ndarray:
    parts: list[np.ndarray] = []
    whole = is_image_network(model)
    for path in photos:
        photo = read_photo(path)
        if whole:
            parts.append(photo_input(photo, model.input_shape[1:3])[None])
            continue
        if min(photo.shape[:2]) < task().patch_px:
            raise InputError(
                f"A photo must have {task().patch_px} px along each side.\n"
                f"Received: {path}, {photo.shape[1]}x{photo.shape[0]} px.\nName another one."
            )
        table = photo_patches(Path(path).stem, photo.shape[1], photo.shape[0], None)
        parts.append(photo_to_patches(photo, table, view_of(model)))
    every = np.concatenate(parts)
    few = np.unique(np.linspace(0, len(every) - 1, PATCHES).astype(int))
    log.info("%d patches of %s", len(few), listed(photos))
    return every[few]


# Writing


def require_format(name: str, out: Path | None = None) -> None:
    """Refuse a format that cannot be written or run here, before anything slow.

    Args:
        name: Key of `FORMATS`.
        out: What is to be written, if the user named it.

    Raises:
        InputError: If a package is missing, or Keras's backend does not export it, or the
            name has another ending than that of the format.
    """
    wanted = FORMATS[name]
    _require_packages(f"--format {name}", wanted.packages)
    if (used := keras.backend.backend()) not in wanted.backends:
        raise InputError(
            f"Keras must run on {' or '.join(wanted.backends)} to export --format {name}.\n"
            f"Received: KERAS_BACKEND={used}.\n"
            "Set KERAS_BACKEND=tensorflow: a model file is the same for all backends."
        )
    if out is not None and wanted.ending and out.suffix != wanted.ending:
        raise InputError(
            f"--out must end in {wanted.ending} for --format {name}.\nReceived: --out={out}.\n"
            "Correct the name."
        )


def require_hub() -> None:
    """Refuse to upload where the package for that is missing.

    Raises:
        InputError: If it is.
    """
    _require_packages("--to", {"huggingface_hub": "huggingface_hub"})


def _require_packages(option: str, packages: Mapping[str, str]) -> None:
    missing = [
        package for module, package in packages.items() if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise InputError(
            f"{option} needs packages that are not installed.\n"
            f"Received: no {' and no '.join(missing)}.\n"
            f"Run: pip install {' '.join(missing)}"
        )


def default_out(source: Source, name: str) -> Path:
    """Where a model is written if nobody says: beside its file."""
    ending = FORMATS[name].ending or f"_{name}"
    return source.file.with_name(source.file.stem + ending)


def export_model(source: Source, name: str, out: Path, patches: np.ndarray) -> float:
    """Write a model in another format, if it answers there as in Keras.

    Args:
        source: The model.
        name: Key of `FORMATS`.
        out: File or folder to write, new.
        patches: What both are asked about.

    Returns:
        The largest difference of a probability.

    Raises:
        InputError: If it cannot be exported, or differs by more than 1e-4; nothing is kept.
    """
    wanted = FORMATS[name]

    def write(place: Path) -> None:
        target = place / wanted.inner if wanted.inner else place
        must = f"be a model that Keras exports as {name}"
        with understood(source.file, must, "Export it in another --format."), _quietly():
            source.model.export(os.fspath(target), format=wanted.keras, verbose=False)

    return _write_checked(source, wanted, out, patches, write)


def save_for_hub(source: Source, out: Path, patches: np.ndarray, card: str, seen: Seen) -> float:
    """Write a folder as Hugging Face has it: Keras's own saving, with a model card.

    Args:
        source: The model.
        out: Folder to write, new.
        patches: What the saved model is asked about.
        card: The model card.
        seen: What the model has seen; stands beside the weights.

    Returns:
        The largest difference of a probability.

    Raises:
        InputError: If it cannot be written, or answers differently once loaded.
    """

    def write(place: Path) -> None:
        keras.saving.save_model(source.model, place, zipped=False)
        (place / "README.md").write_text(card, encoding="utf-8")
        add_seen(place, seen)

    return _write_checked(source, _HUB, out, patches, write)


def upload(folder: Path, repository: str) -> None:
    """Upload a folder of `save_for_hub`; a repository that is new is private.

    Args:
        folder: The folder.
        repository: OWNER/NAME.

    Raises:
        InputError: If it cannot be uploaded.
    """
    # Comes with KerasHub, or alone; it asks for no more than a token.
    import huggingface_hub

    remedy = (
        "Log in with `hf auth login`, and check the name and the network; or write the folder "
        "with --out, and upload it elsewhere."
    )
    with understood(f"hf://{repository}", "be a place that can be uploaded to", remedy):
        hub = huggingface_hub.HfApi(library_name="keras", library_version=keras.__version__)
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Save model using Keras."
        )


def _write_checked(
    source: Source,
    wanted: Format,
    out: Path,
    patches: np.ndarray,
    write: Callable[[Path], None],
) -> float:
    """Write beside, ask, and keep it only if the answers are the same."""
    with step(f"{source.file} -> {out}") as notes:
        want = np.concatenate([backend.call(source.model, x) for x in _batches(patches)])
        check_probabilities(want, source.model, ["the patches"])
        place = atomic_path if wanted.ending else atomic_folder
        with place(out) as temporary:
            write(temporary)
            must = f"be a model that its runtime reads as {wanted.keras}"
            with understood(source.file, must, "Export it in another --format."), _quietly():
                got = np.concatenate(list(wanted.run(temporary, patches)))
            same_shape = got.shape == want.shape and np.isfinite(got).all()
            difference = float(np.abs(got - want).max()) if same_shape else np.inf
            if not difference <= TOLERANCE:
                raise InputError(
                    f"An exported model must give Keras's probabilities to {TOLERANCE:g}.\n"
                    f"Received: a difference of {difference:.2g} on {len(patches)} patches.\n"
                    "Nothing was kept. Export in another --format, or on another machine."
                )
        notes.append(f"differs from Keras by {difference:.1e} at most on {len(patches)} patches")
    return difference


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hold back what converters say of NumPy, of unused layers, and of themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), without_notices():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
