"""Bounds against double loops written out from their definitions, in value and gradient, and at extreme scores."""
import math
import re
import sys

import pytest
import torch
from torch import nn

from cotmi.core import EstimationError
from cotmi.information.bounds import (
    BOUNDS,
    barber_agakov,
    club,
    dv,
    dv_loss,
    get_bound,
    infonce,
    js,
    js_loss,
    log_mean_exp_off_diagonal,
    nwj,
    smile,
)
from cotmi.information.critics import CRITICS, Critic, GaussianConditional, get_critic

B = 7


def random_scores(seed: int = 0, size: int = B) -> torch.Tensor:
    scores = 2 * torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return scores.requires_grad_()


def naive_infonce(s):
    total = 0
    for i in range(len(s)):
        total = total + s[i, i] - torch.log(sum(torch.exp(s[i, j]) for j in range(len(s))) / len(s))
    return total / len(s)


def naive_marginal(s, f):
    "Mean of f over the false pairs."
    n = len(s)
    return sum(f(s[i, j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


def naive_joint(s, f=lambda x: x):
    return sum(f(s[i, i]) for i in range(len(s))) / len(s)


def naive_dv(s): return naive_joint(s) - torch.log(naive_marginal(s, torch.exp))
def naive_nwj(s): return naive_joint(s) - naive_marginal(s, lambda x: torch.exp(x - 1))
def naive_js(s): return 1 + naive_joint(s) - naive_marginal(s, torch.exp)


def naive_js_loss(s):
    true = naive_joint(s, lambda x: torch.log(1 + torch.exp(-x)))
    return true + naive_marginal(s, lambda x: torch.log(1 + torch.exp(x)))


def naive_smile(s, tau=1.0):
    return naive_joint(s) - torch.log(naive_marginal(s, lambda x: torch.exp(torch.clamp(x, -tau, tau))))


def naive_club(s): return naive_joint(s) - naive_marginal(s, lambda x: x)


PAIRS = {
    "infonce": (infonce, naive_infonce), "dv": (dv, naive_dv), "nwj": (nwj, naive_nwj), "js": (js, naive_js),
    "js_loss": (js_loss, naive_js_loss), "smile": (lambda s: smile(s, tau=1.0), naive_smile),
    "club": (club, naive_club), "barber_agakov": (barber_agakov, naive_joint),
}


@pytest.mark.parametrize("name", PAIRS)
def test_bound_agrees_with_a_double_loop(name):
    fast, naive = PAIRS[name]
    a, b = random_scores(), random_scores()
    value, reference = fast(a), naive(b)
    torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-12)
    value.backward()
    reference.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)


def test_training_losses_are_those_of_the_bounds():
    s = random_scores().detach()
    naive_bounds = {"infonce": naive_infonce, "dv": naive_dv, "nwj": naive_nwj, "barber-agakov": naive_joint,
                    "club": naive_joint}
    for name, naive in naive_bounds.items():
        torch.testing.assert_close(BOUNDS[name].loss(s)[0], -naive(s), rtol=1e-12, atol=1e-12)
    for name in ("js", "smile"):
        torch.testing.assert_close(BOUNDS[name].loss(s)[0], naive_js_loss(s), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("before", [0.8, 1.1, 30.0, 1e-3]) # the average before, as a multiple of the batch's mean
def test_moving_average_gradient_of_donsker_varadhan(before):
    rate, factor = 0.3, 1.25
    a, b = random_scores(1), random_scores(1)
    mean = naive_marginal(b, torch.exp)
    average = before * mean.item()
    loss, new = dv_loss(a, torch.tensor(math.log(average), dtype=torch.float64), rate, factor)
    loss.backward()
    mixed = (1 - rate) * average + rate * mean.item()
    mixed = min(max(mixed, mean.item() / factor), mean.item() * factor) # one odd batch does not rule the next ones
    (mean / mixed - naive_joint(b)).backward() # MINE: the mean in the denominator is the moving average
    torch.testing.assert_close(new.exp().item(), mixed, rtol=1e-10, atol=0)
    torch.testing.assert_close(-loss.detach(), naive_dv(a.detach()), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)


def test_several_matrices_are_one_sample_for_the_moving_average():
    s = torch.stack([random_scores(k).detach() for k in range(3)])
    loss, average = dv_loss(s, torch.tensor(math.nan))
    mean = sum(naive_marginal(m, torch.exp) for m in s) / 3
    torch.testing.assert_close(average, mean.log())
    torch.testing.assert_close(loss, mean.log() - sum(naive_joint(m) for m in s) / 3)


@pytest.mark.parametrize("name", [n for n in PAIRS if n != "js_loss"])
def test_weights_are_resamples_without_false_true_pairs(name):
    "A resample written out as a list of pairs, in which two draws of one pair are no false pair."
    s = random_scores(2).detach()
    drawn = [0, 0, 1, 3, 3, 3, 6]
    weights = torch.bincount(torch.tensor(drawn), minlength=B)[None].double()
    joint = sum(s[i, i] for i in drawn) / B
    false = [s[i, j] for i in drawn for j in drawn if i != j]
    mean_exp = sum(torch.exp(x) for x in false) / len(false)
    expected = {
        "infonce": sum(s[i, i] - torch.log((s[i, i].exp() + sum(s[i, j].exp() for j in drawn if j != i))
                                           / (1 + sum(j != i for j in drawn))) for i in drawn) / B,
        "dv": joint - mean_exp.log(), "nwj": joint - mean_exp / math.e, "js": 1 + joint - mean_exp,
        "smile": joint - (sum(torch.exp(x.clamp(-1, 1)) for x in false) / len(false)).log(),
        "club": joint - sum(false) / len(false), "barber_agakov": joint,
    }[name]
    function = {**{n: p[0] for n, p in PAIRS.items()}, "smile": lambda s, w: smile(s, w, tau=1.0)}[name]
    torch.testing.assert_close(function(s, weights)[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_leading_dimensions(name):
    fast = PAIRS[name][0]
    s = torch.stack([random_scores(k).detach() for k in range(6)]).reshape(2, 3, B, B)
    torch.testing.assert_close(fast(s)[1, 2], fast(s[1, 2]))
    assert fast(s).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [-1e4, 1e4])
@pytest.mark.parametrize("name", [n for n in BOUNDS])
def test_extreme_scores_give_finite_losses_and_gradients(name, size, dtype):
    signs = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).sign()
    for pattern in (torch.ones(16, 16), signs, 2 * torch.eye(16) - 1, 1 - 2 * torch.eye(16)):
        scores = (size * pattern).to(dtype).requires_grad_()
        bound = get_bound(name)
        loss, _ = bound.loss(scores)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite(), (name, size)
        assert scores.grad.isfinite().all(), (name, size)
        assert bound.estimate(scores.detach()).isfinite()


def test_half_precision_is_summed_in_float32():
    scores = random_scores(3, 64).detach()
    coarse = scores.bfloat16()
    for name, bound in BOUNDS.items():
        torch.testing.assert_close(bound.estimate(coarse), bound.estimate(coarse.float()), msg=name)


def test_a_sinking_false_pair_moves_the_loss_the_right_way():
    "Far above the range of exp, the NWJ gradient still pushes the score of a false pair down."
    scores = torch.zeros(4, 4)
    scores[0, 1] = 1e4
    scores.requires_grad_()
    BOUNDS["nwj"].loss(scores)[0].backward()
    assert scores.grad[0, 1] > 0


def test_order_of_the_bounds_for_the_same_scores():
    for seed in range(20):
        s = random_scores(seed, 12).detach()
        assert nwj(s) <= dv(s) + 1e-12
        assert infonce(s) <= math.log(12) + 1e-12


def test_shape_errors():
    for bad in (torch.zeros(3, 4), torch.zeros(1, 1), torch.zeros(3)):
        with pytest.raises(EstimationError, match="square matrix"):
            infonce(bad)
    with pytest.raises(EstimationError, match="Did you mean 'smile'"):
        get_bound("smil")


def naive_scores(critic: nn.Module, z, v):
    "One pair at a time, from the definition of each critic."
    out = torch.zeros(len(z), len(v), dtype=z.dtype)
    for i in range(len(z)):
        for j in range(len(v)):
            a, b = z[i], v[j]
            if hasattr(critic, "cross"):
                out[i, j] = a @ critic.cross @ b + a @ critic.z_own @ a + b @ critic.v_own @ b + a @ critic.z_line \
                    + b @ critic.v_line + critic.constant
            elif hasattr(critic, "z_tower"):
                g, h = critic.z_tower(a), critic.v_tower(b)
                width = critic.z_line.out_features
                out[i, j] = (g[1:] + critic.z_line(a)) @ (h[1:] + critic.v_line(b)) / width**0.5 + g[0] + h[0]
            else:
                weight = torch.cat([critic.z_part.weight, critic.v_part.weight], 1)
                out[i, j] = critic.rest(weight @ torch.cat([a, b]) + critic.z_part.bias)[0]
    return out


@pytest.mark.parametrize("name", CRITICS)
def test_critic_agrees_with_pairs_scored_one_by_one(name):
    torch.manual_seed(0)
    critic = get_critic(name).make(4, 3, hidden=(6, 5), embedding=4).double()
    for p in critic.parameters():
        nn.init.normal_(p)
    z, v = torch.randn(5, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(critic(z, v), naive_scores(critic, z, v), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CRITICS)
def test_every_weight_of_a_critic_learns(name):
    torch.manual_seed(0)
    critic = get_critic(name).make(4, 3, hidden=(6,), embedding=4)
    optimiser = torch.optim.SGD(critic.parameters(), lr=0.1)
    before = [p.clone() for p in critic.parameters()]
    for _ in range(3):
        BOUNDS["nwj"].loss(critic(torch.randn(8, 4), torch.randn(8, 3)))[0].backward()
        optimiser.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


def test_gaussian_conditional_gradient_reaches_both_sides():
    model = GaussianConditional(3, 2, hidden=(4,))
    z, v = torch.randn(5, 3, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    barber_agakov(model(z, v)).backward()
    assert z.grad.abs().sum() > 0 and v.grad.abs().sum() > 0


def test_log_mean_of_equal_scores():
    assert log_mean_exp_off_diagonal(torch.full((5, 5), 3.0)).item() == pytest.approx(3.0)


def test_unusable_critics():
    with pytest.raises(EstimationError, match="at least one hidden layer"):
        get_critic("concat").make(2, 2, hidden=())
    with pytest.raises(EstimationError, match="allowed are separable, bilinear, concat"):
        get_critic("x")
    with pytest.raises(EstimationError, match="or a callable"):
        get_critic(get_critic("bilinear").make(2, 2)) # a critic that is made already


# records

@pytest.fixture
def own_module(tmp_path, monkeypatch):
    "A user's own module on the path."
    (tmp_path / "own_critics.py").write_text(
        "from cotmi.information.bounds import Bound, infonce, negative\n"
        "from cotmi.information.critics import BilinearCritic, Critic\n"
        "def plain(z_width, v_width): return BilinearCritic(z_width, v_width)\n"
        "RECORD = Critic('record', 'Record', lambda z, v, hidden, embedding: BilinearCritic(z, v), block=16)\n"
        "BOUND = Bound('mine', 'Mine', 'lower', infonce, negative(infonce), 'None.', 'nobody', capped=True)\n")
    (tmp_path / "own_broken.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_critics"
    sys.modules.pop("own_critics", None)


def test_own_critics_and_bounds_are_imported_by_name(own_module):
    assert get_critic("own_critics:plain").name == "plain"
    assert get_critic("own_critics:plain").make(3, 2, (8,), 4)(torch.ones(4, 3), torch.ones(5, 2)).shape == (4, 5)
    assert get_critic("own_critics:RECORD").block == 16
    assert get_bound("own_critics:BOUND").ceiling(8) == math.log(8)


@pytest.mark.parametrize(("name", "message"), [
    ("own_critics:plian", "has no 'plian'. Did you mean 'plain'"),
    ("own_broken:anything", "importing own_broken fails: ModuleNotFoundError: No module named 'no_such_package'"),
    ("nowhere_at_all:anything", "put its folder on PYTHONPATH"),
    ("own_critics:", "expected package.module:attribute"),
    ("own critics.py:plain", "expected package.module:attribute"),
])
def test_what_cannot_be_imported_is_said(own_module, name, message):
    for get in (get_critic, get_bound):
        with pytest.raises(EstimationError, match=re.escape(message)):
            get(name)


def test_an_imported_object_must_be_what_is_asked_for(own_module):
    with pytest.raises(EstimationError, match="a Bound of your own"):
        get_bound("own_critics:plain")
    with pytest.raises(EstimationError, match="allowed are separable"):
        get_critic("math:pi")


def test_only_donsker_varadhan_carries_a_state():
    s = random_scores().detach()
    for name, bound in BOUNDS.items():
        loss, state = bound.loss(s)
        again, moved = bound.loss(s + 1, state)
        if name == "dv":
            torch.testing.assert_close(state, naive_marginal(s, torch.exp).log())
            assert moved > state and again == pytest.approx(loss) # the value is that of the bound, whatever the state
        else:
            assert state is None and moved is None


def test_tau_belongs_to_smile_alone():
    s = random_scores().detach()
    for name, bound in BOUNDS.items():
        changed = not torch.equal(bound.with_tau(0.5).read(s), bound.read(s))
        assert changed == (name == "smile")
    torch.testing.assert_close(BOUNDS["smile"].with_tau(1.0).read(s), naive_smile(s, 1.0))


@pytest.mark.parametrize("name", CRITICS)
def test_a_silenced_critic_says_nothing_and_learns(name):
    torch.manual_seed(0)
    record = get_critic(name)
    critic = record.make(4, 3, hidden=(6,), embedding=4)
    record.silence(critic)
    z, v = torch.randn(8, 4), torch.randn(8, 3)
    assert not critic(z, v).any()
    optimiser = torch.optim.SGD(critic.parameters(), lr=0.1)
    for _ in range(20):
        loss, _ = BOUNDS["infonce"].loss(critic(z, v))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < -0.01


def test_a_record_without_silence_starts_from_what_it_gives():
    record = Critic("own", "Own", lambda z_width, v_width, hidden, embedding: get_critic("concat").make(2, 2, (4,)))
    module, rho = record.make(2, 2, (), 0), torch.tensor([0.5, 0.1])
    z, v = torch.randn(5, 2), torch.randn(5, 2)
    exact = get_critic("bilinear").start(get_critic("bilinear").make(2, 2), rho)(z, v)
    torch.testing.assert_close(record.start(module, rho, 1.0)(z, v), exact + 1 + module(z, v))
