"""The models of a run, ready to predict patches of slides, one by one or densely."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from bach.core.errors import InputError
from bach.core.files import fingerprint
from bach.core.log import log
from bach.core.tables import image_key
from bach.core.text import listed
from bach.honest.seen import read_seen
from bach.network.dense import DenseModel, dense_step_um, predict_dense
from bach.network.predict import common_view, load_models, model_file, predict_slide, prepare
from bach.patches import View, grid_shape
from bach.slides import Slide


class Settings(Protocol):
    """Options that say which models predict how, as those of `bach.core.options.SlideScript`."""

    @property
    def model_dir(self) -> str: ...

    @property
    def mode(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def batch_size(self) -> int: ...


class Predictor:
    """Models that predict the patches of slides.

    Args:
        args: Options of a script that predicts slides: `model_dir`, `mode`, `precision` and
            `batch_size` are used.
        step_um: Step between the patches in um.
        tta: Mean over the eight orientations too.
        models: The models by fold, where they are loaded and made ready already.

    Attributes:
        step_um: Step between the patches in um.
        folds: Keys of the models, see `load_models`.
        view: What the models see of a patch.
        digests: Content of each model's file, by fold.
        warnings: A sentence for each model that does not say what it has seen.

    Raises:
        InputError: If there is no finished model, or the step is none that dense
            prediction can make.
    """

    def __init__(
        self,
        args: Settings,
        step_um: float,
        tta: bool = False,
        models: Mapping[int, Any] | None = None,
    ):
        self._dense = args.mode == "dense"
        self.step_um, self._model_dir = step_um, args.model_dir
        self._batch_size, self._tta = args.batch_size, tta
        make = DenseModel if self._dense else prepare
        self._models: Mapping[int, Any] = models or load_models(
            args.model_dir, ready=lambda model: make(model, args.precision)
        )
        loaded = list(self._models.values())
        self.folds = list(self._models)
        self.view: View = loaded[0].view if self._dense else common_view(loaded)
        self._every = dense_step_um(loaded[0], step_um) if self._dense else 0
        files = {fold: model_file(args.model_dir, fold) for fold in self.folds}
        seen = {fold: read_seen(file) for fold, file in files.items()}
        self._seen = {fold: one.slides for fold, one in seen.items()}
        self.warnings = [
            f"{file} does not say what it has seen: if a slide here is among it, its score is too "
            "good"
            for file in sorted(frozenset().union(*(one.unknown for one in seen.values())))
        ]
        for line in self.warnings:
            log.warning("%s", line)
        self.digests = fingerprint({str(fold): file for fold, file in files.items()})

    def unseen_by(self, slide: str) -> list[int]:
        """The folds whose models were not trained on a slide."""
        return [fold for fold in self.folds if image_key(slide) not in self._seen[fold]]

    @property
    def seen(self) -> frozenset[str]:
        """Keys of all slides that a model was trained on."""
        return frozenset().union(*self._seen.values())

    def refuse_seen(self, slides: Iterable[str]) -> None:
        """Refuse models that were trained on slides that are to be mined.

        Raises:
            InputError: If one was.
        """
        seen = sorted(set(map(image_key, slides)) & self.seen)
        if seen:
            raise InputError(
                "Slides must be mined by models that have not seen them, which are right on what "
                "they were trained on.\n"
                f"Received: --model-dir={self._model_dir}, trained on {listed(seen)}.\n"
                "Name a run of train_part_a.py; or add --seen, and train on what is drawn with "
                "nothing of this held out."
            )

    def predict(
        self, slide: Slide, table: pd.DataFrame, folds: Sequence[int] | None = None
    ) -> np.ndarray:
        """Mean probabilities over models of the patches of a slide.

        Args:
            slide: The open slide.
            table: Patch table of this slide; with `row, col` for dense prediction.
            folds: Whose models to use; all by default.

        Returns:
            float32 `(len(table), classes)`.
        """
        models = [self._models[fold] for fold in (self.folds if folds is None else folds)]
        if not self._dense:
            return predict_slide(models, slide, table, self._batch_size, self._tta)
        cell = self.step_um / slide.mpp
        wanted = np.zeros(grid_shape(slide.width, slide.height, cell), bool)
        wanted[table["row"], table["col"]] = True
        probs = predict_dense(models, slide, wanted, self._every, tta=self._tta)
        return probs[table["row"], table["col"]]
