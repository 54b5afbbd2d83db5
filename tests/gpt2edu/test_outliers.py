"""z-scores against NumPy, and the window that a checkpoint carries."""

import json
import math

import numpy as np

from gpt2edu.outliers import WINDOW, OutlierDetector, is_outlier


def test_z_score_is_that_of_numpy_over_the_last_128_values():
    values = np.random.default_rng(0).normal(3.0, 0.2, 300).tolist()
    detector = OutlierDetector()
    scores = [detector.update(value) for value in values]
    assert all(math.isnan(score) for score in scores[:WINDOW])
    for end in (WINDOW + 1, 200, 300):
        window = np.array(values[end - WINDOW : end])
        np.testing.assert_allclose(scores[end - 1], (window[-1] - window.mean()) / window.std(), rtol=1e-9)


def test_equal_values_have_score_zero():
    detector = OutlierDetector([2.0] * WINDOW)
    assert detector.update(2.0) == 0.0


def test_values_that_are_not_finite_do_not_enter():
    detector = OutlierDetector([1.0, 2.0] * (WINDOW // 2))
    assert math.isnan(detector.update(math.nan))
    assert math.isnan(detector.update(math.inf))
    assert math.isfinite(detector.update(1.5))


def test_the_window_goes_through_json_without_loss():
    values = np.random.default_rng(1).normal(size=200).tolist()
    detector = OutlierDetector()
    for value in values:
        detector.update(value)
    restored = OutlierDetector(json.loads(json.dumps(list(detector.window))))
    assert restored.update(0.3) == detector.update(0.3)


def test_limit_zero_switches_the_check_off():
    assert is_outlier(3.1, 3.0)
    assert not is_outlier(2.9, 3.0)
    assert not is_outlier(100.0, 0.0)
    assert not is_outlier(math.nan, 3.0)
