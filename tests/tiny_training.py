"""Train a tiny network on noise, as a process of its own, for tests/test_resume.py.

A backend, a number of devices and a place among several processes are those of a
process. Everything random or stateful is on: order, augmentation, dropout, momentum,
averaged weights, a schedule, refreshed statistics.

    python tests/tiny_training.py DIR... [--devices 2] [--hold-epoch 2]

writes a training's folder and in it `weights.npz`, the network as it ends; with several
folders each is trained, or gone on with, in turn. With `--hold-epoch` no batch but the
first of that epoch comes, so that the process can be killed there.

As in the scripts, Keras is loaded by `bach.network`, which keeps it quiet.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach.core.log import setup_logging
from bach.core.options import Training
from bach.network import backend, training
from bach.network.augment import Augmentation
from bach.network.batches import Batches, Selection

EPOCHS = 4
BATCH = 8
SIDE = 16


class HeldBatches(Batches):
    """Batches that wait for ever after the first of an epoch."""

    hold = None

    def __getitem__(self, index: int):
        if self._epoch == self.hold and index:
            time.sleep(1000)
        return super().__getitem__(index)


def tiny_model():
    """A small Keras model of patches, with all that has a state."""
    import keras
    from keras import layers

    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = layers.Conv2D(4, 3, use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    x = layers.Activation("relu")(x)
    x = layers.Dense(8, activation="relu")(layers.GlobalAveragePooling2D()(x))
    x = layers.Dense(4, activation="softmax")(layers.Dropout(0.5)(x))
    return keras.Model(inputs, x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dirs", nargs="+", type=Path)
    parser.add_argument("--devices", type=int, default=0)
    parser.add_argument("--hold-epoch", type=int, default=None)
    args = parser.parse_args()
    setup_logging()
    os.cpu_count = lambda: 8  # so that several threads read, whatever the machine
    print(backend.start(args.devices, seed=1, processes=True))

    for folder in args.dirs:
        train(folder, args.hold_epoch)


def train(folder: Path, hold: int | None) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(112) % 4
    ground = np.array([[220, 120, 170], [120, 220, 170], [170, 120, 220], [220, 220, 100]])
    noise = rng.integers(-80, 80, (112, SIDE, SIDE, 3))
    patches = np.clip(ground[labels][:, None, None] + noise, 0, 255).astype(np.uint8)
    images = np.array([f"image {row % 8}" for row in range(112)])
    settings = Training(
        epochs=EPOCHS,
        learning_rate=0.1,
        scale_learning_rate=64,
        warmup_epochs=1,
        schedule="cosine",
        label_smoothing=0.1,
        ema=0.8,
        bn_patches=16,
    )

    def batches(rows: np.ndarray, augmentation: Augmentation | None = None) -> HeldBatches:
        return HeldBatches([Selection(patches, labels, images, rows)], BATCH, 1, augmentation)

    backend.start_model(seed=1)
    with backend.scope():
        model = tiny_model()
    if hasattr(model.weights[0].value, "sharding"):  # a tensor of JAX
        print(f"weights on {len(model.weights[0].value.sharding.device_set)} devices")
    seen, held = batches(np.arange(96), Augmentation()), batches(np.arange(96, 112))
    seen.hold = hold
    training.train(model, seen, held, settings, folder)
    process = os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", "")
    np.savez(folder / f"weights{process}.npz", *model.get_weights())


if __name__ == "__main__":
    main()
