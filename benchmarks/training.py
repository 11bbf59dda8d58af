"""Does the input keep up with the network, and what do two devices cost?

Script 1's own loop (`bach.network.training.train` on a patch store of painted photos, augmentation
and all) is timed beside the same compiled step on one batch that lies on the device
already, and beside the loop on two logical devices at the same global batch.

`input_efficiency`: patches/s of the loop / patches/s of the bare step; 1 means that the
    network never waits for its input.
`replica_overhead`: time of a step of the loop on two logical CPU devices / on one. They
    share the machine, so 1 means that replication costs nothing.
`epoch_start`: time from the beginning of an epoch to the end of its first batch / time
    of a bare step; 1 means that an epoch begins without waiting.
`augmentation`: time to turn and recolour a batch on the device / time of a bare step,
    which it is part of.
All are medians over rounds with the lowest and highest beside. A round times all three
one after the other, so that what else the machine does falls on all. The first batches
of an epoch, some of which were read ahead while something else went on, count for
`epoch_start` alone.

Also the time and bytes to cut the patch store, once per round.

Reads:   nothing.
Writes:  a temporary folder, deleted.
Command: python benchmarks/training.py
         python benchmarks/training.py --backbone InceptionResNetV2 --batch-size 16 --steps 8
Time:    3 min on two cores with the small backbone; --quick, which times too few steps for
         figures that mean anything, 1 min.
Prints a table; the last line is JSON.
"""

import argparse
import collections
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach import data
from bach.core.errors import exit_with
from bach.core.files import to_json
from bach.core.log import log, setup_logging
from bach.core.options import Training
from bach.core.text import markdown
from bach.network import backend, training
from bach.network.augment import Augmentation
from bach.network.batches import Batches
from bach.network.patch_network import build_model
from bach.network.stores import PatchStore, cut_photos
from bach.toy.dataset import Recipe, make_data_set


class Clock(keras.callbacks.Callback):
    """Times an epoch, its first batches apart; between epochs does what it is told.

    After every epoch it prints the seconds of the loop, and those to the end of the first
    batch, and reads commands: `step` times the bare step and prints its seconds, `augment`
    the augmentation of as many batches, `loop` goes on with another epoch.

    Args:
        batches: The training batches.
        skip: Batches at the start of an epoch that are not of the loop.
    """

    def __init__(self, batches: Batches, skip: int):
        super().__init__()
        self._batches = batches
        self._skip = skip

    def on_epoch_begin(self, epoch, logs=None):
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            float(logs["loss"])  # waits until the device is done
            self._first = time.perf_counter() - self._begin
        if batch + 1 == self._skip:
            float(logs["loss"])
            self._start = time.perf_counter()
        if batch + 1 == len(self._batches):
            float(logs["loss"])
            self._seconds = time.perf_counter() - self._start

    def on_epoch_end(self, epoch, logs=None):
        _say(loop=self._seconds, first=self._first)
        layer = self.model.get_layer("augment")
        x, y = keras.tree.map_structure(keras.ops.convert_to_tensor, self._batches[0])
        for line in sys.stdin:
            if line.strip() == "loop":
                return
            if line.strip() == "augment":
                _say(augment=self._time(lambda: keras.ops.convert_to_numpy(layer(*x)[0, 0, 0])))
            else:
                _say(step=self._time(lambda: self.model.train_on_batch(x, y)))

    def _time(self, work: Callable[[], object]) -> float:
        work()  # the first compiles
        start = time.perf_counter()
        for _ in range(len(self._batches) - self._skip):
            work()  # waits until the device is done
        return time.perf_counter() - start


def _say(**values: float) -> None:
    print(json.dumps(values), flush=True)


def work(args: argparse.Namespace) -> None:
    """Be one of the processes that are timed: train, and report to the one that asks."""
    setup_logging()
    backend.start(args.devices, 0, args.precision)
    store = PatchStore(Path(args.work) / "patches")
    with backend.scope():
        model = build_model(args.backbone, "none")
    skip = 9  # Keras reads 8 batches ahead
    rows = np.resize(np.arange(len(store.table)), (skip + args.steps) * args.batch_size)
    batches = Batches([store.select(rows)], args.batch_size, 0, Augmentation())
    settings = Training(epochs=1 + args.rounds, bn_patches=0)
    folder = Path(args.work) / f"devices_{args.devices}"
    training.train(model, batches, None, settings, folder, [Clock(batches, skip)])


class Worker:
    """A process that trains on `devices` logical devices and waits to be told to go on."""

    def __init__(self, args: argparse.Namespace, folder: Path, devices: int):
        words = [
            *("--work", folder, "--devices", devices, "--backbone", args.backbone),
            *("--batch-size", args.batch_size, "--precision", args.precision),
            *("--steps", args.steps, "--rounds", args.rounds),
        ]
        environment = dict(os.environ)
        if devices > 1:
            environment["CUDA_VISIBLE_DEVICES"] = "-1"
        self._process = subprocess.Popen(
            [sys.executable, __file__, *map(str, words)],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.read("loop")  # the first epoch compiles

    def read(self, name: str) -> dict[str, float]:
        """The next report of the process that has seconds of that name."""
        for line in self._process.stdout:
            if line.startswith("{") and name in (values := json.loads(line)):
                return values
        raise RuntimeError(f"The process that trains ended with {self._process.wait()}.")

    def ask(self, name: str) -> dict[str, float]:
        """Have the process time its loop, the bare step or augmentation: seconds by name."""
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return self.read(name)

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def measure(args: argparse.Namespace, folder: Path) -> dict:
    """All figures, as the last line of output holds them."""
    recipe = Recipe(patients=4, images=args.photos, test_images=0, slides=0, test_slides=0)
    make_data_set(folder / "data", recipe)
    images = data.list_images(folder / "data", "A")
    seconds = collections.defaultdict(list)
    for _ in range(args.rounds):
        shutil.rmtree(folder / "patches", ignore_errors=True)
        start = time.perf_counter()
        store = cut_photos(images, folder / "patches")
        seconds["cut"].append(time.perf_counter() - start)
    workers = [Worker(args, folder, count) for count in (1, 2)]
    workers[0].ask("step")  # compiles
    for number in range(args.rounds):
        timed = workers[0].ask("loop") | workers[0].ask("step") | workers[0].ask("augment")
        timed["two"] = workers[1].ask("loop")["loop"]
        for name, value in timed.items():
            seconds[name].append(value)
        log.info("round %d: %s", number, {k: round(v[-1], 2) for k, v in seconds.items()})
    for worker in workers:
        worker.end()
    names = ("loop", "step", "two", "first", "augment")
    loop, step, two, first, augment = (np.array(seconds[name]) for name in names)
    patches = args.steps * args.batch_size
    cut = float(np.median(seconds["cut"]))
    return {
        "backbone": args.backbone,
        "backend": keras.backend.backend(),
        "precision": args.precision,
        "batch_size": args.batch_size,
        "cores": os.cpu_count(),
        "input_efficiency": _spread(step / loop),
        "replica_overhead": _spread(two / loop),
        "epoch_start": _spread(first / (step / args.steps)),
        "augmentation": _spread(augment / step),
        "patches_per_s": {
            "loop": _spread(patches / loop),
            "step": _spread(patches / step),
            "loop, two devices": _spread(patches / two),
        },
        "cut": {
            "photos": len(images),
            "patches": len(store.table),
            "seconds": cut,
            "bytes": (folder / "patches" / "patches.npy").stat().st_size,
            "photos_per_s": len(images) / cut,
        },
    }


def _spread(values: np.ndarray) -> dict:
    return {
        "value": float(np.median(values)),
        "lowest": float(values.min()),
        "highest": float(values.max()),
    }


def report(result: dict) -> None:
    """Print the table and the result as JSON."""
    figures = ("input_efficiency", "replica_overhead", "epoch_start", "augmentation")
    rows = {name: result[name] for name in figures}
    rows |= {f"patches/s, {name}": row for name, row in result["patches_per_s"].items()}
    cells = [[name, *(f"{value:.3g}" for value in row.values())] for name, row in rows.items()]
    print(markdown(["figure", "median", "lowest", "highest"], cells))
    cut = result["cut"]
    print(
        f"\ncut {cut['photos']} photos into {cut['patches']:,} patches: {cut['seconds']:.2f} s "
        f"({cut['photos_per_s']:.1f} photos/s), {cut['bytes'] / 1e6:.1f} MB"
    )
    print(to_json(result))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="small", help="small, or of keras.applications")
    parser.add_argument("--batch-size", type=int, default=64, help="patches per global batch")
    parser.add_argument("--steps", type=int, default=20, help="batches to time per round")
    parser.add_argument("--rounds", type=int, default=5, help="times that all is timed")
    parser.add_argument("--photos", type=int, default=4, help="photos per class to paint")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
        help="number format of the network's inner layers",
    )
    parser.add_argument("--quick", action="store_true", help="few and small batches")
    parser.add_argument("--work", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.batch_size, args.steps, args.rounds, args.photos = 8, 4, 2, 1
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.work:
        work(args)
        return
    with tempfile.TemporaryDirectory() as temporary:
        report(measure(args, Path(temporary)))


if __name__ == "__main__":
    exit_with(main)
