"""The models of a run as a service has them: loaded once, for photos and slides at a time.

Photos and slides go through the same weights from two threads. Whoever calls a model waits for
its turn, which the service gives: see `bach.serve.worker`.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np

from bach.core.errors import InputError
from bach.core.options import SlideScript
from bach.network import backend
from bach.network.batches import fill_up
from bach.network.dense import DenseModel
from bach.network.image_network import is_image_network
from bach.network.patch_network import source_of
from bach.network.predict import (
    common_view,
    least_photo,
    load_models,
    photo_inputs,
    predict_patches,
    prepare,
)
from bach.network.predictor import Predictor

Turn = Callable[[], AbstractContextManager]

_FEW = 8  # patches, up to which batches are filled to a power of two
_CALLS = ("predict_on_batch", "features", "top")


class InTurn:
    """A model whose every call waits for its turn.

    Args:
        model: From `prepare`, or a `DenseModel`.
        turn: Gives the turn, as long as its context lasts.
    """

    def __init__(self, model: Any, turn: Turn):
        self._model, self._turn = model, turn

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._model, name)
        if name not in _CALLS:
            return value

        def call(*args: Any, **named: Any) -> Any:
            with self._turn():
                return value(*args, **named)

        return call


class ServedModels:
    """The models of a run, ready for photos.

    Args:
        args: Options of a script that predicts slides: `model_dir`, `mode`, `precision` and
            `batch_size` are used.
        tta: Mean over the eight orientations too, four of photos that are judged whole.

    Attributes:
        least: Width and height that a photo must have, px at 0.42 um/px.
        input_shape: Rows and columns of the models' input, None where any will do.
        whole: Whether the models judge photos whole; they then know nothing of slides.
        sources: The file of each model.

    Raises:
        InputError: If there is no finished model, or models differ in what they see.
    """

    def __init__(self, args: SlideScript, tta: bool = False):
        self._args, self._tta = args, tta
        self._prepared: Mapping[int, keras.Model] = load_models(
            args.model_dir, ready=lambda model: prepare(model, args.precision), whole_photos=True
        )
        found = list(self._prepared.values())
        # Compiled apart, so that a slide's network is traced as it is without photos: for
        # batches of one size.
        self._models = [_compiled_apart(model) for model in found]
        self.whole = is_image_network(found[0])
        if not self.whole:
            common_view(found)
        elif len({model.input_shape for model in found}) > 1 or not all(
            map(is_image_network, found)
        ):
            raise InputError(
                "Models that are averaged must see the same.\n"
                f"Received: {args.model_dir}, whose models take inputs of different sizes.\n"
                "Name a single .keras file."
            )
        self.least = least_photo(found)
        self.input_shape: tuple[int | None, int | None] = found[0].input_shape[1:3]
        self.sources = [source_of(model) for model in found]

    def inputs(self, photo: np.ndarray) -> np.ndarray:
        """What the models are given of a photo, see `photo_inputs`."""
        return photo_inputs(self._models, photo)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Probabilities of a batch: float32 `(models, n, classes)`.

        Args:
            inputs: uint8 `(n, rows, cols, 3)`, of one photo or several; more than a batch go
                through the network in turn.

        Raises:
            InputError: If a network returns something else.
        """
        parts = []
        for start in range(0, len(inputs), self._args.batch_size):
            part = inputs[start : start + self._args.batch_size]
            filled = fill_up(part, min(_recurring(len(part)), max(self._args.batch_size, 1)))
            probs = [predict_patches(model, filled, self._tta) for model in self._models]
            parts.append(np.stack(probs)[:, : len(part)])
        return np.concatenate(parts, axis=1)

    def predictor(self, step_um: float, turn: Turn) -> Predictor | None:
        """The same models for slides, or None if they judge whole photos.

        Args:
            step_um: Step between patches in um.
            turn: Gives each call of a model its turn.

        Raises:
            InputError: If dense prediction cannot use the models, or cannot make the step.
        """
        if self.whole:
            return None
        ready: Mapping[int, Any] = self._prepared
        if self._args.mode == "dense":
            precision = self._args.precision
            ready = load_models(
                self._args.model_dir, ready=lambda model: DenseModel(model, precision)
            )
        models = {fold: InTurn(model, turn) for fold, model in ready.items()}
        return Predictor(self._args, step_um, self._tta, models)


def _compiled_apart(model: keras.Model) -> keras.Model:
    """A model of the same layers and weights that is traced for itself."""
    apart = keras.Model(model.input, model.output, name=model.name)
    apart.source = source_of(model)
    apart.compile(jit_compile=backend.jit())
    return apart


def _recurring(count: int) -> int:
    """A number of inputs at or above `count` that recurs: networks are compiled for each."""
    if count <= _FEW:
        return 1 << (count - 1).bit_length()
    return math.ceil(count / _FEW) * _FEW
