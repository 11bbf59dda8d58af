"""Four-class breast histology: the winning BACH (ICIAR 2018) pipeline and beyond.

>>> import bach
>>> classify = bach.load("runs/final")  # doctest: +SKIP
>>> classify(photo)  # doctest: +SKIP
  predicted  Normal  Benign  InSitu  Invasive
0    Benign    0.07    0.81    0.09      0.03
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it loads the framework
    from bach.network.loaded import Classifier


def load(path: str | os.PathLike, tta: bool = False) -> "Classifier":
    """A trained model as a function from RGB pictures to a table with the names of classes.

    Args:
        path: A `.keras` file, or the run folder of several, whose mean is taken.
        tta: Mean over the eight orientations too, at eight times the cost.

    Raises:
        InputError: If there is no model.
    """
    from bach.network.loaded import Classifier

    return Classifier(path, tta)
