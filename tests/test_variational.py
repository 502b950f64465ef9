"""The critic trained beside a student: it learns, its gradients go where they should, its state survives saving."""
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from cotmi.core import EstimationError
from cotmi.information.bounds import BOUNDS, get_bound
from cotmi.information.critics import BilinearCritic, Critic
from cotmi.training.variational import VARIATIONAL, Bottleneck, RunningStandardize, VariationalObjective

SMALL = dict(hidden=16, embedding=8)


def pairs(n: int, width: int = 4, rho: float = 0.8, seed: int = 0):
    z, noise = torch.randn(2, n, width, generator=torch.Generator().manual_seed(seed))
    return z, rho * z + math.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize("critic", ["bilinear", "separable", "concat"])
@pytest.mark.parametrize("name", VARIATIONAL)
def test_loss_and_estimate(name, critic):
    torch.manual_seed(0)
    objective = VariationalObjective(name, 4, 4, critic, **SMALL)
    z, v = (x.requires_grad_() for x in pairs(32))
    loss, estimate = objective(z, v)
    assert loss.shape == estimate.shape == () and loss.isfinite() and estimate.isfinite()
    assert loss.requires_grad and not estimate.requires_grad
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


def test_detached_z_gives_gradients_to_the_rationale_side_alone():
    torch.manual_seed(0)
    objective = VariationalObjective("smile", 4, 4, **SMALL)
    z, v = (x.requires_grad_() for x in pairs(32))
    loss, _ = objective(z.detach(), v)
    loss.backward()
    assert z.grad is None and v.grad.abs().sum() > 0


@pytest.mark.parametrize("name", VARIATIONAL)
def test_raising_the_bound_raises_what_two_encoders_share(name):
    "Two linear encoders of one input, trained through the objective, come to share more of it."
    torch.manual_seed(0)
    objective = VariationalObjective(name, 2, 2, **SMALL)
    z_encoder, v_encoder = nn.Linear(6, 2), nn.Linear(6, 2)
    optimiser = torch.optim.Adam([*objective.parameters(), *z_encoder.parameters(), *v_encoder.parameters()], lr=1e-2)
    x = torch.randn(4000, 6)

    def shared() -> float: # squared correlation of the best linear map from z to v
        with torch.no_grad():
            z, v = z_encoder(x), v_encoder(x)
            z, v = z - z.mean(0), v - v.mean(0)
            fitted = z @ torch.linalg.lstsq(z, v).solution
            return float(fitted.square().sum() / v.square().sum())

    before = shared()
    for step in range(150):
        batch = x[torch.randint(len(x), (64,), generator=torch.Generator().manual_seed(step))]
        noise = 0.3 * torch.randn(2, 64, 2)
        loss, _ = objective(z_encoder(batch) + noise[0], v_encoder(batch) + noise[1])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert shared() > max(before + 0.15, 0.5)


@pytest.mark.parametrize("name", VARIATIONAL)
def test_half_precision_and_huge_features(name):
    torch.manual_seed(0)
    objective = VariationalObjective(name, 4, 4, **SMALL)
    z, v = pairs(16)
    for scale, dtype in ((1e4, torch.float32), (1e-6, torch.float32), (1.0, torch.bfloat16)):
        a, b = (scale * z).to(dtype).requires_grad_(), (scale * v).to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, estimate = objective(a, b)
        assert loss.dtype == torch.float32 and loss.isfinite() and estimate.isfinite()
        loss.backward()
        assert a.grad.isfinite().all() and b.grad.isfinite().all()


def test_a_constant_dimension_does_no_harm():
    objective = VariationalObjective("infonce", 4, 4, **SMALL)
    z, v = pairs(16)
    z[:, 0] = 3
    z.requires_grad_()
    loss, estimate = objective(z, v)
    loss.backward()
    assert estimate.isfinite() and z.grad.isfinite().all()


def test_moving_average_of_donsker_varadhan_is_kept_in_training_only():
    torch.manual_seed(0)
    objective = VariationalObjective("dv", 4, 4, **SMALL)
    assert objective.log_average.isnan()
    objective(*pairs(32))
    first = objective.log_average.clone()
    objective(*pairs(32, seed=1))
    assert first.isfinite() and objective.log_average != first
    kept = objective.log_average.clone()
    objective.eval()(*pairs(32, seed=2))
    assert objective.log_average == kept


def test_running_averages_settle_on_those_of_the_data():
    scale = RunningStandardize(2)
    for seed in range(200):
        x = torch.randn(64, 2, generator=torch.Generator().manual_seed(seed)) * torch.tensor([3.0, 0.1]) + 7
        scale(x)
    torch.testing.assert_close(scale.mean, torch.tensor([7.0, 7.0]), atol=0.2, rtol=0)
    torch.testing.assert_close(scale.variance.sqrt(), torch.tensor([3.0, 0.1]), rtol=0.1, atol=0)


def test_standardising_leaves_the_direction_of_the_gradient():
    "The statistics carry no gradient: dimension by dimension the gradient is only scaled."
    scale = RunningStandardize(3)
    x = (5 * torch.randn(8, 3)).requires_grad_()
    wanted = torch.randn(8, 3)
    (scale(x) * wanted).sum().backward()
    torch.testing.assert_close(x.grad, wanted * (scale.variance + 1e-8).rsqrt())


@pytest.mark.parametrize("name", VARIATIONAL)
def test_state_survives_safetensors(name, tmp_path):
    torch.manual_seed(0)
    objective, other = (VariationalObjective(name, 4, 4, **SMALL) for _ in range(2))
    objective(*pairs(32))
    save_model(objective, str(tmp_path / "critic.safetensors"))
    load_model(other, str(tmp_path / "critic.safetensors"))
    again = pairs(32, seed=3)
    assert torch.equal(objective(*again)[0], other(*again)[0])
    assert torch.equal(objective.log_average.nan_to_num(), other.log_average.nan_to_num())


def test_one_pair_says_nothing():
    objective = VariationalObjective("nwj", 4, 4, **SMALL)
    _, estimate = objective(*pairs(32))
    z, v = (x.requires_grad_() for x in pairs(1))
    loss, kept = objective(z, v)
    loss.backward()
    assert loss == 0 and kept == estimate and z.grad.abs().sum() == 0


def test_checkpoints_of_the_first_version_still_load():
    "Names and shapes of what is saved, by which a resumed run finds its critic."
    sides = {f"{side}_scale.{name}": shape for side in "zv"
             for name, shape in (("mean", (4,)), ("variance", (4,)), ("batches", ()))}
    tower = {f"critic.{side}_{name}": shape for side in "zv" for name, shape in (
        ("tower.0.weight", (16, 4)), ("tower.0.bias", (16,)), ("tower.2.weight", (9, 16)), ("tower.2.bias", (9,)),
        ("line.weight", (8, 4)))}
    state = VariationalObjective("dv", 4, 4, **SMALL).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "log_average": (), "last": (), **sides, **tower}


@pytest.mark.parametrize("critic", [
    BilinearCritic, "cotmi.information.critics:BilinearCritic",
    Critic("own", "Own", lambda z_width, v_width, hidden, embedding: BilinearCritic(z_width, v_width))])
def test_own_critic_trains_as_the_built_in_one_does(critic):
    own, built_in = VariationalObjective("dv", 4, 4, critic), VariationalObjective("dv", 4, 4, "bilinear")
    for seed in range(3):
        losses = []
        for objective in (own, built_in):
            loss, _ = objective(*pairs(32, seed=seed))
            objective.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in objective.parameters():
                    p -= 0.1 * p.grad
            losses.append(loss.item())
        assert losses[0] == losses[1]
    assert own.critic.cross.any()


def test_own_bound_is_read_with_the_tau_of_the_run():
    own = replace(get_bound("smile"), name="mine")
    torch.manual_seed(0)
    objective = VariationalObjective(own, 4, 4, "separable", smile_tau=0.5, **SMALL)
    z, v = pairs(64)
    _, estimate = objective(z, v)
    scores = objective.eval().critic(objective.z_scale(z), objective.v_scale(v)).detach()
    torch.testing.assert_close(estimate, get_bound("smile").estimate(scores, None, 0.5))
    assert estimate != get_bound("smile").estimate(scores)


def test_only_lower_bounds_are_raised():
    assert set(VARIATIONAL) == {name for name, bound in BOUNDS.items() if bound.direction == "lower"}
    for bound in ("club", BOUNDS["gaussian"]):
        with pytest.raises(EstimationError, match="or a lower bound of your own"):
            VariationalObjective(bound, 4, 4)


def test_unknown_names():
    with pytest.raises(EstimationError, match="allowed are infonce, nwj, dv, js, smile, barber-agakov"):
        VariationalObjective("paper-code", 4, 4)
    with pytest.raises(EstimationError, match="Did you mean 'bilinear'"):
        VariationalObjective("nwj", 4, 4, "bilinar")


def test_bottleneck_bounds_what_a_gaussian_channel_lets_through():
    "For Gaussian states and the best prior, the KL is the capacity 1/2 log(1 + signal / noise) of each dimension."
    bottleneck = Bottleneck(2, noise=0.5)
    states = torch.randn(200_000, 1, 2) * torch.tensor([1.0, 3.0])
    with torch.no_grad(): # the best prior has the variance of the sample
        bottleneck.prior_log_variance.copy_(torch.log(torch.tensor([1.25, 9.25])))
    _, kl = bottleneck(states, torch.ones(200_000, 1))
    capacity = 0.5 * (math.log(1 + 1 / 0.25) + math.log(1 + 9 / 0.25))
    assert kl.item() == pytest.approx(capacity, abs=0.02)


def test_bottleneck_learns_to_let_less_through():
    torch.manual_seed(0)
    bottleneck, states, mask = Bottleneck(3), torch.randn(16, 4, 3), torch.ones(16, 4)
    optimiser = torch.optim.Adam(bottleneck.parameters(), lr=0.05)
    first = bottleneck(states, mask)[1].item()
    for _ in range(100):
        _, kl = bottleneck(states, mask)
        optimiser.zero_grad()
        kl.backward()
        optimiser.step()
    assert kl.item() < 0.3 * first
    noisy = bottleneck(states, mask)[0]
    assert (noisy - states).std() > 0.3
    assert torch.equal(bottleneck.eval()(states, mask)[0], states)
