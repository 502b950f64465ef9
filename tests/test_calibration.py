"Calibration against hand-worked cases, torchmetrics, scikit-learn and generators whose calibration is known."
import numpy as np
import pytest
import torch
from scipy.special import expit, logit, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from cotmi.core import EstimationError
from cotmi.evaluation.calibration import (
    TEMPERATURES,
    area_under_risk_coverage,
    brier_scores,
    calibration,
    calibration_floor,
    calibration_interval,
    expected_calibration_error,
    fit_temperature,
    maximum_calibration_error,
    negative_log_likelihoods,
    reliability,
    risk_coverage,
    scale,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (3000, 5))
PROBABILITIES = softmax(LOGITS, axis=1)
GOLD = np.array([RNG.choice(5, p=row) for row in PROBABILITIES]) # perfectly calibrated by construction
CONFIDENCE, CORRECT = PROBABILITIES.max(1), PROBABILITIES.argmax(1) == GOLD


def naive_ece(confidence, correct, bins):
    total = 0.0
    for i in range(bins):
        last = i == bins - 1
        rows = [j for j, c in enumerate(confidence) if i / bins <= c < (i + 1) / bins or (last and c == 1)]
        if rows:
            total += len(rows) * abs(np.mean([correct[j] for j in rows]) - np.mean([confidence[j] for j in rows]))
    return total / len(confidence)


@pytest.mark.parametrize("bins", [1, 10, 15, 40])
def test_ece_against_a_plain_loop_and_torchmetrics(bins):
    found = expected_calibration_error(CONFIDENCE, CORRECT, bins)
    assert found == pytest.approx(naive_ece(CONFIDENCE, CORRECT, bins), abs=1e-9)
    p, gold = torch.tensor(PROBABILITIES), torch.tensor(GOLD)
    assert found == pytest.approx(float(multiclass_calibration_error(p, gold, 5, bins)), abs=1e-6)
    worst = float(multiclass_calibration_error(p, gold, 5, bins, "max"))
    assert maximum_calibration_error(CONFIDENCE, CORRECT, bins) == pytest.approx(worst, abs=1e-6)


@pytest.mark.parametrize("kind", ["width", "mass"])
def test_the_table_adds_up_to_the_error(kind):
    table = reliability(CONFIDENCE, CORRECT, 12, kind)
    assert table["count"].sum() == len(CONFIDENCE)
    assert ((table.confidence >= table.low) & (table.confidence <= table.high)).all()
    total = (table["count"] * table.gap.abs()).sum() / len(CONFIDENCE)
    assert total == pytest.approx(expected_calibration_error(CONFIDENCE, CORRECT, 12, kind))
    if kind == "mass":
        assert table["count"].max() - table["count"].min() <= 1


def test_bins_against_scikit_learn():
    accuracy, confidence = calibration_curve(CORRECT, CONFIDENCE, n_bins=10)
    table = reliability(CONFIDENCE, CORRECT, 10)
    np.testing.assert_allclose(table.accuracy, accuracy)
    np.testing.assert_allclose(table.confidence, confidence)


def test_confidence_of_one_joins_the_last_bin():
    confidence, correct = [0.95, 1.0, 1.0], [0, 1, 1]
    assert reliability(confidence, correct, 10)["count"].tolist() == [3]
    assert expected_calibration_error(confidence, correct, 10) == pytest.approx(abs(2 / 3 - 2.95 / 3))
    assert naive_ece(confidence, correct, 10) == pytest.approx(abs(2 / 3 - 2.95 / 3))


def test_ties_are_never_split():
    confidence = np.repeat([0.2, 0.5, 1.0], [5, 50, 45])
    correct = np.arange(100) % 3 > 0
    table = reliability(confidence, correct, 10, "mass")
    assert table["count"].tolist() == [5, 50, 45]
    shuffled = np.random.default_rng(1).permutation(100)
    assert expected_calibration_error(confidence[shuffled], correct[shuffled], 10, "mass") == pytest.approx(
        expected_calibration_error(confidence, correct, 10, "mass")) # no order within a tie matters
    assert expected_calibration_error(np.ones(9), np.ones(9), 15, "mass") == 0


def test_perfect_calibration_is_within_sampling_error_of_zero():
    "Of 40 perfectly calibrated samples the mean ECE is the floor, and no single one is far above it."
    rng = np.random.default_rng(3)
    for kind in ("width", "mass"):
        floor = calibration_floor(CONFIDENCE, 15, kind)
        found = [expected_calibration_error(CONFIDENCE, rng.random(3000) < CONFIDENCE, 15, kind) for _ in range(40)]
        assert np.mean(found) == pytest.approx(floor, rel=0.15)
        assert max(found) < 2 * floor < 0.05
    assert calibration(CONFIDENCE, CORRECT).ece.value < 2 * calibration_floor(CONFIDENCE)


@pytest.mark.parametrize("said, true", [(0.9, 0.6), (0.55, 0.8), (1.0, 0.25)])
def test_a_known_miscalibration_is_found(said, true):
    rng, expected = np.random.default_rng(0), abs(said - true)
    covered = 0
    for _ in range(60):
        correct = rng.random(800) < true
        for kind in ("width", "mass"):
            interval = calibration_interval(np.full(800, said), correct, 15, kind, resamples=200)
            assert interval.value == pytest.approx(expected, abs=0.08)
        covered += interval.low <= expected <= interval.high
    assert covered >= 50 # 95 % of 60 is 57


def test_overconfidence_over_a_range_of_confidences():
    "Right with probability c² while saying c: the error is the mean of c - c²."
    confidence = np.linspace(0.3, 1, 20_000)
    correct = np.random.default_rng(0).random(20_000) < confidence**2
    expected = np.mean(confidence - confidence**2)
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected, abs=0.01)


def test_proper_scores_against_scikit_learn():
    one_hot = np.eye(5)[GOLD]
    assert brier_scores(PROBABILITIES, GOLD).mean() == pytest.approx(((PROBABILITIES - one_hot) ** 2).sum(1).mean())
    assert negative_log_likelihoods(PROBABILITIES, GOLD).mean() == pytest.approx(log_loss(GOLD, PROBABILITIES))
    assert brier_scores(CONFIDENCE, CORRECT).mean() == pytest.approx(brier_score_loss(CORRECT, CONFIDENCE))
    assert negative_log_likelihoods(CONFIDENCE, CORRECT).mean() == pytest.approx(log_loss(CORRECT, CONFIDENCE))


def test_proper_scores_take_padding_and_missing_gold():
    p = np.array([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]])
    assert brier_scores(p, np.array([0, -1])) == pytest.approx([0.32, 0.04 + 0.09 + 0.25 + 1])
    assert negative_log_likelihoods(p, np.array([1, -1])) == pytest.approx([-np.log(0.4), -np.log(1e-12)])


def test_risk_coverage_against_a_plain_loop():
    confidence = np.round(CONFIDENCE[:200], 1) # ties
    correct = CORRECT[:200]
    curve = risk_coverage(confidence, correct)
    for row in curve.itertuples():
        kept = confidence >= row.threshold
        assert (row.coverage, row.risk) == pytest.approx((kept.mean(), 1 - correct[kept].mean()))
    assert curve.coverage.iloc[-1] == 1
    assert area_under_risk_coverage(np.full(200, 0.5), correct) == pytest.approx(1 - correct.mean())
    order = area_under_risk_coverage(confidence, correct)
    assert order < 1 - correct.mean() < area_under_risk_coverage(1 - confidence, correct)


def test_temperature_recovers_what_was_done():
    assert fit_temperature(LOGITS, GOLD) == pytest.approx(1, abs=0.06)
    assert fit_temperature(LOGITS * 2.5, GOLD) == pytest.approx(2.5, abs=0.15)
    padded = np.c_[LOGITS * 2.5, np.full(3000, -np.inf)] # a ragged table
    assert fit_temperature(padded, GOLD) == pytest.approx(fit_temperature(LOGITS * 2.5, GOLD), abs=1e-3)
    np.testing.assert_allclose(scale(padded, 2.5)[:, :5], PROBABILITIES)
    right = np.random.default_rng(0).random(3000) < CONFIDENCE
    too_sure = expit(3 * logit(CONFIDENCE))
    assert fit_temperature(too_sure, right) == pytest.approx(3, abs=0.3)
    assert scale([0.0, 1.0], 2.0) == pytest.approx([0, 1], abs=1e-5)


def test_temperature_keeps_the_order_and_never_fits_worse():
    scaled = scale(LOGITS * 4, fit_temperature(LOGITS * 4, GOLD))
    assert (scaled.argmax(1) == LOGITS.argmax(1)).all()
    for scores in (LOGITS, LOGITS * 4, LOGITS / 3):
        t = fit_temperature(scores, GOLD)
        assert TEMPERATURES[0] <= t <= TEMPERATURES[1]
        assert (negative_log_likelihoods(scale(scores, t), GOLD).mean()
                <= negative_log_likelihoods(scale(scores, 1), GOLD).mean() + 1e-9)
    assert fit_temperature(LOGITS[:3], [-1, -1, -1]) == 1 # gold label never among the candidates


def test_all_figures_at_once():
    found = calibration(CONFIDENCE, CORRECT, PROBABILITIES, GOLD)
    flat = found.to_dict("test/", "_scaled")
    assert flat["test/ece_scaled"] == pytest.approx(expected_calibration_error(CONFIDENCE, CORRECT))
    for key in ("ece", "ece_mass", "brier", "nll"):
        assert flat[f"test/{key}_scaled_low"] <= flat[f"test/{key}_scaled"] <= flat[f"test/{key}_scaled_high"]
    assert {"test/mce_scaled", "test/ece_floor_scaled", "test/risk_coverage_scaled"} <= set(flat)


@pytest.mark.parametrize("confidence, correct, words", [
    ([], [], "n at least 1"), ([0.5, 0.5], [1], "want"), ([2.0], [1], "not logits"), ([np.nan], [1], "NaN")])
def test_unfit_arrays_are_refused(confidence, correct, words):
    for measure in (expected_calibration_error, maximum_calibration_error, risk_coverage, reliability):
        with pytest.raises(EstimationError, match=words):
            measure(confidence, correct)


def test_binning_names_are_checked():
    with pytest.raises(EstimationError, match="Did you mean 'mass'"):
        reliability([0.5], [1], kind="mas")
    with pytest.raises(EstimationError, match="bins is 0"):
        reliability([0.5], [1], 0)
