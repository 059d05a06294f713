"""The scikit-learn classifier: its own checks, its peers' answers, pipelines, frames, searches."""

import pickle
from unittest import SkipTest

import jax
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from jaxsoftjac.regression import SoftmaxRegression

pytestmark = pytest.mark.once

X, LABELS = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[LABELS]
random = np.random.default_rng(0)
WEIGHTS = random.uniform(0.5, 2, size=len(X))


@pytest.fixture
def quick_compilation():
    """Many shapes are compiled, for few steps each."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks(quick_compilation):
    skipped = []
    for estimator, check in estimator_checks_generator(SoftmaxRegression()):
        try:
            check(estimator)
        except SkipTest as reason:
            skipped.append(str(reason))
    assert all("SCIPY_ARRAY_API" in reason for reason in skipped), skipped


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("class_weight", [None, "balanced", {"setosa": 2.0}])
def test_the_answers_of_a_peer(classes, class_weight):
    """The same C, class weights and sample weights mean the same."""
    kept = LABELS < classes
    kept[::3] &= LABELS[::3] > 0  # uneven classes
    x, y, weights = X[kept], NAMES[kept], WEIGHTS[kept]
    ours = SoftmaxRegression(0.7, class_weight=class_weight).fit(x, y, weights)
    theirs = LogisticRegression(C=0.7, class_weight=class_weight, tol=1e-10, max_iter=10000)
    theirs.fit(x, y, weights)
    assert ours.converged_
    assert list(ours.classes_) == list(theirs.classes_)
    for name in ("coef_", "intercept_"):
        actual, expected = getattr(ours, name), getattr(theirs, name)
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, atol=1e-4)
    for name in ("predict_proba", "predict_log_proba", "decision_function"):
        actual, expected = getattr(ours, name)(x), getattr(theirs, name)(x)
        np.testing.assert_allclose(actual, expected, atol=1e-3)
    assert np.array_equal(ours.predict(x), theirs.predict(x))
    assert ours.score(x, y) == theirs.score(x, y)
    penalty = SoftmaxRegression(l2=1 / (0.7 * weights.sum())).fit(x, y, weights)
    if class_weight is None:
        np.testing.assert_allclose(penalty.coef_, ours.coef_, atol=1e-8)


def test_log_probabilities_of_certain_predictions_keep_their_digits():
    model = SoftmaxRegression().fit(X, NAMES)
    logits = np.longdouble(model.decision_function(20 * X))
    below = np.sort(np.exp(logits - logits.max(axis=1, keepdims=True)), axis=1)[:, :-1].sum(axis=1)
    actual = model.predict_log_proba(20 * X).max(axis=1)
    assert below.min() < 1e-20
    np.testing.assert_allclose(actual, np.float64(-np.log1p(below)), rtol=1e-12)


def test_frames_pipelines_searches_and_pickles():
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    search = GridSearchCV(
        make_pipeline(StandardScaler(), SoftmaxRegression()),
        {"softmaxregression__C": [0.01, 1.0]},
        cv=3,
    ).fit(frame, pd.Series(NAMES))
    assert search.best_params_ == {"softmaxregression__C": 1.0}
    assert search.best_score_ > 0.9
    model = SoftmaxRegression().fit(frame, NAMES)
    assert list(model.feature_names_in_) == ["a", "b", "c", "d"]
    assert model.n_features_in_ == 4
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(frame), model.predict(frame))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": 0.0}, "`C` must be > 0, got 0.0"),
        ({"l2": -1.0}, "`l2` must be ≥ 0 and finite"),
        ({"solver": "sag"}, "`solver` must be one of"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression(**options).fit(X, NAMES)


def test_weights_of_other_kinds():
    one, two = (SoftmaxRegression().fit(X, NAMES, w) for w in (np.float32(2), 2.0))
    assert np.array_equal(one.coef_, two.coef_)
    with pytest.raises(ValueError, match="`sample_weight` must be ≥ 0 and finite, got -1.0"):
        SoftmaxRegression().fit(X, NAMES, -1.0)
    with pytest.raises(TypeError, match='`class_weight` must be a dictionary, "balanced" or None'):
        SoftmaxRegression(class_weight=np.ones(3)).fit(X, NAMES)


@pytest.mark.parametrize(
    ("options", "separated", "message"),
    [
        ({"C": np.inf}, True, "the classes are separable: without a penalty there is no best fit"),
        ({"max_iter": 1}, False, r"`tol` was not reached in 1 steps: a larger `max_iter` may"),
    ],
)
def test_a_fit_that_has_not_converged_warns(options, separated, message):
    with pytest.warns(ConvergenceWarning, match=message):
        model = SoftmaxRegression(**options).fit(X, LABELS)
    assert not model.converged_
    assert model.separated_ == separated
