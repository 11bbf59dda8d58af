"""The cheap models of the audit: what they choose, and that they are what they say."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from bach.honest.learners import Logistic, Trees, fit_logistic


def drawn(count=120, width=300, seed=0, own=0.0, true=1.0):
    """Features of 24 patients: a mark of the class, and one of the patient."""
    rng = np.random.default_rng(seed)
    groups = np.arange(count) % 24
    labels = groups % 4
    marks, classes = rng.normal(size=(24, width)), rng.normal(size=(4, width))
    features = rng.normal(size=(count, width)) + own * marks[groups] + true * classes[labels]
    return features * rng.uniform(0.1, 10, width) + 5, labels, groups


@pytest.mark.parametrize("learner", [Trees(30), Logistic()])
def test_a_class_that_was_not_trained_on_has_probability_zero(learner):
    features, labels, groups = drawn()
    there = labels != 2
    probs = learner.fit_predict(features[there], labels[there], groups[there], features, 0)
    assert probs.shape == (120, 4)
    assert np.allclose(probs.sum(axis=1), 1)
    assert (probs[:, 2] == 0).all()
    assert (probs.argmax(axis=1) == labels)[there].mean() > 0.9


def test_a_single_class_is_always_the_answer():
    features, labels, groups = drawn()
    one = labels == 3
    probs = Logistic().fit_predict(features[one], labels[one], groups[one], features, 0)
    assert (probs[:, 3] == 1).all()


def test_turned_features_give_the_same_model():
    features, labels, groups = drawn(true=0.1)
    assert features[:80].shape[0] < features.shape[1]
    found = fit_logistic(features[:80], labels[:80], groups[:80])
    scaler = StandardScaler().fit(features[:80])
    plain = LogisticRegression(C=found.strength, max_iter=2000)
    plain.fit(scaler.transform(features[:80]), labels[:80])
    expected = plain.predict_proba(scaler.transform(features[80:]))
    assert np.allclose(found.probs(features[80:]), expected, atol=1e-3)


@pytest.mark.parametrize("classes", [[0, 1, 2, 3], [1, 3]])
def test_what_is_fitted_is_that_of_scikit_learn(classes):
    features, labels, groups = drawn(width=20)
    there = np.isin(labels, classes)
    features, labels, groups = features[there], labels[there], groups[there]
    found = fit_logistic(features, labels, groups)
    scaled = StandardScaler().fit_transform(features)
    plain = LogisticRegression(C=found.strength, max_iter=2000).fit(scaled, labels)
    expected = plain.predict_proba(scaled)
    assert np.allclose(found.probs(features)[:, classes], expected, atol=1e-6)


def test_the_penalty_is_chosen_for_other_patients():
    """Marks of patients help within a patient alone: a choice over images would trust them."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 10)
    labels = rng.permutation(12)[groups] % 4
    marks = rng.normal(size=(12, 40))
    features = marks[groups] + 0.1 * rng.normal(size=(120, 40))
    alone = np.arange(120)  # every image its own patient
    sure = Logistic().fit_predict(features, labels, alone, features, 0).max(axis=1).mean()
    careful = Logistic().fit_predict(features, labels, groups, features, 0).max(axis=1).mean()
    assert careful < sure


def test_one_patient_alone_can_be_trained_on():
    features, labels, _ = drawn()
    probs = Logistic().fit_predict(features, labels, np.zeros(120, int), features, 0)
    assert np.allclose(probs.sum(axis=1), 1)


def test_a_feature_that_never_changes_does_no_harm():
    features, labels, groups = drawn()
    features[:, 0] = 7
    assert np.isfinite(Logistic().fit_predict(features, labels, groups, features, 0)).all()
