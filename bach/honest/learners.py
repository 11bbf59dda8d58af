"""Cheap models of features: of photos for the leak audit, of patches for `--train top`.

`Trees` and `Logistic` take float features `(images, features)`, labels 0..n-1 and the images'
patients, and return probabilities `(images, classes)` of other images.
"""

from typing import NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from bach.tasks import task

# Strengths of the penalty that the logistic regression chooses from, the strongest first: of
# standardised features, far beyond what is ever chosen.
STRENGTHS = tuple(10.0**power for power in range(-5, 2))
INNER_FOLDS = 5
# A probability below counts as this one: of a class that a part of the patients lacks it is 0.
_LEAST = 1e-6


class Learner(Protocol):
    """A kind of model, with all that it is told but the data."""

    def fit_predict(
        self,
        known: np.ndarray,
        labels: np.ndarray,
        groups: np.ndarray,
        asked: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """Train on known images, and give the probabilities of the others.

        Args:
            known: Features of the images to train on.
            labels: Their classes, 0..n-1.
            groups: Numbers of their patients, another one for every unknown.
            asked: Features of the images to predict.
            seed: Seed of what is random.

        Returns:
            Probabilities `(images, classes)`; 0 of a class of which nothing was trained on.
        """


class Trees(NamedTuple):
    """Extremely randomised trees, for some dozens of features of any scale."""

    size: int = 600

    def fit_predict(self, known, labels, groups, asked, seed):
        from sklearn.ensemble import ExtraTreesClassifier  # not at the top: takes its time

        model = ExtraTreesClassifier(self.size, random_state=seed, n_jobs=1)
        model.fit(known, labels)
        return _of_all_classes(model.predict_proba(asked), model.classes_)


class Logistic(NamedTuple):
    """Logistic regression on standardised features, for a thousand of a network.

    Its L2 penalty is the one of the smallest loss (mean of the negative log probability of the
    true class) in a cross-validation of the images it is trained on, in which patients stay whole.
    """

    def fit_predict(self, known, labels, groups, asked, seed):
        return fit_logistic(known, labels, groups).probs(asked)


class Linear(NamedTuple):
    """A fitted logistic regression, of features as they are.

    Attributes:
        kernel: Factors `(features, classes)`.
        bias: Offsets `(classes,)`, minus infinity of a class of which nothing was trained on.
        strength: Inverse strength of the penalty that was chosen.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float

    def probs(self, features: np.ndarray) -> np.ndarray:
        """Probabilities `(n, classes)`."""
        return _softmax(features @ self.kernel + self.bias)


def fit_logistic(known: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Linear:
    """Fit a logistic regression whose penalty is chosen by groups left out, see `Logistic`.

    Args:
        known: Features `(n, features)`.
        labels: Classes, 0..n-1.
        groups: Whose each is; those of one are left out together.
    """
    from sklearn.model_selection import GroupKFold

    mean, spread = known.mean(axis=0), known.std(axis=0)
    spread = np.where(spread > 0, spread, 1)
    known = (known - mean) / spread
    # Turned so that there are few: there are no more directions than rows, and a penalty of
    # squares is the same whichever way the axes point.
    axes = None
    if len(known) < known.shape[1]:
        axes = np.linalg.svd(known, full_matrices=False)[2].T
        known = known @ axes
    loss = np.zeros(len(STRENGTHS))
    count = min(INNER_FOLDS, len(np.unique(groups)))
    parts = list(GroupKFold(count).split(known, groups=groups)) if count > 1 else []
    for train, held in tqdm(parts, "penalty", delay=2, leave=False, disable=None):
        for place, strength in enumerate(STRENGTHS):
            kernel, bias = _fit(known[train], labels[train], strength)
            true = _softmax(known[held] @ kernel + bias)[np.arange(len(held)), labels[held]]
            loss[place] -= np.log(np.maximum(true, _LEAST)).sum()
    strength = STRENGTHS[loss.argmin()]
    kernel, bias = _fit(known, labels, strength)
    kernel = (kernel if axes is None else axes @ kernel) / spread[:, None]
    return Linear(kernel, bias - mean @ kernel, strength)


def _fit(known: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of standardised features."""
    from sklearn.linear_model import LogisticRegression

    kernel, bias = (
        np.zeros((known.shape[1], task().count)),
        np.full(task().count, -np.inf),
    )
    classes = np.unique(labels)
    if len(classes) == 1:
        bias[classes] = 0
        return kernel, bias
    model = LogisticRegression(C=strength, max_iter=2000).fit(known, labels)
    factors, offsets = model.coef_, model.intercept_
    if len(classes) == 2:  # of which scikit-learn keeps the difference
        factors, offsets = (np.concatenate([-x / 2, x / 2]) for x in (factors, offsets))
    kernel[:, classes], bias[classes] = factors.T, offsets
    return kernel, bias


def _softmax(logits: np.ndarray) -> np.ndarray:
    parts = np.exp(logits - logits.max(axis=1, keepdims=True))
    return parts / parts.sum(axis=1, keepdims=True)


def _of_all_classes(probs: np.ndarray, classes: np.ndarray) -> np.ndarray:
    found = np.zeros((len(probs), task().count))
    found[:, classes] = probs
    return found
