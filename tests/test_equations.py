"""Every loss against a closed form, at distinct primes so that no two axes can be confused."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

import fmer_continuous as fmer

B, N, D, S, K = 5, 7, 3, 11, 13


@pytest.fixture(autouse=True)
def double_precision():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gauss_expectation(f, sigma=1.0):
    """E f(σz), z ~ N(0,1), by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    return float((f(torch.tensor(nodes) * sigma) * torch.tensor(weights)).sum() / weights.sum())


def log_sech2(x):
    """log d tanh(x)/dx, by torch.distributions."""
    return TanhTransform().log_abs_det_jacobian(x, x.tanh())


# --- Eq. (2): the sampler ---------------------------------------------------------------------


def test_sample_path_shape_noise_and_no_gradient():
    velocity = fmer.VelocityField(S, D, 17)
    path = fmer.sample_path(velocity, torch.randn(B, S), N, K, D)
    assert path.shape == (K + 1, B, N, D)
    assert not path.requires_grad
    assert torch.equal(path[0], path[-1]), "the last layer starts at zero: the flow is the identity"
    noise = fmer.sample_path(velocity, torch.randn(2003, S), N, 1, D)[0]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_euler_is_exact_on_a_constant_field():
    c = torch.randn(D)
    for steps in (1, 2, K):
        path = fmer.sample_path(lambda s, x, t: c.expand_as(x), torch.zeros(B, S), N, steps, D)
        torch.testing.assert_close(path[-1], path[0] + c)


def test_euler_visits_the_left_ends_of_its_steps():
    path = fmer.sample_path(lambda s, x, t: t.expand_as(x), torch.zeros(B, S), N, K, D)
    expected = sum(k / K for k in range(K)) / K  # Σ h·t_k, t_k = k/K
    torch.testing.assert_close(path[-1] - path[0], torch.full_like(path[0], expected))


def test_euler_is_first_order_on_a_linear_field():
    """x' = ax has x_1 = eᵃ x_0; Euler gives (1 + a/K)^K x_0, whose error halves as K doubles."""
    a, errors = 0.7, []
    for steps in (16, 32, 64):
        path = fmer.sample_path(lambda s, x, t: a * x, torch.zeros(B, S), N, steps, D)
        torch.testing.assert_close(path[-1], (1 + a / steps) ** steps * path[0])
        errors.append((math.exp(a) - path[-1] / path[0]).mean())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.03)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.02)


def test_the_state_reaches_its_own_candidates_only():
    s = torch.randn(B, D)
    path = fmer.sample_path(lambda s, x, t: s.expand_as(x), s, N, K, D)
    torch.testing.assert_close(path[-1] - path[0], s.unsqueeze(1).expand(B, N, D))


def test_generator_makes_the_noise_reproducible_and_spares_the_default_one():
    state = torch.get_rng_state()
    paths = [
        fmer.sample_path(
            lambda s, x, t: x, torch.zeros(B, S), N, K, D, torch.Generator().manual_seed(3)
        )
        for _ in range(2)
    ]
    assert torch.equal(*paths)
    assert torch.equal(state, torch.get_rng_state())


# --- Networks ---------------------------------------------------------------------------------


def test_network_shapes_and_broadcasting():
    velocity, critic = fmer.VelocityField(S, D, 17), fmer.TwinQ(S, D, 17)
    torch.nn.init.normal_(velocity.net.out.weight)
    s, x = torch.randn(B, S), torch.randn(B, N, D)
    t = torch.rand(B, N, 1)
    v, q = velocity(s.unsqueeze(1), x, t), critic(s.unsqueeze(1), x)
    assert v.shape == (B, N, D) and q.shape == (2, B, N)
    assert critic(s, x[:, 0]).shape == (2, B)
    torch.testing.assert_close(v[2, 4], velocity(s[2], x[2, 4], t[2, 4]))
    torch.testing.assert_close(q[:, 2, 4], critic(s[2], x[2, 4]))
    assert not torch.allclose(q[0], q[1]), "the twins must start apart"


def test_the_summed_first_layer_is_the_layer_on_the_concatenation():
    mlp = fmer.MLP([S, D], 17, 1)
    s, a = torch.randn(B, S), torch.randn(B, D)
    joint = torch.nn.Linear(S + D, 17)
    joint.weight.data = torch.cat([layer.weight for layer in mlp.inputs], 1)
    joint.bias.data = mlp.inputs[0].bias
    silu = torch.nn.functional.silu
    expected = mlp.out(silu(mlp.hidden(silu(joint(torch.cat([s, a], 1))))))
    torch.testing.assert_close(mlp(s, a), expected)


def test_normalised_critics():
    mlp = fmer.MLP([S, D], 17, 1, torch.nn.LayerNorm)
    s, a = torch.randn(B, S), torch.randn(B, D)
    silu, norm = torch.nn.functional.silu, lambda h: torch.nn.functional.layer_norm(h, (17,))
    first = mlp.inputs[0](s) + mlp.inputs[1](a)
    expected = mlp.out(silu(norm(mlp.hidden(silu(norm(first))))))
    torch.testing.assert_close(mlp(s, a), expected)
    norms = [type(fmer.TwinQ(S, D, 17, flag).q2.norm2) for flag in (False, True)]
    assert norms == [torch.nn.Identity, torch.nn.LayerNorm]


# --- Eqs. (4)-(6): weights --------------------------------------------------------------------


def test_weights_are_a_softmax_of_advantages():
    q = torch.randn(B, N)
    weights, ess = fmer.candidate_weights(q, torch.tensor(0.7))
    assert weights.shape == (B, N) and ess.shape == (B,)
    torch.testing.assert_close(weights.sum(1), torch.ones(B))
    ratio = weights[:, 0] / weights[:, 1]
    torch.testing.assert_close(ratio, ((q[:, 0] - q[:, 1]) / 0.7).exp())
    torch.testing.assert_close(ess, 1 / (weights**2).sum(1))
    shifted, _ = fmer.candidate_weights(q + 1e3 * torch.randn(B, 1), torch.tensor(0.7))
    torch.testing.assert_close(shifted, weights)


def test_effective_sample_size_at_both_extremes():
    q = torch.arange(N).expand(B, N) / N
    torch.testing.assert_close(fmer.candidate_weights(q, 1e6)[1], torch.full((B,), float(N)))
    torch.testing.assert_close(fmer.candidate_weights(q, 1e-6)[1], torch.ones(B))


# --- Eqs. (3), (7): weighted conditional flow matching -----------------------------------------


def test_flow_matching_loss_vanishes_on_its_closed_form_minimiser():
    """All candidates at c: v*(x, t) = (c − x) / (1 − t) is x_1 − x_0 on every path."""
    c = torch.randn(B, 1, D)
    weights = torch.softmax(torch.randn(B, N), 1)

    def optimum(s, x, t):
        return (c - x) / (1 - t)

    x1 = c.expand(B, N, D)
    loss = fmer.flow_matching_loss(optimum, torch.zeros(B, S), x1, weights)
    assert loss.shape == () and loss < 1e-20
    shifted = fmer.flow_matching_loss(lambda *a: optimum(*a) + 2, torch.zeros(B, S), x1, weights)
    assert shifted.item() == pytest.approx(4 * D)  # sums over the d components, averages over B


def test_uniform_weights_reduce_to_plain_flow_matching():
    s, x1 = torch.randn(B, S), torch.randn(B, N, D)

    def velocity(s, x, t):
        return torch.sin(3 * x) + t + s.sum(-1, keepdim=True)

    torch.manual_seed(5)
    loss = fmer.flow_matching_loss(velocity, s, x1, torch.full((B, N), 1 / N))
    torch.manual_seed(5)
    x0, t = torch.randn(B, N, D), torch.rand(B, N, 1)
    target = x1 - x0
    plain = (velocity(s.unsqueeze(1), x0 + t * target, t) - target).pow(2).sum(2).mean()
    torch.testing.assert_close(loss, plain)


def test_weights_move_mass_to_the_better_mode():
    """Two modes ±1 with weights 0.9 and 0.1: the flow sends 90 % of its samples to the first."""
    torch.set_default_dtype(torch.float32)
    velocity = fmer.VelocityField(1, 1, 64)
    optimizer = torch.optim.Adam(velocity.parameters(), 3e-3)
    s, modes = torch.zeros(257, 1), torch.tensor([[1.0], [-1.0]]).expand(257, 2, 1)
    weights = torch.tensor([0.9, 0.1]).expand(257, 2)
    for _ in range(700):
        optimizer.zero_grad()
        fmer.flow_matching_loss(velocity, s, modes, weights).backward()
        optimizer.step()
    x1 = fmer.sample_path(velocity, s[:1], 20_011, 20, 1)[-1]
    assert (x1 > 0).float().mean().item() == pytest.approx(0.9, abs=0.03)
    assert ((x1.abs() - 1).abs() < 0.3).float().mean() > 0.9, "the samples sit at the modes"


def test_the_minimiser_is_one_mirror_descent_step():
    """π_old = N(0,1), A = c·x: π_new ∝ π_old·exp(A/T) is N(c/T, 1)."""
    torch.set_default_dtype(torch.float32)
    velocity, c, temperature = fmer.VelocityField(1, 1, 64), 0.5, 0.6
    optimizer = torch.optim.Adam(velocity.parameters(), 3e-3)
    s = torch.zeros(13, 1)
    for step in range(900):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 900)
        x1 = torch.randn(13, 257, 1)
        weights, _ = fmer.candidate_weights(c * x1.squeeze(2), temperature)
        optimizer.zero_grad()
        fmer.flow_matching_loss(velocity, s, x1, weights).backward()
        optimizer.step()
    x1 = fmer.sample_path(velocity, s[:1], 50_021, 50, 1)[-1]
    assert x1.mean().item() == pytest.approx(c / temperature, abs=0.06)
    assert x1.std().item() == pytest.approx(1.0, abs=0.06)


# --- Eqs. (8), (9): entropy -------------------------------------------------------------------


def test_entropy_is_finite_in_saturation():
    """v = 0 changes nothing, so H = d·H_0 wherever the sampler has been: at x = ±10⁴ as well."""
    path = torch.full((K + 1, B, N, D), 1e4) * torch.tensor([1.0, -1.0, 0.0])
    velocity = lambda s, x, t: 0 * x * t  # noqa: E731
    entropy = fmer.policy_entropy(velocity, torch.zeros(B, S), path)
    assert entropy.item() == pytest.approx(D * fmer.BASE_ENTROPY)


def test_base_entropy_is_that_of_a_squashed_standard_normal():
    gaussian = 0.5 * math.log(2 * math.pi * math.e)
    expected = gaussian + gauss_expectation(log_sech2)
    assert expected == pytest.approx(fmer.BASE_ENTROPY, abs=1e-6)
    squashed = TransformedDistribution(Normal(0.0, 1.0), TanhTransform(cache_size=1))
    a = squashed.sample((1_000_003,))
    assert -squashed.log_prob(a).mean() == pytest.approx(fmer.BASE_ENTROPY, abs=5e-3)


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_exact_entropy_of_a_linear_field(steps):
    """v = A x, M = (I + hA)^K: H = log|det M| + ½ d log 2πe + Σ_j E log sech²(σ_j z)."""
    matrix = torch.tensor([[0.6, -0.9, 0.2], [0.3, -0.5, 0.8], [-0.4, 0.1, 0.4]])
    flow = torch.linalg.matrix_power(torch.eye(D) + matrix / steps, steps)
    sigma = (flow @ flow.T).diagonal().sqrt()
    expected = flow.det().abs().log() + D * 0.5 * math.log(2 * math.pi * math.e)
    expected += sum(gauss_expectation(log_sech2, each.item()) for each in sigma)

    def velocity(s, x, t):
        return x @ matrix.T

    s = torch.zeros(200_003, 1)
    path = fmer.sample_path(velocity, s, 1, steps, D)
    estimate = fmer.policy_entropy(velocity, s, path)
    assert estimate.shape == ()
    assert estimate.item() == pytest.approx(expected.item(), abs=0.02)


@pytest.mark.parametrize("steps", [1, 4])
def test_exact_entropy_sees_time_and_state(steps):
    """v = (s + t) x: M = Π_k (1 + h (s + t_k)) I."""
    factor = math.prod(1 + (0.3 + k / steps) / steps for k in range(steps))
    expected = math.log(factor) + 0.5 * math.log(2 * math.pi * math.e)
    expected += gauss_expectation(log_sech2, factor)

    def velocity(s, x, t):
        return (s + t) * x

    s = torch.full((200_003, 1), 0.3)
    path = fmer.sample_path(velocity, s, 1, steps, 1)
    assert fmer.policy_entropy(velocity, s, path).item() == pytest.approx(expected, abs=0.01)


def test_exact_entropy_takes_the_modulus_of_a_reflecting_step():
    path = fmer.sample_path(lambda s, x, t: -2 * x, torch.zeros(50_021, 1), 1, 1, 1)
    entropy = fmer.policy_entropy(lambda s, x, t: -2 * x, torch.zeros(50_021, 1), path)
    assert entropy.item() == pytest.approx(fmer.BASE_ENTROPY, abs=1e-9)  # x ↦ −x


def test_the_ode_limit_approaches_the_exact_entropy_as_one_over_k():
    def velocity(s, x, t):
        return -0.8 * x

    gaps = []
    for steps in (10, 20, 40):
        s = torch.zeros(100_003, 1)
        torch.manual_seed(1)
        path = fmer.sample_path(velocity, s, 1, steps, 1)
        torch.manual_seed(2)
        exact = fmer.policy_entropy(velocity, s, path)
        torch.manual_seed(2)
        limit = fmer.policy_entropy(velocity, s, path, exact=False)
        gaps.append((limit - exact).item())
    assert gaps[0] > 0.01, "the limit flatters a contracting policy"
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.1)


def test_the_ode_limit_is_the_entropy_of_the_exact_flow():
    """v = A x, K large: x_1 = e^A x_0, so H = tr A + ½ d log 2πe + Σ_j E log sech²(σ_j z)."""
    matrix = torch.tensor([[0.6, -0.9, 0.2], [0.3, -0.5, 0.8], [-0.4, 0.1, 0.4]])
    flow = torch.linalg.matrix_exp(matrix)
    expected = matrix.trace() + D * 0.5 * math.log(2 * math.pi * math.e)
    for sigma in (flow @ flow.T).diagonal().sqrt():
        expected += gauss_expectation(log_sech2, sigma.item())
    s = torch.zeros(20_011, 1)
    path = fmer.sample_path(lambda s, x, t: x @ matrix.T, s, 1, 200, D)
    estimate = fmer.policy_entropy(lambda s, x, t: x @ matrix.T, s, path, exact=False)
    assert estimate.item() == pytest.approx(expected.item(), abs=0.05)


@pytest.mark.parametrize("exact", [True, False])
def test_entropy_gradient_matches_its_closed_form(exact):
    """v = θx: ∂/∂θ of K·E[log(1+hθ) + log sech²((1+hθ)x_k)] and of E[θ − 2θ x_k tanh x_k]."""
    theta = torch.tensor(0.4, requires_grad=True)
    steps, s = 5, torch.zeros(B * 5, 1)
    path = fmer.sample_path(lambda s, x, t: theta * x, s, N, steps, 1)
    torch.manual_seed(3)
    fmer.policy_entropy(lambda s, x, t: theta * x, s, path, exact).backward()
    torch.manual_seed(3)
    k = (torch.arange(len(s)) + torch.randint(steps, (1,))) % steps
    x = path[k, torch.arange(len(s)), 0]
    h, th = 1 / steps, theta.detach()
    if exact:  # d log sech² y / dy = −2 tanh y
        expected = steps * (h / (1 + h * th) - 2 * torch.tanh((1 + h * th) * x) * h * x).mean()
    else:
        expected = (1 - 2 * x.tanh() * x).mean()
    torch.testing.assert_close(theta.grad, expected)


def test_each_euler_step_is_visited_equally_often():
    seen = []

    def velocity(s, x, t):
        seen.append(t)
        return x

    path = torch.zeros(K + 1, 3 * K, N, D)
    fmer.policy_entropy(velocity, torch.zeros(3 * K, S), path)
    assert torch.equal((seen[0] * K).round().long().flatten().bincount(), torch.full((K,), 3))


# --- Eq. (10): the closed-form minimiser -------------------------------------------------------


def oracle(x, t, sigma, alpha):
    """v = x·(tσ² − (1−t) + α/2)/s_t² − α·tanh x, s_t² = (1−t)² + t²σ², for x_1 ~ N(0,σ²)."""
    variance = (1 - t) ** 2 + t**2 * sigma**2
    return x * (t * sigma**2 - (1 - t) + alpha / 2) / variance - alpha * x.tanh()


@pytest.mark.parametrize("exact", [True, False])
def test_the_loss_is_stationary_at_the_closed_form_minimiser(exact):
    """∂L/∂θ_j = 0 at v = oracle + Σ_j θ_j φ_j, L of Eq. (10) in its limit (K large)."""
    sigma, alpha, batch, steps, d = 0.6, 0.5, 60_013, 101, 1
    s, x0 = torch.zeros(batch, 1), torch.randn(batch, 1, d)
    x1 = sigma * torch.randn(batch, 1, d)
    grid = (torch.arange(steps + 1) / steps).view(-1, 1, 1, 1)
    path = (1 - grid) * x0 + grid * x1  # the p_t that the minimiser is derived for

    def gradient(alpha_of_field):
        theta = torch.zeros(4, requires_grad=True)

        def velocity(s, x, t):
            basis = torch.stack([x, t * x, x.tanh(), torch.sin(2 * x) * (1 - t)])
            return oracle(x, t, sigma, alpha_of_field) + torch.tensordot(theta, basis, 1)

        loss = fmer.flow_matching_loss(velocity, s, x1, torch.ones(batch, 1))
        loss = loss - alpha * fmer.policy_entropy(velocity, s, path, exact)
        return torch.autograd.grad(loss, theta)[0]

    assert gradient(alpha).abs().max() < 0.03
    assert gradient(0.0).abs().max() > 0.15, "without its entropy term the field is not stationary"


# --- Eq. (12): the target ---------------------------------------------------------------------


def test_target_bootstraps_unless_terminated():
    reward, value = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    y = fmer.td_target(reward, torch.tensor([0.0, 1.0, 0.0]), value, 0.9)
    torch.testing.assert_close(y, torch.tensor([10.0, 2.0, 30.0]))


def test_best_of_executes_the_candidate_of_largest_smaller_q():
    s = torch.randn(B, S)

    def critic(s, a):  # min_j Q_j = −|a_0 − 0.2|, whatever the other components
        distance = (a[..., 0] - 0.2).abs()
        return torch.stack([-distance, -distance + s[..., 0].abs()])

    torch.manual_seed(7)
    a, value = fmer.best_of(lambda s, x, t: 0 * x, critic, s, N, K, D)
    torch.manual_seed(7)
    candidates = torch.randn(B, N, D).tanh()
    distance = (candidates[..., 0] - 0.2).abs()
    assert a.shape == (B, D) and value.shape == (B,)
    torch.testing.assert_close(value, -distance.min(1).values)
    torch.testing.assert_close(a, candidates[torch.arange(B), distance.argmin(1)])
