"""A trained model as a function: from pictures in memory to a table of probabilities."""

import os
from collections.abc import Sequence

import numpy as np
import pandas as pd

from bach import tasks
from bach.core.errors import InputError
from bach.data import scaled
from bach.network import backend
from bach.network.predict import (
    least_photo,
    load_models,
    photo_inputs,
    predict_patches,
)


class Classifier:
    """Says of pictures which class of its task they are of; see `bach.load`.

    Attributes:
        task: What it was trained for: `task.classes`, `task.mpp` (um per network px).
        models: The networks, whose mean it is.
    """

    def __init__(self, path: str | os.PathLike, tta: bool = False):
        backend.start()
        self.task, self._tta = tasks.stated_task(path) or tasks.BACH, tta
        with tasks.working_on(self.task):
            self.models = list(load_models(path, whole_photos=True).values())

    def __call__(
        self, images: np.ndarray | Sequence[np.ndarray], mpp: float | None = None
    ) -> pd.DataFrame:
        """Classify pictures.

        Args:
            images: uint8 `(height, width, 3)` RGB, or several of them, of any size that has room
                for a patch; of each it is the mean over its patches. What is of the size of the
                network's input is a patch as the network takes it.
            mpp: um per px of the pictures; those of the task's photos by default. Patches have
                the network's, whatever it says.

        Returns:
            Table with a row per picture: `predicted`, the class's name, and the probability of
            each class under its name.

        Raises:
            InputError: If a picture is none, or too small.
        """
        several = [images] if isinstance(images, np.ndarray) and images.ndim == 3 else images
        with tasks.working_on(self.task):
            probs = [self._probs(np.asarray(image), mpp) for image in several]
        table = pd.DataFrame(np.reshape(probs, (-1, self.task.count)), columns=self.task.classes)
        names = np.array(self.task.classes)[table.to_numpy().argmax(axis=1)]
        table.insert(0, "predicted", names)
        return table

    def _probs(self, image: np.ndarray, mpp: float | None) -> np.ndarray:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                "A picture must be RGB: uint8 (height, width, 3).\n"
                f"Received: {image.dtype} {image.shape}.\nConvert it."
            )
        inputs = image[None]
        if image.shape[:2] != tuple(self.models[0].input_shape[1:3]):
            photo, least = scaled(image, mpp), least_photo(self.models)
            if min(photo.shape[:2]) < least:
                raise InputError(
                    f"A picture must have {least} px along each side at {self.task.photo_mpp} "
                    f"um/px, or be a patch of {self.models[0].input_shape[1:3]} px.\n"
                    f"Received: {image.shape[1]}x{image.shape[0]} px"
                    f"{f' of {mpp} um' if mpp else ''}.\nState its scale, or give a larger one."
                )
            inputs = photo_inputs(self.models, photo)
        return np.mean([predict_patches(m, inputs, self._tta) for m in self.models], axis=(0, 1))
