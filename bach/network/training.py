"""Training: one fit, with checkpoints that survive anything.

A fold's folder holds `last.keras`, `best.keras`, `history.csv`, and, until the fold
is finished, `state.npz`: everything that is needed to go on as if nothing had
happened.
"""

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from bach.charts import STOPPED
from bach.core.drawings import contact_sheet
from bach.core.errors import InputError
from bach.core.files import (
    atomic_path,
    fingerprint,
    first_process,
    read_array,
    read_json,
    write_array,
    write_json,
)
from bach.core.inputs import reason
from bach.core.log import log
from bach.core.options import Training, TrainingScript
from bach.core.pictures import write_png
from bach.core.tables import read_table, write_csv
from bach.honest.seen import NOTHING, Seen
from bach.honest.splits import ALWAYS_TRAIN
from bach.network import backend, foundation, processes, watch
from bach.network.augment import Augmentation, with_augmentation
from bach.network.batch_norm import RefreshBatchNorm, freeze_batch_norm
from bach.network.batches import Batches, feed
from bach.network.callbacks import (
    Checkpoint,
    EvaluateHeldOut,
    LogEpoch,
    Progress,
    StoppedLearning,
    UseAverages,
    save_model,
)
from bach.network.fold_norms import fast_clone
from bach.network.frozen import fit_top, groups_of
from bach.network.patch_network import check_backbone, check_view, load_model, with_logits
from bach.network.predict import predict_batches, prepare
from bach.network.stores import PatchStore
from bach.patches import PLAIN_VIEW, View
from bach.tasks import decisive, task

MOMENTUM = 0.9  # Kwok 2018, section 4.2
WEIGHT_DECAY = 0.004  # Keras's default for AdamW

_INPUTS = "fold.json"


def train(
    model: keras.Model,
    training: Batches,
    heldout: Batches | None,
    settings: Training,
    folder: str | os.PathLike,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    seen: Seen = NOTHING,
) -> pd.DataFrame:
    """Train a model, or go on with it where `folder` holds its state.

    Args:
        model: From `build_model`, built within `backend.scope()`. Trained in place;
            with `ema` it ends with the averaged weights.
        training: Batches with augmentation.
        heldout: Batches without, or None; never trained on.
        settings: See `bach.core.options.Training`.
        folder: Where checkpoints and history are written.
        callbacks: More of Keras's callbacks; they come after an epoch is saved.
        seen: What the model will have seen; stands in its files.

    Returns:
        The history, one row per epoch.

    Raises:
        InputError: If the settings or the state in `folder` do not fit, or the loss is
            not finite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with backend.scope():
        model.compile(jit_compile=backend.jit())
        learner = with_augmentation(with_logits(model), augmentation_of(settings).parameters)
    compile_learner(learner, settings, learning_rate(settings, training.batch_size, len(training)))
    checkpoint = Checkpoint(
        model, folder, settings.monitor, settings.monitor_mode, settings.keep_every, seen
    )
    history = checkpoint.restore(learner)
    done = len(history)
    if done:
        log.info("going on after epoch %d of %d", done, settings.epochs)
    elif processes.count() == 1:
        _check_untrained(model, training)
    training.start_epoch(done)
    ours = [Progress(training, settings.epochs), UseAverages()]
    if settings.bn_patches and not settings.frozen_bn:
        ours.append(RefreshBatchNorm(model, training, settings.bn_patches, training.seed))
    evaluate = None if heldout is None else EvaluateHeldOut(model, heldout)
    ours += [] if evaluate is None else [evaluate]
    stopped = StoppedLearning(model, training, settings.label_smoothing, checkpoint)
    ours += [stopped, checkpoint, LogEpoch(settings.epochs)]
    watching = watch.watchers(folder, checkpoint.history, settings, evaluate)
    with backend.enough_memory(f"--batch-size={training.batch_size}", backend.SMALLER_BATCH):
        if not done:
            _draw_batch(learner, training, folder / "batch.png")
        if done < settings.epochs:
            learner.fit(
                feed(training),
                initial_epoch=done,
                epochs=settings.epochs,
                callbacks=[*ours, *watching, *callbacks],
                verbose=0,
                shuffle=False,  # Batches shuffles, by seed and epoch
            )
        else:
            # What `fit` does at its end: the averages, if kept, become the weights.
            learner.optimizer.finalize_variable_values(learner.trainable_variables)
            for watcher in watching:  # what a kill kept from being written
                watcher.on_train_begin()
                watcher.on_train_end()
    return pd.DataFrame(checkpoint.history)


def augmentation_of(args: Training) -> Augmentation:
    """How training patches are changed."""
    return Augmentation(args.hue, args.saturation, args.value, args.contrast)


@dataclasses.dataclass(frozen=True)
class Fold:
    """A model to be trained.

    Attributes:
        number: Number of the fold; seeds it. -1 for a model that nothing is held out from.
        folder: The fold's folder.
        parts: Stores to train on, each with the rows to use; the first is of photos.
        heldout: Store and rows held out, or None.
        build: Makes the model, given what it is to see of the patches, and whether it takes
            whole photos as well.
        start: File of the model that the training starts from, or None.
        seen: What the model will have seen, with all that the model it starts from has.
        patients: Patient of each image where that is known: `--train top` chooses by patients.
    """

    number: int
    folder: Path
    parts: Sequence[tuple[PatchStore, np.ndarray]]
    heldout: tuple[PatchStore, np.ndarray] | None
    build: Callable[[View, bool], keras.Model]
    start: Path | None = None
    seen: Seen = NOTHING
    patients: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def inputs(self, args: TrainingScript) -> dict[str, str]:
        """Fingerprint of what the fold's model depends on, by content."""
        used = [*self.parts, *([] if self.heldout is None else [self.heldout])]
        chosen = [
            {"pixels": store.record, "rows": store.table.iloc[rows].to_csv(index=False)}
            for store, rows in used
        ]
        settings = {**decisive(args), "fold": self.number, "patches": chosen}
        return fingerprint({"start": self.start}, settings)

    def batches(self, args: TrainingScript) -> tuple[Batches, Batches | None]:
        """Batches to train on, and those held out."""
        known = [store.select(rows) for store, rows in self.parts]
        known[0] = known[0]._replace(per_image=args.patches_per_photo)
        augmentation = augmentation_of(args)
        training = Batches(known, args.batch_size, self.seed(args), augmentation)
        return training, self.heldout_batches(args)

    def heldout_batches(self, args: TrainingScript) -> Batches | None:
        """Batches of what is held out."""
        if self.heldout is None:
            return None
        store, rows = self.heldout
        return Batches([store.select(rows)], args.batch_size, self.seed(args))

    def seed(self, args: TrainingScript) -> int:
        """Seed of everything random, so that a fold does not depend on others."""
        return args.seed * 1000 + self.number + 1


def train_fold(
    args: TrainingScript, fold: Fold, hooks: watch.Hooks | None = None
) -> np.ndarray | None:
    """Build and train the model of one fold, or load what is there of it.

    Writes `fold.json` (fingerprint of what the model depends on), `model.keras` (the last or
    the best epoch, by `--keep`) and, last, `heldout.npy`. A finished fold is not trained
    again, wherever it was trained: its folder may be that of the same fold of a run on
    another machine.

    Args:
        args: Options of a training script.
        fold: What to train.
        hooks: Who else watches the training.

    Returns:
        Probabilities of the held-out patches `(n, classes)`, or None without any.

    Raises:
        InputError: If the folder holds a fold of other patches or settings.
    """
    backend.check_batch_size(args.batch_size)
    inputs = fold.inputs(args)
    _check_inputs(fold.folder, inputs)
    done = fold.folder / "heldout.npy"
    if done.exists():
        log.info("%s: finished before", fold.folder.name.replace("_", " "))
        return None if fold.heldout is None else _read_heldout(done, len(fold.heldout[1]))
    write_json(fold.folder / _INPUTS, inputs)
    backend.start_model(fold.seed(args))
    what = what_to_train(args)
    view, whole_photos = _common_view([store for store, _ in fold.parts], what)
    with backend.scope():
        model = fold.build(view, whole_photos)
        if what == "lora":
            count = foundation.enable_lora(model)
            log.info("LoRA: %s numbers of the backbone are trained", f"{count:,}")
        elif what == "all":
            foundation.unfreeze(model)
        if args.frozen_bn and what != "top":
            freeze_batch_norm(model)
    number = None if fold.number == ALWAYS_TRAIN else fold.number
    trackers = [] if hooks is None else hooks.of(number, fold.folder)
    if what == "top":
        return _train_top(args, fold, model, trackers)
    training, heldout = fold.batches(args)
    train(model, training, heldout, args, fold.folder, trackers, fold.seen)
    return _finish_fold(fold.folder, "last" if heldout is None else args.keep, heldout)


def what_to_train(settings: Training) -> str:
    """all, top or lora: as it is asked for, or as the backbone suggests."""
    frozen = foundation.frozen_by_default(settings.backbone)
    return settings.train or ("top" if frozen else "all")


def _train_top(
    args: TrainingScript,
    fold: Fold,
    model: keras.Model,
    trackers: Sequence[keras.callbacks.Callback],
) -> np.ndarray | None:
    """Fit the last layer alone, see `frozen`."""
    parts = [
        (store, rows, groups_of(store.table.iloc[rows], fold.patients))
        for store, rows in fold.parts
    ]
    history = fit_top(model, parts, args.batch_size, args.orientations)
    save_model(model, fold.folder / "last.keras", fold.seen)
    write_csv(history, fold.folder / "history.csv")
    heldout = fold.heldout_batches(args)

    # Who watches is told of one epoch.
    evaluate = None if heldout is None else EvaluateHeldOut(model, heldout)
    row = history.to_dict("records")[0]
    watching = [*watch.watchers(fold.folder, [row], args, evaluate), *trackers]
    told = keras.callbacks.CallbackList(watching, model=model, epochs=1)
    told.on_train_begin()
    told.on_epoch_begin(0)
    logs = {name: value for name, value in row.items() if name != "epoch"}
    probs = _finish_fold(fold.folder, "last", heldout)
    if evaluate is not None and probs is not None:
        evaluate.look_at(probs, logs)
    told.on_epoch_end(0, logs)
    told.on_train_end()
    return probs


def _read_heldout(file: Path, count: int) -> np.ndarray:
    """Probabilities of a finished fold's `count` held-out patches, `(count, classes)`."""
    remedy = f"Delete {file.parent} to train the fold again."
    probs = read_array(file, remedy, dimensions=2)
    if probs.shape != (count, task().count) or not np.isfinite(probs).all():
        raise InputError(
            f"{file} must hold finite probabilities of {count:,} held-out patches.\n"
            f"Received: an array of shape {probs.shape}, {np.isfinite(probs).mean():.0%} of it "
            f"finite.\n{remedy}"
        )
    return probs


def stopped_learning(run: Path) -> dict[str, list[str]]:
    """The folds whose network had stopped learning by their histories, for the metrics."""
    files = sorted(run.glob("fold_*/history.csv"))
    found = [file.parent.name.removeprefix("fold_") for file in files if _has_stopped(file)]
    return {STOPPED: found} if found else {}


def _has_stopped(history: Path) -> bool:
    return STOPPED in read_table(history).columns


def _check_inputs(folder: Path, now: dict[str, str]) -> None:
    """Refuse a fold's folder that is of something else, before anything is written to it."""
    file = folder / _INPUTS
    if not file.exists():
        if (folder / "heldout.npy").exists() or (folder / "state.npz").exists():
            raise InputError(
                "A fold must say what it was trained on.\n"
                f"Received: {folder} without {_INPUTS}: an earlier version trained it.\n"
                "Name another --run-dir, or delete the folder."
            )
        return
    then = read_json(file, "Delete the folder to train the fold again.")
    other = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if other:
        what = {"settings": "patches, rows or options", "start": "model that it starts from"}
        raise InputError(
            "A fold must be gone on with as it was begun.\n"
            f"Received: {folder}, begun with {' and '.join(f'another {what[x]}' for x in other)}.\n"
            "Use the photos, folds and options of then; or delete the folder to train it again."
        )


def _finish_fold(folder: Path, keep: str, heldout: Batches | None) -> np.ndarray | None:
    """Write the model that is kept of a fold and what it says of what was held out."""
    with (
        processes.first_process_first(f"model of {folder.name}"),
        atomic_path(folder / "model.keras") as temporary,
    ):
        shutil.copyfile(folder / f"{keep}.keras", temporary)
    probs = np.zeros((0, task().count), np.float32)
    if heldout is not None:
        # Through the saved file, so that what is reported is what it will do.
        model = prepare(load_model(folder / "model.keras"))
        probs = predict_batches(model, heldout, len(heldout.labels))
    write_array(folder / "heldout.npy", probs)
    if first_process():
        (folder / "state.npz").unlink(missing_ok=True)  # large, and of no use any more
    return None if heldout is None else probs


def check_settings(settings: Training, view: View = PLAIN_VIEW) -> None:
    """Refuse settings that would fail only after the patches are cut.

    Args:
        settings: See `bach.core.options.Training`.
        view: What the network is to see, where that is chosen.

    Raises:
        InputError: If the warm-up is not shorter than the training, or the backbone is
            unknown or has no such weights or view, or what is to watch cannot.
    """
    if settings.warmup_epochs and settings.warmup_epochs >= settings.epochs:
        raise InputError(
            "The warm-up must be shorter than the training.\n"
            f"Received: --warmup-epochs={settings.warmup_epochs}, --epochs={settings.epochs}."
        )
    check_backbone(settings.backbone, settings.weights)
    if settings.tensorboard:
        watch.check_tensorboard()
    if settings.frozen_bn and settings.weights == "none":
        raise InputError(
            "Batch normalisation can be kept as it is where a network was trained before.\n"
            "Received: --frozen-bn, --weights=none. Leave out --frozen-bn, or start from others."
        )
    if settings.orientations and what_to_train(settings) != "top":
        raise InputError(
            "The eight orientations are for a top that is fitted; descent draws one every step.\n"
            "Received: --orientations without --train top. Leave out --orientations."
        )
    if settings.train == "lora" and not foundation.is_foundation(settings.backbone):
        raise InputError(
            "LoRA needs a backbone with attention, a foundation model.\n"
            f"Received: --train=lora, --backbone={settings.backbone}.\nUse --train top or all."
        )
    check_view(settings.backbone, view)


def _common_view(stores: Sequence[PatchStore], train: str) -> tuple[View, bool]:
    """What a network is to see of patches that it is trained on, and whether of photos whole."""
    views = {store.view for store in stores if store.view is not None}
    whole_photos = any(store.view is None for store in stores)
    if len(views) + (whole_photos and train != "top") > 1:
        sides = sorted({store.patches.shape[1] for store in stores})
        raise InputError(
            "Patches that are trained on together must be of one size.\n"
            f"Received: sides of {', '.join(map(str, sides))} px.\n"
            "Mine hard examples with the models of the same run of train_part_a.py; of whole "
            "photos and patches together, --train top fits a top."
        )
    return views.pop() if views else PLAIN_VIEW, whole_photos


def learning_rate(
    settings: Training, batch_size: int, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate, as a function of the step if it is not constant.

    With a larger batch there are fewer steps, and each may be longer: the rate is
    multiplied by the batch's size and reached gradually, from the rate of the small
    batch (from 0 where nothing is multiplied).

    Args:
        settings: See `bach.core.options.Training`.
        batch_size: Patches per global batch.
        steps: Batches per epoch.

    Returns:
        A number or a Keras schedule. What was done is logged, unless it is nothing.

    Source: Goyal et al. 2017, arXiv:1706.02677, sections 2.1 and 2.2.
    """
    base = peak = settings.learning_rate
    if settings.scale_learning_rate:
        peak = base * batch_size / settings.scale_learning_rate
        log.info(
            f"learning rate: {base:g} x {batch_size} / {settings.scale_learning_rate} = {peak:g} "
            f"(global batch {batch_size})"
        )
    first = base if base < peak else 0.0
    warmup = settings.warmup_epochs * steps
    if warmup:
        log.info("learning rate: from %g to %g over %d steps", first, peak, warmup)
    if settings.schedule == "cosine":
        rest = settings.epochs * steps - warmup
        log.info("learning rate: from %g to 0 over %d steps, as a cosine", peak, rest)
        if not warmup:
            return keras.optimizers.schedules.CosineDecay(peak, rest)
        return keras.optimizers.schedules.CosineDecay(
            first, rest, warmup_target=peak, warmup_steps=warmup
        )
    if warmup:
        return keras.optimizers.schedules.PolynomialDecay(first, warmup, end_learning_rate=peak)
    return peak


def compile_learner(model: keras.Model, settings: Training, rate) -> None:
    """Compile what is trained, whose outputs are logits, see `with_logits`."""
    average = {"use_ema": settings.ema > 0, "ema_momentum": settings.ema}
    with backend.scope():
        if settings.optimizer == "adamw":
            optimizer = keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY, **average)
            # Scales and shifts are not what decay is to keep small.
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        else:
            optimizer = keras.optimizers.SGD(rate, momentum=MOMENTUM, nesterov=True, **average)
        model.compile(
            optimizer=optimizer,
            loss=keras.losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=settings.label_smoothing
            ),
            metrics=["accuracy"],
            jit_compile=backend.jit(),
        )
        model.optimizer.build(model.trainable_variables)
        _build_metrics(model)


def _build_metrics(model: keras.Model) -> None:
    """Build loss and metrics of a compiled model before `fit` does.

    On JAX `fit` would read a first batch to build them, and the batches that its threads
    had read ahead by then would come again in the next epoch.
    """
    if keras.backend.backend() != "tensorflow":
        example = np.full((1, *model.output_shape[1:]), 1 / model.output_shape[-1], np.float32)
        model.compute_loss(y=example, y_pred=example)
        model.compute_metrics(None, example, example)
        model.reset_metrics()


def _check_untrained(model: keras.Model, training: Batches) -> None:
    """Log the loss before the first step: ln 4 of four classes, unless something is wrong.

    Raises:
        InputError: If the network's copy for predictions cannot be made, or is another one.
    """
    count = min(training.batch_size, 32)
    # From all over, for patches of a class lie together.
    chosen = np.linspace(0, len(training.labels) - 1, count).astype(int)
    patches = training.patches(chosen)
    probs = np.asarray(model.predict_on_batch(patches))
    true = probs[np.arange(count), training.labels[chosen]]
    loss = float(-np.log(np.clip(true, 1e-7, 1)).mean())
    said = "loss before training: %.3f (untrained %s-class network: ln %d = %.3f)"
    log.info(said, loss, task().in_words, task().count, math.log(task().count))
    patches, probs = patches[:2], probs[:2]
    try:
        gap = np.abs(backend.call(fast_clone(model), patches.astype(np.float32)) - probs).max()
    except Exception as error:  # of whatever kind, it would be met again after the training
        raise _cannot_predict(model, reason(error)) from error
    if not gap < (1e-3 if keras.config.dtype_policy().name == "float32" else 0.1):
        raise _cannot_predict(model, f"probabilities that differ by {gap:.2g}")


def _cannot_predict(model: keras.Model, fault: str) -> InputError:
    return InputError(
        "A network must have a copy for predictions that computes the same.\n"
        f"Received: {model.name}, whose copy has a fault: {fault}.\nUse another --backbone."
    )


def _draw_batch(learner: keras.Model, training: Batches, file: Path) -> None:
    """Draw the first batch as the network sees it, augmentation included."""
    inputs, labels = training[0]
    patches = keras.ops.convert_to_numpy(learner.get_layer("augment")(*inputs))
    patches = np.rint(patches).astype(np.uint8)
    names = [task().classes[label] for label in labels.argmax(axis=1)]
    write_png(file, contact_sheet(patches[:32], names[:32]))
