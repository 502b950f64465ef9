"Paired tests, seeds, Holm and power against naive references and simulation."
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from scipy import special, stats

from cotmi.core import EstimationError
from cotmi.evaluation.metrics import METRICS
from cotmi.evaluation.statistics import (
    _resampled_means,
    association,
    compare_methods,
    holm,
    mcnemar_exact,
    mcnemar_power,
    paired_bootstrap,
    seed_interval,
    share_interval,
    smallest_difference,
)


def draw_runs(rng, n=400, seeds=1, gap=0.0, seed_spread=0.0):
    "Two groups of runs on n examples of varying difficulty; each run also has an offset of its own."
    ease = np.clip(rng.normal(0.6, 0.25, n), 0.02, 0.98)
    runs = []
    for shift in (gap, 0.0):
        offsets = rng.normal(0, seed_spread, (seeds, 1)) + shift
        runs.append((rng.random((seeds, n)) < np.clip(ease + offsets, 0, 1)).astype(float))
    return runs


def test_mcnemar_by_hand():
    a = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    b = [0, 0, 0, 0, 0, 1, 1, 1, 1, 0]
    found = mcnemar_exact(a, b) # 5 against 1
    assert (found.only_a, found.only_b, found.both, found.neither) == (5, 1, 3, 1)
    assert found.p_value == pytest.approx(2 * (1 + 6) / 2**6)


def test_mcnemar_of_equal_splits_is_one():
    assert mcnemar_exact([1, 0], [0, 1]).p_value == 1
    assert mcnemar_exact([1, 1], [1, 1]).p_value == 1


def test_paired_bootstrap_ways_agree():
    "The multinomial short cut and plain resampling have the same distribution."
    gap = np.random.default_rng(0).choice([-1.0, 0, 1], 300, p=[0.1, 0.7, 0.2])
    fast = _resampled_means(gap, 20_000, np.random.default_rng(1))
    plain = np.array([np.random.default_rng(i).choice(gap, 300).mean() for i in range(4_000)])
    assert stats.ks_2samp(fast.round(6), plain.round(6)).pvalue > 0.01
    real = _resampled_means(gap + np.random.default_rng(2).normal(0, 1e-9, 300), 20_000, np.random.default_rng(1))
    assert stats.ks_2samp(real.round(6), plain.round(6)).pvalue > 0.01 # rounded back onto the same steps of 1/300


def test_paired_bootstrap_finds_what_mcnemar_finds():
    a, b = draw_runs(np.random.default_rng(3), n=1000, gap=0.08)
    assert paired_bootstrap(a[0], b[0]).p_value == pytest.approx(mcnemar_exact(a[0], b[0]).p_value, rel=0.5, abs=0.01)


def test_the_same_predictions_never_differ():
    rng = np.random.default_rng(0)
    for _ in range(100):
        a = rng.random(200) < 0.7
        assert paired_bootstrap(a, a, resamples=200).p_value == 1
        assert mcnemar_exact(a, a).p_value == 1
        assert compare_methods([a], [a]).p_value == 1


@pytest.mark.parametrize("test", ["paired bootstrap", "mcnemar", "methods"])
def test_equal_runs_rarely_differ_at_five_per_cent(test):
    "100 pairs of runs of one student: at most 12 alarms at the 5 % rate (binomial 99.8 %), none after Holm."
    rng, p_values = np.random.default_rng(7), []
    for _ in range(100):
        if test == "methods":
            a, b = draw_runs(rng, seeds=3, seed_spread=0.04)
            p_values.append(compare_methods(a, b).p_value)
        else:
            (a,), (b,) = draw_runs(rng)
            p_values.append(mcnemar_exact(a, b).p_value if test == "mcnemar"
                            else paired_bootstrap(a, b, resamples=1000).p_value)
    assert np.sum(np.array(p_values) < 0.05) <= 12
    assert (holm(p_values) > 0.05).all()


def test_ignoring_the_seeds_would_cry_wolf():
    "With seeds that spread, a paired test on one run a side rejects far more often than 5 %."
    rng, naive, ours = np.random.default_rng(1), 0, 0
    for _ in range(200):
        a, b = draw_runs(rng, n=1000, seeds=3, seed_spread=0.05)
        naive += mcnemar_exact(a[0], b[0]).p_value < 0.05
        ours += compare_methods(a, b).p_value < 0.05
    assert naive > 60 and ours <= 20


def test_methods_interval_covers_the_truth():
    rng, covered = np.random.default_rng(5), 0
    for _ in range(200):
        ease = rng.uniform(0.2, 0.7, 300)
        a, b = ((rng.random((4, 300)) < ease + shift + rng.normal(0, 0.03, (4, 1))) for shift in (0.1, 0.0))
        found = compare_methods(a, b)
        covered += found.low <= 0.1 <= found.high
    assert covered >= 180 # 95 % of 200 is 190; the binomial puts 180 at three standard deviations


def test_one_seed_is_said_to_be_one_seed():
    a, b = draw_runs(np.random.default_rng(0), seeds=3)
    assert compare_methods(a[:1], b).test.endswith("seeds unknown")
    assert compare_methods(a, b).test.endswith("and seeds")


def test_holm_against_a_plain_loop():
    rng = np.random.default_rng(0)
    p = rng.random(12) ** 3
    order, running, expected = np.argsort(p), 0.0, np.empty(12)
    for rank, i in enumerate(order):
        running = max(running, min(1, (12 - rank) * p[i]))
        expected[i] = running
    np.testing.assert_allclose(holm(p), expected)
    with_gap = holm([*p, np.nan])
    np.testing.assert_allclose(with_gap[:-1], expected)
    assert math.isnan(with_gap[-1])
    assert holm([]).shape == (0,)


def test_shares():
    right = np.random.default_rng(0).random(300) < 0.7
    found = share_interval(right)
    half = 1.96 * (right.mean() * (1 - right.mean()) / 300) ** 0.5
    assert found == pytest.approx((right.mean(), right.mean() - half, right.mean() + half), abs=0.01)
    # Clopper and Pearson: at the end, what was seen has a probability of 2.5 %
    found = share_interval(np.ones(50))
    assert found.low**50 == pytest.approx(0.025) and (found.value, found.high) == (1, 1)
    assert math.isnan(share_interval([]).value)


def test_seed_intervals():
    values = np.array([0.61, 0.64, 0.58, 0.66])
    found = seed_interval(values)
    half = stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert found == pytest.approx((values.mean(), values.mean() - half, values.mean() + half))
    narrow = seed_interval(values, "bootstrap")
    assert found.low < narrow.low < narrow.value < narrow.high < found.high
    assert math.isnan(seed_interval([]).value)
    with pytest.raises(EstimationError, match="allowed are t, bootstrap"):
        seed_interval(values, "normal")


@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_seeds_that_agree_are_no_certainty(method):
    unknown = seed_interval([0.5, 0.5], method)
    assert unknown.value == 0.5 and math.isnan(unknown.low) and math.isnan(unknown.high)
    for right in (0, 37, 120):
        found = seed_interval([right / 120] * 3, method, examples=120)
        exact = stats.binomtest(right, 120).proportion_ci(method="exact") # one seed's examples, not 360
        assert found == pytest.approx((right / 120, exact.low, exact.high))
    assert seed_interval([0, 0, 0], examples=120).low == 0 and seed_interval([1, 1], examples=120).high == 1
    assert seed_interval([0.5, 0.6], method, examples=10) == seed_interval([0.5, 0.6], method) # only where seeds agree


def test_few_seeds_have_a_range_and_no_interval():
    for method in ("t", "bootstrap"):
        assert seed_interval([0.02, 0.9], method, span=(0, 1)) == pytest.approx((0.46, 0.02, 0.9))
        assert seed_interval([0.1, 0.4, 0.2], method) == pytest.approx((0.7 / 3, 0.1, 0.4))


def delta_interval(values, low=0.0, high=1.0):
    "Student's interval on the logit scale, its standard error by the delta method, written out."
    share = (np.mean(values) - low) / (high - low)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) / (high - low) / (share * (1 - share))
    return [low + (high - low) * special.expit(special.logit(share) + sign * half) for sign in (-1, 1)]


def test_interval_over_seeds_on_the_scale_of_the_measure():
    values = [0.02, 0.05, 0.11, 0.03]
    assert seed_interval(values, span=(0, 1))[1:] == pytest.approx(delta_interval(values))
    marks = [1.2, 1.4, 1.1, 2.5, 1.9]
    assert seed_interval(marks, span=(1, 5))[1:] == pytest.approx(delta_interval(marks, 1, 5))
    half = stats.t.ppf(0.975, 3) * stats.sem(values) / np.mean(values)
    found = seed_interval(values, span=(0, math.inf))
    assert (math.log(found.low), math.log(found.high)) == pytest.approx(
        (math.log(np.mean(values)) - half, math.log(np.mean(values)) + half))
    middle = [0.5, 0.51, 0.49, 0.5, 0.502] # far from both ends it is the plain one
    assert seed_interval(middle, span=(0, 1)) == pytest.approx(seed_interval(middle), abs=1e-4)


@pytest.mark.parametrize("metric", [m for m in METRICS if m.span != (-math.inf, math.inf)], ids=lambda m: m.key)
@settings(deadline=None, max_examples=40, derandomize=True)
@given(data=strategies.data())
def test_no_interval_leaves_the_range_of_its_measure(metric, data):
    low, high = metric.span
    values = data.draw(strategies.lists(strategies.floats(low, min(high, 1e12)), min_size=1, max_size=8))
    method = data.draw(strategies.sampled_from(["t", "bootstrap"]))
    found = seed_interval(values, method, span=metric.span)
    ends = [end for end in (found.low, found.high) if not math.isnan(end)]
    assert all(low <= end <= high for end in ends), found
    if ends and len(set(values)) > 1:
        assert found.low <= found.value * (1 + 1e-9) + 1e-12 and found.value <= found.high * (1 + 1e-9) + 1e-12


@given(data=strategies.data())
@settings(deadline=None, max_examples=60, derandomize=True)
def test_no_difference_of_shares_leaves_its_range(data):
    n = data.draw(strategies.integers(1, 6))
    rows = strategies.lists(strategies.lists(strategies.floats(0, 1), min_size=n, max_size=n), min_size=1, max_size=4)
    found = compare_methods(data.draw(rows), data.draw(rows))
    assert math.isnan(found.low) or -1 <= found.low <= found.high <= 1


@pytest.mark.parametrize("mean, spread", [(0.05, 100), (0.5, 20), (0.9, 100), (0.98, 100)])
@pytest.mark.parametrize("seeds", [4, 5, 10])
def test_interval_over_seeds_covers(mean, spread, seeds):
    "Students that are right with a chance of their own, on 200 examples each: 95 of 100 intervals hold the mean."
    rng = np.random.default_rng(0)
    right = rng.binomial(200, rng.beta(mean * spread, (1 - mean) * spread, (1000, seeds))) / 200
    covered = [low <= mean <= high for _, low, high in (seed_interval(row, examples=200, span=(0, 1)) for row in right)]
    assert 0.93 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("scores, value, p", [((0, 0), 0, 1), ((1, 1), 0, 1), ((1, 0), 1, 2 * 0.5**80)])
def test_differences_without_spread_are_no_certainty(scores, value, p):
    a, b = (np.full((3, 80), float(s)) for s in scores)
    unseen = 1 - 0.025 ** (1 / 80)
    for found in (compare_methods(a, b), compare_methods(a[:1], b), paired_bootstrap(a[0], b[0])):
        assert (found.value, found.p_value) == (value, pytest.approx(p))
        assert (found.low, found.high) == pytest.approx((value - unseen * (1 + value), value + unseen * (1 - value)))
    assert compare_methods([[1]], [[0]]).p_value == 1 # one example
    assert math.isnan(compare_methods(-2 * a - 1, -2 * a - 1).low) # how far such scores may part is not known


@pytest.mark.parametrize("n, disagreement", [(120, 0.3), (500, 0.15)])
def test_power_against_simulation(n, disagreement):
    difference = smallest_difference(n, disagreement)
    assert mcnemar_power(difference, n, disagreement) == pytest.approx(0.8, abs=1e-3)
    rng = np.random.default_rng(0)
    wins, losses, _ = rng.multinomial(n, [(disagreement + difference) / 2, (disagreement - difference) / 2,
                                          1 - disagreement], size=4000).T
    p_values = np.minimum(1, 2 * stats.binom.cdf(np.minimum(wins, losses), wins + losses, 0.5))
    assert np.mean(p_values < 0.05) == pytest.approx(0.8, abs=0.03)
    assert mcnemar_power(0, n, disagreement) <= 0.05 # the exact test keeps its level


def test_smallest_difference_shrinks_with_the_test_set():
    found = [smallest_difference(n, 0.2) for n in (100, 200, 400, 1221, 9824)]
    assert found == sorted(found, reverse=True)
    assert math.isnan(smallest_difference(10, 0.2)) and math.isnan(smallest_difference(100, 0))
    with pytest.raises(EstimationError, match="cannot exceed"):
        mcnemar_power(0.3, 100, 0.2)


def test_association_against_scipy_and_plain_resampling():
    rng = np.random.default_rng(0)
    score = np.round(rng.random(250), 1) # many ties
    right = (rng.random(250) < 0.2 + 0.6 * score).astype(float)
    found = association(np.r_[score, np.nan], np.r_[right, 1])
    assert found.examples == 250
    assert found.point_biserial.value == pytest.approx(stats.pointbiserialr(right, score).statistic)
    assert found.spearman.value == pytest.approx(stats.spearmanr(score, right).statistic)
    rows = [rng.integers(0, 250, 250) for _ in range(1000)]
    for name, plain in [("point_biserial", lambda i: stats.pearsonr(score[i], right[i])[0]),
                        ("spearman", lambda i: stats.spearmanr(score[i], right[i])[0])]:
        ends = np.quantile([plain(i) for i in rows], [0.025, 0.975])
        interval = getattr(found, name)
        assert (interval.low, interval.high) == pytest.approx(tuple(ends), abs=0.025)
    assert set(found.to_dict()) >= {"point_biserial", "spearman", "examples"}


def test_unpaired_scores_are_refused():
    for a, b, words in [([1, 0], [1], "same examples"), ([], [], "at least one"), ([1, np.nan], [1, 0], "NaN")]:
        with pytest.raises(EstimationError, match=words):
            paired_bootstrap(a, b)
