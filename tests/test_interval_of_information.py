"""What stands beside an estimate: the confidence bound of the information, the null, twins, warnings; and stopping."""
import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from cotmi.core import EstimationError
from cotmi.information.bounds import BOUNDS
from cotmi.information.estimate import EstimationCancelled, MIEstimate, estimate_mi
from cotmi.information.known_truths import gaussian_mi, gaussian_pairs, signed_pairs

QUICK = dict(folds=3, steps=60, hidden=(16,), embedding=8, resamples=60)
LOWER = [name for name, bound in BOUNDS.items() if bound.direction == "lower"]


def one_direction(pairs: int, width: int, nats: float, seed: int):
    "Pairs of `width` dimensions a side that share `nats` in one of them."
    z, v = gaussian_pairs(pairs, width, 0, seed)
    v[:, 0] = gaussian_pairs(pairs, 1, nats, seed + 500)[1][:, 0]
    z[:, 0] = gaussian_pairs(pairs, 1, nats, seed + 500)[0][:, 0]
    return z, v


def wide_pairs(pairs: int, seed: int = 0):
    "512 dimensions a side, made from ten latents that share two nats."
    generator = torch.Generator().manual_seed(seed + 70)
    latents, mixes = gaussian_pairs(pairs, 10, 2.0, seed), torch.randn(2, 10, 512, generator=generator)
    noise = 0.1 * torch.randn(2, pairs, 512, generator=generator)
    return latents[0] @ mixes[0] + noise[0], latents[1] @ mixes[1] + noise[1]


def shared_scale(pairs: int, width: int, seed: int = 0):
    "Two vectors that have nothing in common but their length."
    generator = torch.Generator().manual_seed(seed)
    z, v = torch.randn(2, pairs, width, generator=generator) * torch.randn(pairs, 1, generator=generator).exp()
    return z, v


# the confidence bound

def test_the_confidence_bound_lies_below_the_truth():
    found = [estimate_mi(*gaussian_pairs(240, 2, 0.5, seed=s), **{**QUICK, "steps": 20}) for s in range(20)]
    assert sum(e.lower <= 0.5 for e in found) >= 17 # 95 of 100 are promised
    assert all(e.lower < e.value for e in found)
    assert np.mean([e.lower for e in found]) > 0.2 # and it says something


def test_the_confidence_bound_is_only_for_lower_bounds():
    z, v = gaussian_pairs(120, 2, 1)
    assert all((estimate_mi(z, v, name, **{**QUICK, "steps": 5}).lower is None) == (name not in LOWER)
               for name in BOUNDS)


def test_repeats_are_averaged_and_their_disagreement_counts():
    z, v = gaussian_pairs(120, 2, 1)
    options = {**QUICK, "steps": 5, "stacked": False}
    both = estimate_mi(z, v, repeats=2, **options)
    first, other = (estimate_mi(z, v, seed=seed, **options) for seed in (0, 7919))
    assert both.value == pytest.approx((first.value + other.value) / 2)
    assert both.value - both.lower > 0.99 * min(first.value - first.lower, other.value - other.lower)
    assert both.diagnostics["repeats"] == 2 and both.pairs == 120
    with pytest.raises(EstimationError, match="repeats is 0"):
        estimate_mi(z, v, repeats=0)


# the null

def test_false_alarms_are_rare_and_what_is_detectable_is_found():
    "By the closed form, which needs no training."
    samples, pairs, width = 40, 300, 4
    none = [estimate_mi(*gaussian_pairs(pairs, width, 0, seed=s), "gaussian", resamples=2) for s in range(samples)]
    assert sum(e.p_value <= 0.05 for e in none) <= 6
    least = none[0].detectable
    some = [estimate_mi(*one_direction(pairs, width, least, seed=s), "gaussian", resamples=2) for s in range(samples)]
    assert 0.55 * samples < sum(e.p_value <= 0.05 for e in some) # four in five are promised
    fewer = [estimate_mi(*one_direction(pairs, width, least / 8, seed=s), "gaussian", resamples=2)
             for s in range(samples)]
    assert sum(e.p_value <= 0.05 for e in fewer) < 0.5 * samples


@pytest.mark.parametrize("bound", ["infonce", "nwj", "smile"])
def test_the_null_stands_beside_the_estimate(bound):
    found = estimate_mi(*gaussian_pairs(300, 2, 1.0), bound, **QUICK)
    assert found.p_value == 0.001 and found.null_high < found.value
    assert "could be told from none" in repr(found)
    nothing = estimate_mi(*gaussian_pairs(300, 2, 0.0), bound, **QUICK)
    assert nothing.p_value > 0.02 and nothing.value < 0.05


# no worse than its start

class Loud(nn.Module):
    "A critic that shouts at random and cannot learn."
    def __init__(self, z_width, v_width):
        super().__init__()
        self.line = nn.Parameter(torch.zeros(()))
        self.register_buffer("turn", torch.full((z_width, v_width), 30.0))

    def forward(self, z, v): return (z @ self.turn @ v.mT).sin() * 30 + 0 * self.line


@pytest.mark.parametrize("bound", LOWER)
def test_an_estimate_is_no_lower_than_its_start_nor_than_nothing(bound):
    z, v = gaussian_pairs(240, 2, 0.7)
    if BOUNDS[bound].critic is None:
        assert estimate_mi(z, v, bound, Loud, **{**QUICK, "steps": 5}).value > 0.4
    heavy = shared_scale(240, 2) # NWJ reads exponentials of such tails
    assert estimate_mi(*heavy, bound, **{**QUICK, "steps": 5}).value > -0.05 or BOUNDS[bound].critic


# what helps

def test_the_length_of_a_vector_is_seen():
    z, v = shared_scale(600, 4)
    found = estimate_mi(z, v, **QUICK)
    assert abs(found.diagnostics["gaussian"]) < 0.1 and found.diagnostics["view"] > 0
    assert found.value > 0.3


@pytest.mark.parametrize("pairs, least", [(200, 1.0), pytest.param(600, 1.5, marks=pytest.mark.slow)])
def test_wide_features_of_few_latents(pairs, least):
    found = estimate_mi(*wide_pairs(pairs), **{**QUICK, "folds": 5})
    assert least < found.value < 2.0 + (found.high - found.low)
    assert 8 <= found.diagnostics["z_used"] <= 12


def test_weights_say_who_was_heard():
    weights = estimate_mi(*signed_pairs(600, 1, 0.5), **QUICK).diagnostics["weights"]
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["kernels"] > weights["gaussian"] # nothing is linear here


# warnings

def test_a_warning_says_which_way():
    found = estimate_mi(*signed_pairs(600, 1, 0.5), stacked=False, **{**QUICK, "steps": 2})
    assert found.value < 0.2 and found.diagnostics["ksg"] == pytest.approx(0.5, abs=0.1)
    assert any("KSG" in note and "too low" in note for note in found.notes)


def test_a_small_sample_is_warned_of():
    z, v = gaussian_pairs(160, 12, 3.0)
    found = estimate_mi(z, v, **QUICK)
    assert found.value < gaussian_mi([0.0]) + 3 and found.diagnostics["rise"] > 0
    assert any("Half of the training pairs" in note for note in found.notes)


# stopping

@pytest.mark.parametrize("critic", ["separable", "concat"])
def test_the_caller_is_asked_often(critic):
    "The longest silence, in time of this process."
    silences, before = [], time.process_time()

    def progress(done: int, total: int) -> bool:
        nonlocal before
        silences.append(time.process_time() - before)
        before = time.process_time()
        return done < total / 3

    with pytest.raises(EstimationCancelled, match="of the work done"):
        estimate_mi(*wide_pairs(400), critic=critic, folds=3, steps=40, progress=progress)
    assert max(silences) < 0.5 and len(silences) > 3


def test_the_new_fields_are_numbers_or_absent():
    found = estimate_mi(*gaussian_pairs(100, 2, 1), **{**QUICK, "steps": 2})
    for name in ("lower", "p_value", "null_high", "detectable"):
        assert math.isfinite(getattr(found, name))
    assert MIEstimate(0, 0, 0, None, "infonce", "separable", 1).lower is None
