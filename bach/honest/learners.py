"""Cheap models of photos' features, for the leak audit: no GPU, no minutes.

Both take float features `(images, features)`, labels 0..3 and the images' patients, and return
probabilities `(images, 4)` of other images.
"""

from typing import NamedTuple, Protocol

import numpy as np

from bach.classes import CLASSES

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
            labels: Their classes, 0..3.
            groups: Numbers of their patients, another one for every unknown.
            asked: Features of the images to predict.
            seed: Seed of what is random.

        Returns:
            Probabilities `(images, 4)`; 0 of a class of which nothing was trained on.
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
        from sklearn.model_selection import GroupKFold

        known, asked = _standardised(known, asked)
        loss = np.zeros(len(STRENGTHS))
        count = min(INNER_FOLDS, len(np.unique(groups)))
        for train, held in GroupKFold(count).split(known, groups=groups) if count > 1 else ():
            for place, strength in enumerate(STRENGTHS):
                probs = _logistic(known[train], labels[train], known[held], strength)
                true = probs[np.arange(len(held)), labels[held]]
                loss[place] -= np.log(np.maximum(true, _LEAST)).sum()
        return _logistic(known, labels, asked, STRENGTHS[loss.argmin()])


def _standardised(known: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of mean 0 and spread 1 in the known images, turned so that there are few.

    There are no more directions than known images, and a penalty of squares is the same
    whichever way the axes point: the model is the same, of a tenth of the features.
    """
    mean, spread = known.mean(axis=0), known.std(axis=0)
    known, asked = ((x - mean) / np.where(spread > 0, spread, 1) for x in (known, asked))
    axes = np.linalg.svd(known, full_matrices=False)[2].T
    return known @ axes, asked @ axes


def _logistic(
    known: np.ndarray, labels: np.ndarray, asked: np.ndarray, strength: float
) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    classes = np.unique(labels)
    if len(classes) == 1:
        return _of_all_classes(np.ones((len(asked), 1)), classes)
    model = LogisticRegression(C=strength, max_iter=2000).fit(known, labels)
    return _of_all_classes(model.predict_proba(asked), model.classes_)


def _of_all_classes(probs: np.ndarray, classes: np.ndarray) -> np.ndarray:
    found = np.zeros((len(probs), len(CLASSES)))
    found[:, classes] = probs
    return found
