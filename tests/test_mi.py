"""Estimates against known truth, on held-out pairs; bad input; determinism; correlation against formulas."""
import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from cotmi.core import EstimationError, to_json
from cotmi.information.bounds import BOUNDS, infonce
from cotmi.information.correlations import Correlation, correlation
from cotmi.information.critic_fit import fit_critic, read_bound, score, shuffled_batches
from cotmi.information.critics import Critic, GaussianStart, get_critic
from cotmi.information.estimate import EstimationCancelled, MIEstimate, estimate_mi, quick_estimate
from cotmi.information.known_truths import (
    _signed_mi,
    gaussian_club,
    gaussian_correlation,
    gaussian_mi,
    gaussian_pairs,
    signed_pairs,
)
from cotmi.information.preparation import PreparedSide

QUICK = dict(folds=3, seeds=1, steps=150, hidden=(16,), embedding=8, resamples=100, stacked=False)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def two_nats():
    return gaussian_pairs(1500, 4, 2.0, seed=3)


# closed forms

def test_closed_form_agrees_with_the_determinants():
    rho = gaussian_correlation(3.0, 5)
    joint = np.block([[np.eye(5), rho * np.eye(5)], [rho * np.eye(5), np.eye(5)]])
    assert gaussian_mi([rho] * 5) == pytest.approx(-0.5 * np.linalg.slogdet(joint)[1]) == pytest.approx(3.0)


def test_club_of_gaussian_pairs_tends_to_its_closed_form():
    z, v = gaussian_pairs(2000, 10, 2, seed=1)
    rho = gaussian_correlation(2, 10)
    scores = -((z[:, None] - rho * v[None]) ** 2).sum(-1) / (2 * (1 - rho**2))
    assert BOUNDS["club"].estimate(scores.double()).item() == pytest.approx(gaussian_club(2, 10), abs=0.2)


def test_signed_pairs_have_the_information_that_they_claim():
    "The mean of the exact log-density ratio over many pairs."
    z, v = (x.double() for x in signed_pairs(200_000, 1, 0.5, seed=0))
    rho = brentq(lambda r: _signed_mi(r) - 0.5, 1e-3, 0.9999)
    s = 1 - rho**2
    mixture = torch.logaddexp(-(v - rho * z) ** 2 / (2 * s), -(v + rho * z) ** 2 / (2 * s)) - math.log(2)
    assert (mixture - 0.5 * math.log(s) + v**2 / 2).mean().item() == pytest.approx(0.5, abs=0.01)


# estimates

@pytest.mark.parametrize("bound", [n for n in BOUNDS if n != "club"])
def test_every_bound_finds_two_nats(bound, two_nats):
    found = estimate_mi(*two_nats, bound, **QUICK)
    assert found.value == pytest.approx(2.0, abs=0.2)
    assert found.low < found.value < found.high
    assert found.low < 2.0 # at or under the truth within the interval
    assert found.pairs == 1500


def test_upper_bound_lies_above(two_nats):
    found = estimate_mi(*two_nats, "club", **QUICK)
    assert found.low > 2.0
    assert "≤" in repr(found)


@pytest.mark.parametrize("bound", list(BOUNDS))
def test_independence(bound):
    found = estimate_mi(*gaussian_pairs(600, 6, 0, seed=2), bound, **QUICK)
    assert found.value <= 0.05
    assert found.low <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["bilinear", "separable", "concat"])
def test_every_critic_learns_without_the_gaussian_start(critic):
    z, v = gaussian_pairs(1500, 2, 1.0, seed=5)
    found = estimate_mi(z, v, "infonce", critic, start="none", learning_rate=1e-2,
                        **{**QUICK, "steps": 300, "folds": 2})
    assert found.value == pytest.approx(1.0, abs=0.15)


def test_cubes_carry_the_same_information():
    found = estimate_mi(*gaussian_pairs(1500, 4, 2.0, seed=3, cubed=True), **QUICK)
    assert found.value == pytest.approx(2.0, abs=0.2)


@pytest.mark.slow
def test_dependence_without_correlation():
    z, v = signed_pairs(2000, 1, 0.5, seed=0)
    found = estimate_mi(z, v, **{**QUICK, "steps": 400, "learning_rate": 1e-2, "folds": 2})
    assert abs(found.diagnostics["gaussian"]) < 0.05 # a linear method sees nothing
    assert 0.25 < found.value < 0.55
    assert found.diagnostics["above_upper_twin"]


def test_same_seed_same_estimate():
    z, v = gaussian_pairs(300, 3, 1, seed=0)
    a, b = (estimate_mi(z, v, seed=4, **QUICK) for _ in range(2))
    assert a == b
    state = torch.random.get_rng_state()
    c = estimate_mi(z, v, seed=5, **QUICK)
    assert c.value != a.value
    assert torch.equal(state, torch.random.get_rng_state()) # the caller's random numbers are left alone


def test_no_pair_is_scored_by_a_critic_that_saw_it(monkeypatch):
    "The last column of both sides tells who is who; no number of a fold may be among those it was fitted on."
    import cotmi.information.cross_fitting as module
    seen = []
    real = module._run_fold

    def spy(z, v, held, rest, *args):
        seen.append((set(held.tolist()), set(rest.tolist())))
        return real(z, v, held, rest, *args)

    monkeypatch.setattr(module, "_run_fold", spy)
    estimate_mi(*gaussian_pairs(200, 2, 1), **{**QUICK, "steps": 5})
    assert sorted(i for held, _ in seen for i in held) == list(range(200))
    assert all(not held & rest and len(held | rest) == 200 for held, rest in seen)


def test_more_dimensions_than_pairs_are_reduced():
    generator = torch.Generator().manual_seed(0)
    z, v = gaussian_pairs(200, 3, 3, seed=1)
    a, b = torch.randn(2, 3, 400, generator=generator)
    noise = 0.1 * torch.randn(2, 200, 400, generator=generator)
    found = estimate_mi(z @ a + noise[0], v @ b + noise[1], **{**QUICK, "folds": 4})
    assert found.value > 1.2
    assert found.diagnostics["z_used"] < 20 and found.diagnostics["z_width"] == 400
    assert any("PCA takes z from 400" in note for note in found.notes)


@pytest.mark.parametrize(("pairs", "width"), [(20, 2), (20, 8), (25, 8), (22, 200), (30, 512)])
def test_fewer_pairs_than_dimensions_have_a_finite_reading(pairs, width):
    "So few pairs correlate perfectly in some direction, of which the closed form knows no finite information."
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(pairs, width, generator=generator)
        found = quick_estimate(z, z + torch.randn(pairs, width, generator=generator))
        assert np.isfinite([*found.interval, found.null_high]).all()


def test_preparation_is_fitted_on_training_pairs_only():
    z = torch.randn(100, 5)
    side = PreparedSide(z[:80], 3, "normal-scores", 0)
    changed = z.clone()
    changed[80:] *= 100
    torch.testing.assert_close(side(z)[:80], PreparedSide(changed[:80], 3, "normal-scores", 0)(changed)[:80])


def test_default_sizes_on_wide_features_are_quick():
    found = estimate_mi(torch.randn(120, 64), torch.randn(120, 32), folds=3, steps=50)
    assert abs(found.value) < 0.2


# what is wrong is said

def test_bad_input():
    z, v = gaussian_pairs(100, 3, 1)
    with pytest.raises(EstimationError, match="NaN or infinite values in 1 of 100 rows"):
        estimate_mi(torch.where(torch.arange(300).view(100, 3) == 4, math.nan, z), v)
    with pytest.raises(EstimationError, match="z has 99 rows and v has 100"):
        estimate_mi(z[1:], v)
    with pytest.raises(EstimationError, match="at least 20 are needed"):
        estimate_mi(z[:3], v[:3])
    with pytest.raises(EstimationError, match="at least 200 are needed"):
        estimate_mi(z, v, folds=50)
    with pytest.raises(EstimationError, match="expected .pairs, dimensions"):
        estimate_mi(z[None], v)
    with pytest.raises(EstimationError, match="Did you mean 'infonce'"):
        estimate_mi(z, v, "infonec")
    with pytest.raises(EstimationError, match="allowed are separable"):
        estimate_mi(z, v, critic="mlp", steps=1)
    with pytest.raises(EstimationError, match="at least 2 folds"):
        estimate_mi(z, v, folds=1)
    with pytest.raises(EstimationError, match="scaling is 'raw'"):
        estimate_mi(z, v, scaling="raw")


def test_constant_columns():
    z, v = gaussian_pairs(200, 3, 1)
    z = torch.cat([z, torch.full((200, 2), 7.0)], 1)
    found = estimate_mi(z, v, **QUICK)
    assert "2 of 5 dimensions of z are constant and left out." in found.notes
    nothing = estimate_mi(torch.full((200, 2), 7.0), v, **QUICK)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    assert "constant carries no information" in repr(nothing)


def test_duplicated_and_repeated_values_do_no_harm():
    z = torch.randint(0, 3, (200, 4)).float()
    z = torch.cat([z, z], 1) # each column twice: a singular covariance
    found = estimate_mi(z, z[:, :2] + torch.randn(200, 2), **QUICK)
    assert math.isfinite(found.value) and math.isfinite(found.low)


def test_ceiling_is_noted():
    z, _ = gaussian_pairs(200, 8, 0)
    found = estimate_mi(z, z + 0.01 * torch.randn(200, 8), **{**QUICK, "steps": 20})
    assert found.ceiling == pytest.approx(math.log(66), abs=0.02)
    assert found.diagnostics["ceiling_reached"] and "Near the ceiling" in repr(found)


def test_still_rising_is_noted():
    z, v = gaussian_pairs(300, 3, 2)
    found = estimate_mi(z, v, start="none", **{**QUICK, "steps": 10})
    assert found.diagnostics["still_rising"] == 3 and "still improving after 10 steps" in repr(found)


def test_progress_and_cancelling():
    z, v, calls = *gaussian_pairs(60, 2, 1), []
    estimate_mi(z, v, progress=lambda done, total: calls.append((done, total)), **{**QUICK, "steps": 2, "seeds": 2})
    assert calls == sorted(calls) and calls[-1] == (600, 600)
    assert {(100 * k, 600) for k in range(1, 7)} <= set(calls)
    with pytest.raises(EstimationCancelled, match="with 67% of the work done"):
        estimate_mi(z, v, progress=lambda done, total: done < 200, **{**QUICK, "steps": 2})


@pytest.mark.parametrize("asked_before", [0, 3, 40, 90])
def test_should_stop_is_heard_wherever_the_work_is(asked_before):
    calls = []
    with pytest.raises(EstimationCancelled, match="Stopped as asked"):
        estimate_mi(*gaussian_pairs(100, 2, 1), should_stop=lambda: calls.append(1) or len(calls) > asked_before,
                    folds=2, steps=20, resamples=20)
    assert len(calls) == asked_before + 1


def test_should_stop_is_asked_until_the_end():
    "The longest silence in time of this thread, the reading and the null after the last critic included."
    estimate_mi(*gaussian_pairs(60, 2, 1), **{**QUICK, "steps": 1}) # the first optimiser of a process imports for long
    silences, before = [], time.thread_time()

    def should_stop() -> bool:
        nonlocal before
        silences.append(time.thread_time() - before)
        before = time.thread_time()
        return False

    torch.manual_seed(0)
    z = torch.randn(1200, 256)
    estimate_mi(z, z + torch.randn(1200, 256), folds=2, steps=5, should_stop=should_stop)
    assert max([*silences, time.thread_time() - before]) < 0.5 and len(silences) > 100


def test_own_critic():
    def tiny(z_width, v_width): return get_critic("bilinear").make(z_width, v_width)
    found = estimate_mi(*gaussian_pairs(100, 2, 1), critic=tiny, **{**QUICK, "steps": 5})
    assert found.critic == "tiny"
    record = Critic("mine", "Mine", lambda z_width, v_width, hidden, embedding: tiny(z_width, v_width), block=16)
    same = estimate_mi(*gaussian_pairs(100, 2, 1), critic=record, **{**QUICK, "steps": 0})
    named = estimate_mi(*gaussian_pairs(100, 2, 1), critic="cotmi.information.critics:BilinearCritic",
                        **{**QUICK, "steps": 0})
    assert (same.critic, named.critic, same.value) == ("mine", "BilinearCritic", named.value)


def test_own_bound():
    own = replace(BOUNDS["smile"], name="mine", title="My SMILE", direction="upper", tau=3.0)
    z, v = gaussian_pairs(120, 2, 1)
    found = estimate_mi(z, v, own, tau=3.0, **{**QUICK, "steps": 5})
    same = estimate_mi(z, v, "smile", tau=3.0, **{**QUICK, "steps": 5})
    assert found.diagnostics["by_seed"] == same.diagnostics["by_seed"]
    bare = {**QUICK, "steps": 5, "start": "none"} # from the closed form, a lower bound may be read of that instead
    assert estimate_mi(z, v, own, tau=3.0, **bare).value == estimate_mi(z, v, "smile", tau=3.0, **bare).value
    assert (found.bound, found.title, found.direction) == ("mine", "My SMILE", "upper")
    read_back = MIEstimate.from_dict(json.loads(to_json(found.to_dict())))
    assert read_back == found and "≤" in repr(read_back) and "My SMILE" in repr(read_back)


@pytest.mark.parametrize("bound", ["barber-agakov", "club", "gaussian"])
def test_bounds_with_a_critic_of_their_own_need_no_other(bound):
    z, v = gaussian_pairs(100, 2, 1)
    one, other = (estimate_mi(z, v, bound, critic, **{**QUICK, "steps": 5}) for critic in ("separable", "concat"))
    assert one == other and one.critic == "gaussian"
    with pytest.raises(EstimationError, match="Did you mean 'concat'"):
        estimate_mi(z, v, bound, "concatt", **QUICK)


@pytest.mark.parametrize("start", ["gaussian", "none"])
def test_a_large_score_matrix_is_made_in_parts_from_either_start(start):
    "The concatenated critic says how much it holds, also inside a Gaussian start."
    record, rho = get_critic("concat"), torch.tensor([0.5, 0.2])
    module = record.make(2, 2, (8,))
    critic = record.start(module, rho) if start == "gaussian" else module
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    z, v = gaussian_pairs(40, 2, 1)
    torch.testing.assert_close(score(critic, z, v, cells=3200), critic(z, v).detach())
    assert len(calls) == 4 + 1 # ten rows of 40 pairs of 8 numbers at a time, and once whole


def test_record_survives_json(two_nats):
    found = estimate_mi(*(x[:200] for x in two_nats), **{**QUICK, "steps": 5})
    assert MIEstimate.from_dict(json.loads(to_json(found.to_dict()))) == found
    with pytest.raises(EstimationError, match="no estimate"):
        MIEstimate.from_dict({"values": 3})


def test_interval_has_the_spread_of_the_sample():
    "The bootstrap spread of a fixed critic equals the spread over fresh samples."
    exact = GaussianStart(None, torch.tensor([gaussian_correlation(1, 2)] * 2))
    values = [infonce(score(exact, *gaussian_pairs(400, 2, 1, seed=s)).double()).item() for s in range(60)]
    found = read_bound("infonce", [score(exact, *gaussian_pairs(400, 2, 1, seed=99))], resamples=300)
    assert (found.high - found.low) / 3.92 == pytest.approx(np.std(values), rel=0.3)


def test_early_stopping_keeps_the_best_weights():
    torch.manual_seed(0)
    z, v = gaussian_pairs(120, 5, 1)
    critic = get_critic("separable").make(5, 5, (32,), 8)
    valid = gaussian_pairs(200, 5, 1, seed=1)
    log = fit_critic(critic, "infonce", shuffled_batches(z, v, 64), valid, steps=600, learning_rate=1e-2, patience=4)
    assert log.steps < 600 and log.best_step == log.steps - 100
    assert -float(BOUNDS["infonce"].loss(score(critic, *valid))[0]) == pytest.approx(log.value, abs=1e-6)


def test_chunked_scores_are_the_same():
    critic = get_critic("concat").make(3, 3, (8,))
    z, v = gaussian_pairs(50, 3, 1)
    torch.testing.assert_close(score(critic, z, v, cells=1000), critic(z, v).detach())


# correlation

def test_correlation_of_copies_and_of_noise():
    z = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    same = correlation(z, z.clone(), permutations=19)
    assert all(m.value == pytest.approx(1, abs=1e-6) and m.p_value == 0.05 for m in same.measures.values())
    other = correlation(z, torch.randn(200, 5, generator=torch.Generator().manual_seed(1)), permutations=99)
    assert all(m.p_value > 0.02 for m in other.measures.values())
    assert all(m.low <= m.value <= m.high for m in other.measures.values())


def test_distance_correlation_agrees_with_double_loops():
    z, v = (x.double() for x in gaussian_pairs(12, 2, 1))
    def matrix(x):
        d = torch.stack([torch.stack([(a - b).norm() for b in x]) for a in x])
        return d - d.mean(0) - d.mean(1)[:, None] + d.mean()
    a, b = matrix(z), matrix(v)
    expected = ((a * b).mean() / ((a**2).mean() * (b**2).mean()).sqrt()).sqrt().item()
    assert correlation(z, v, ["dcor"], permutations=1).measures["dcor"].value == pytest.approx(expected, rel=1e-5)


def test_distance_correlation_sees_what_pearson_does_not():
    z, v = signed_pairs(300, 1, 0.5)
    found = correlation(z, v, ["pearson", "dcor"], permutations=99).measures
    assert found["dcor"].p_value == 0.01 and found["pearson"].p_value > 0.05


def test_p_values_are_even_for_independent_features():
    small = [correlation(*gaussian_pairs(40, 2, 0, seed=s), ["pearson", "cka"], permutations=19, groups=4)
             for s in range(60)]
    for name in ("pearson", "cka"):
        share = np.mean([c.measures[name].p_value <= 0.2 for c in small])
        assert 0.05 < share < 0.4


def test_permutation_of_one_side_breaks_the_pairing():
    z, v = gaussian_pairs(150, 4, 3)
    found = correlation(z, v, permutations=49)
    for name, m in found.measures.items():
        assert m.value > m.by_chance + 0.2, name


def test_thinning_and_widths_and_record():
    z, v = gaussian_pairs(300, 4, 1)
    found = correlation(z, v[:, :2], permutations=9, max_pairs=100, dimension_names=list("abcd"))
    assert found.pairs == 100 and "100 of 300 pairs" in repr(found)
    assert set(found.measures) == {"cka", "cca", "dcor"} and set(found.refused) == {"pearson", "cosine"}
    assert found.dimension_names == list("abcd")
    assert Correlation.from_dict(json.loads(to_json(found.to_dict()))) == found
    with pytest.raises(EstimationError, match="cosine cannot be computed"):
        correlation(z, v[:, :2], ["cosine"])


def test_constant_dimensions_have_no_correlation():
    z, v = gaussian_pairs(60, 3, 1)
    z[:, 1] = 4
    found = correlation(z, v, ["pearson"], permutations=9)
    assert found.per_dimension[1] is None and "1 of 3 dimensions are constant" in repr(found)
    with pytest.raises(EstimationError, match="Every dimension of z is constant"):
        correlation(0 * z, v)
    with pytest.raises(EstimationError, match="at least 10"):
        correlation(z[:5], v[:5])
