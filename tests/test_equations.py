"""Equations against closed forms or sums written out, on both scripts: one section each.

The functions draw nothing, so that expectations are sums here and need no patience:
over all steps k, over all probes ±1, over the nodes of a quadrature. Flow matching takes
the nodes as weighted candidates. The entropies average over states alike, but a field
v = s·φ(x, t) has one parameter s for each state: its gradient, state by state, can be
weighted afterwards (`gradient`). Axes are distinct primes, numbers float64.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, TanhTransform

B, N, D, S, K = 5, 7, 3, 11, 13
NORMAL_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)


@pytest.fixture(autouse=True)
def double_precision():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normal_nodes(number=60):
    """Nodes z and weights of E f(z) = Σ w f(z), z ~ N(0,1)."""
    z, w = np.polynomial.hermite_e.hermegauss(number)
    return torch.tensor(z), torch.tensor(w / w.sum())


def unit_nodes(number=40):
    """Nodes t and weights of ∫_0^1 f(t) dt = Σ w f(t)."""
    t, w = np.polynomial.legendre.leggauss(number)
    return torch.tensor((t + 1) / 2), torch.tensor(w / 2)


def product(*rules):
    """The nodes and weights of several rules, in all combinations."""
    nodes = torch.meshgrid(*[nodes for nodes, _ in rules], indexing="ij")
    weights = torch.meshgrid(*[weights for _, weights in rules], indexing="ij")
    return *[each.flatten() for each in nodes], math.prod(weights).flatten()


def log_sech2(x):
    """log d tanh(x)/dx, by torch.distributions."""
    return TanhTransform().log_abs_det_jacobian(x, x.tanh())


def squashed_entropy(sigma):
    """The entropy of tanh(σz), z ~ N(0,1), by quadrature."""
    z, w = normal_nodes(150)
    return NORMAL_ENTROPY + math.log(sigma) + (w @ log_sech2(sigma * z)).item()


def random_network(fmer, dim=D):
    """A velocity field that is not zero, as it is at the start."""
    velocity = fmer.VelocityField(S, dim, 17)
    torch.nn.init.normal_(velocity.net.out.weight)
    return velocity


def all_steps(path):
    """(K+1,B,d) -> the paths and steps of B·K states, each k once for each path."""
    steps = len(path) - 1
    repeated = path.repeat_interleave(steps, 1)
    return repeated, torch.arange(steps).repeat(path.shape[1])


def gradient(entropy, velocity, s, path, k, weights, *probe):
    """Σ_b weights_b · (the gradient of state b's own term to its own s)."""
    s = s.clone().requires_grad_()
    entropy(velocity, s, path, k, *probe).backward()
    return weights @ s.grad * len(s)  # each term counts 1/B in the entropy's mean


# --- Eq. (1): the networks --------------------------------------------------------------


def test_network_shapes_and_broadcasting(fmer):
    velocity, critic = random_network(fmer), fmer.TwinQ(S, D, 17)
    s, x, t = torch.randn(B, S), torch.randn(B, N, D), torch.rand(B, N, 1)
    v, q = velocity(s.unsqueeze(1), x, t), critic(s.unsqueeze(1), x)
    assert v.shape == (B, N, D) and q.shape == (2, B, N)
    assert critic(s, x[:, 0]).shape == (2, B)
    torch.testing.assert_close(v[2, 4], velocity(s[2], x[2, 4], t[2, 4]))
    torch.testing.assert_close(q[:, 2, 4], critic(s[2], x[2, 4]))
    assert not torch.allclose(q[0], q[1]), "the twins must start apart"


def test_the_flow_starts_as_the_identity(fmer):
    v = fmer.VelocityField(S, D, 17)(torch.randn(B, S), torch.randn(B, D), torch.rand(B, 1))
    assert torch.equal(v, torch.zeros(B, D))


def test_every_input_matters_and_no_two_times_look_alike(fmer):
    velocity = random_network(fmer)
    s, x, t = torch.randn(2, S), torch.randn(2, D), torch.tensor([[0.0], [1.0]])
    v = velocity(s[:1], x[:1], t[:1])
    for other in [(s[1:], x[:1], t[:1]), (s[:1], x[1:], t[:1]), (s[:1], x[:1], t[1:])]:
        assert (velocity(*other) - v).abs().min() > 1e-3
    times = torch.linspace(0, 1, 97).unsqueeze(1)
    v = velocity(s[:1], x[:1], times)
    assert (torch.cdist(v, v) + torch.eye(97)).min() > 1e-3


def test_the_summed_first_layer_is_one_layer_on_all_inputs(fmer):
    parts, joint = fmer.MLP([S, D], 17, 1), fmer.MLP([S + D], 17, 1)
    weights = parts.state_dict()
    columns = [weights.pop("inputs.0.weight"), weights.pop("inputs.1.weight")]
    joint.load_state_dict(weights | {"inputs.0.weight": torch.cat(columns, 1)})
    s, a = torch.randn(B, S), torch.randn(B, D)
    torch.testing.assert_close(parts(s, a), joint(torch.cat([s, a], 1)))


def test_a_nonlinearity_stands_between_any_two_layers(fmer):
    """Else a change of basis between them would change nothing."""
    mlp, x = fmer.MLP([S], 17, D), torch.randn(B, S)
    for layer, following in ((mlp.inputs[0], mlp.hidden), (mlp.hidden, mlp.out)):
        before, basis = mlp(x), torch.randn(17, 17)
        layer.weight.data = basis @ layer.weight
        layer.bias.data = basis @ layer.bias
        following.weight.data = following.weight @ basis.inverse()
        assert (mlp(x) - before).abs().max() > 1e-3


@pytest.mark.parametrize("twin", ["q1", "q2"])
def test_layer_norm_makes_a_critic_blind_to_the_scale_of_its_layers(fmer, twin):
    s, a = torch.randn(B, S), torch.randn(B, D)
    for layer_norm in (False, True):
        critic = fmer.TwinQ(S, D, 17, layer_norm)
        for layer in ("inputs", "hidden"):
            before = critic(s, a)
            for parameter in getattr(getattr(critic, twin), layer).parameters():
                parameter.data *= 3
            assert torch.allclose(critic(s, a), before, atol=1e-3) == layer_norm


# --- Eq. (2): the Euler sampler ---------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, K])
def test_each_step_is_eulers(fmer, steps):
    s, x0 = torch.randn(B, S), torch.randn(B, N, D)

    def velocity(s, x, t):
        return torch.sin(3 * x) + t.square() + s[..., :D]

    path = fmer.sample_path(velocity, s, x0, steps)
    assert path.shape == (steps + 1, B, N, D) and torch.equal(path[0], x0)
    for k, b, i in itertools.product(range(steps), range(B), range(N)):
        v = torch.sin(3 * path[k, b, i]) + (k / steps) ** 2 + s[b, :D]
        torch.testing.assert_close(path[k + 1, b, i], path[k, b, i] + v / steps)


def test_the_sampler_leaves_no_gradient(fmer):
    velocity, x0 = random_network(fmer), torch.randn(B, N, D, requires_grad=True)
    path = fmer.sample_path(velocity, torch.randn(B, S), x0, K)
    assert not path.requires_grad and not torch.equal(path[0], path[-1])


def test_euler_is_first_order_on_a_linear_field(fmer):
    """x' = ax has x_1 = eᵃ x_0; Euler: (1 + a/K)^K x_0, whose error halves as K doubles."""
    a, errors, x0 = 0.7, [], torch.ones(1, 1, 1)
    for steps in (16, 32, 64):
        path = fmer.sample_path(lambda s, x, t: a * x, torch.zeros(1, S), x0, steps)
        assert path[-1].item() == pytest.approx((1 + a / steps) ** steps)
        errors.append(math.exp(a) - path[-1].item())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.03)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(
    ("sigma", "steps", "ratio"),
    [(0.2, 5, 0.569), (0.2, 10, 0.771), (0.054, 5, 0.209), (0.054, 10, 0.422)],
)
def test_the_euler_sampler_contracts(fmer, sigma, steps, ratio):
    """Eq. (7)'s minimiser for x_1 ~ N(0,σ²) is v = x·(tσ² − (1−t))/s_t². The ODE carries
    N(0,1) to N(0,σ²); K Euler steps carry it to N(0,σ_K²), and σ_K < σ."""

    def velocity(s, x, t):
        return x * (t * sigma**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * sigma**2)

    def deviation(steps):  # of a linear flow: where it carries x_0 = 1
        x0 = torch.ones(1, 1, 1)
        return fmer.sample_path(velocity, torch.zeros(1, S), x0, steps)[-1].item()

    assert deviation(steps) / sigma == pytest.approx(ratio, abs=6e-4)
    assert deviation(2_000) / sigma == pytest.approx(1, abs=0.01)


# --- Eqs. (4)-(6): weights --------------------------------------------------------------


def test_weights_are_a_softmax_of_advantages(fmer):
    q, temperature = torch.randn(B, N), torch.tensor(0.7)
    weights, ess = fmer.candidate_weights(q, temperature)
    assert weights.shape == (B, N) and ess.shape == (B,)
    for b in range(B):
        exponentials = [math.exp((each - q[b].mean()) / 0.7) for each in q[b]]
        expected = torch.tensor(exponentials) / sum(exponentials)
        torch.testing.assert_close(weights[b], expected)
        torch.testing.assert_close(ess[b], 1 / sum(expected**2))
    shifted, _ = fmer.candidate_weights(q + 1e3 * torch.randn(B, 1), temperature)
    torch.testing.assert_close(shifted, weights)


def test_effective_sample_size_at_both_extremes(fmer):
    q = torch.arange(N).expand(B, N) / N
    torch.testing.assert_close(fmer.candidate_weights(q, 1e6)[1], torch.full((B,), 1.0 * N))
    torch.testing.assert_close(fmer.candidate_weights(q, 1e-6)[1], torch.ones(B))


# --- Eqs. (3), (7): weighted conditional flow matching ----------------------------------


def test_flow_matching_loss_is_the_sum_that_eq_7_says(fmer):
    """The sum over candidates and components, and the mean over states, term by term."""
    s, x0, x1 = torch.randn(B, S), torch.randn(B, N, D), torch.randn(B, N, D)
    t, weights = torch.rand(B, N, 1), torch.rand(B, N)

    def velocity(s, x, t):
        return torch.sin(3 * x) + t + s.sum(-1, keepdim=True)

    expected = 0
    for b, i, j in itertools.product(range(B), range(N), range(D)):
        start, end, time = x0[b, i, j], x1[b, i, j], t[b, i, 0]
        v = torch.sin(3 * ((1 - time) * start + time * end)) + time + s[b].sum()
        expected += weights[b, i] * (v - (end - start)) ** 2 / B
    loss = fmer.flow_matching_loss(velocity, s, x0, x1, t, weights)
    torch.testing.assert_close(loss, expected)


def test_flow_matching_loss_vanishes_on_its_closed_form_minimiser(fmer):
    """All at c: v(x, t) = (c − x)/(1 − t) is x_1 − x_0 on every path."""
    c, weights = torch.randn(B, 1, D), torch.softmax(torch.randn(B, N), 1)

    def loss(offset):
        def velocity(s, x, t):
            return (c - x) / (1 - t) + offset

        x0, t = torch.randn(B, N, D), torch.rand(B, N, 1)
        x1 = c.expand(B, N, D)
        return fmer.flow_matching_loss(velocity, torch.zeros(B, S), x0, x1, t, weights)

    assert loss(0).item() == pytest.approx(0, abs=1e-18)
    assert loss(2).item() == pytest.approx(4 * D)


def minimum(slopes, number, size):
    """Where a loss quadratic in θ (number,size), without cross terms between its rows, is
    least. One Newton step from its gradients, slopes(θ), is exact."""
    start = torch.zeros(number, size)
    columns = [slopes(start + unit) - slopes(start) for unit in torch.eye(size)]
    return -torch.linalg.solve(torch.stack(columns, -1), slopes(start))


def test_weights_move_mass_to_the_better_mode(fmer):
    """Two candidates ±1 of weights 0.9 and 0.1. The minimiser averages their velocities by
    the probability of each, given x_t; it sends 90 % of the noise to the first."""
    modes, shares = torch.tensor([1.0, -1.0]), torch.tensor([0.9, 0.1])

    def minimiser(s, x, t):  # (…,1)
        density = shares * Normal(t * modes, 1 - t).log_prob(x).exp()
        velocity = (modes - x) / (1 - t)
        return (density * velocity).sum(-1, keepdim=True) / density.sum(-1, keepdim=True)

    x0, x1, t, weights = product(normal_nodes(), (modes, shares), unit_nodes(20))
    x0, x1, t, weights = (
        x0.view(1, -1, 1),
        x1.view(1, -1, 1),
        t.view(1, -1, 1),
        weights[None],
    )
    tests = [
        lambda x, t: x,
        lambda x, t: t,
        lambda x, t: torch.sin(2 * x),
        lambda x, t: t * x,
    ]
    theta = torch.zeros(4, requires_grad=True)

    def nearby(s, x, t):
        change = sum(theta[j] * test(x, t) for j, test in enumerate(tests))
        return minimiser(s, x, t) + change + torch.zeros_like(x)

    loss = fmer.flow_matching_loss(nearby, torch.zeros(1, S), x0, x1, t, weights)
    (slope,) = torch.autograd.grad(loss, theta)
    assert slope.abs().max() < 1e-4
    loss = fmer.flow_matching_loss(nearby, torch.zeros(1, S), x0, -x1, t, weights)
    (slope,) = torch.autograd.grad(loss, theta)
    assert slope.abs().max() > 0.1, "of the other weights it is no minimiser"

    noise = Normal(0.0, 1.0).icdf((torch.arange(1000) + 0.5) / 1000).view(1, -1, 1)
    x1 = fmer.sample_path(minimiser, torch.zeros(1, S), noise, 200)[-1]
    assert (x1 > 0).double().mean().item() == pytest.approx(0.9, abs=0.005)
    assert (x1.abs() - 1).abs().max() < 0.05, "the samples sit at the modes"


def test_the_minimiser_is_one_mirror_descent_step(fmer):
    """π_old = N(0,1), A = c·x: π_new ∝ π_old·exp(A/T) is N(c/T, 1).
    x_1 and x_0 are Gaussian, so that E[x_1 − x_0 | x_t = x] = a_t + b_t·x."""
    c, temperature, steps = 0.5, 0.6, 500
    x0, x1, weights = product(normal_nodes(20), normal_nodes(40))
    weights = torch.softmax(c * x1 / temperature + weights.log(), -1)
    x0, x1, t = (
        x0.view(1, -1, 1),
        x1.view(1, -1, 1),
        torch.arange(steps).view(-1, 1, 1) / steps,
    )

    def affine(s, x, t):  # the state is (a, b)
        return s[..., :1] + s[..., 1:] * x

    def slopes(theta):  # state k has the parameters of step k
        theta.requires_grad_()
        loss = fmer.flow_matching_loss(affine, theta, x0, x1, t, weights)
        return torch.autograd.grad(loss, theta)[0]

    theta = minimum(slopes, steps, 2)

    def velocity(s, x, t):
        return affine(theta[min(round(t.item() * steps), steps - 1)], x, t)

    ends = fmer.sample_path(
        velocity, torch.zeros(1, S), torch.tensor([[[0.0], [1.0]]]), steps
    )
    mean, mean_and_deviation = ends[-1, 0, :, 0].tolist()
    assert mean == pytest.approx(c / temperature, abs=0.01)
    assert mean_and_deviation - mean == pytest.approx(1, abs=0.01)


# --- Eqs. (8), (9): entropy -------------------------------------------------------------


def test_base_entropy_is_that_of_a_squashed_standard_normal(fmer):
    assert squashed_entropy(1) == pytest.approx(fmer.BASE_ENTROPY, abs=1e-9)


@pytest.mark.parametrize(("dim", "steps"), [(1, 1), (D, 1), (D, 5)])
def test_exact_entropy_is_the_change_of_variables(fmer, dim, steps):
    """H(tanh x_K) = H_0 + E[log|det ∂x_K/∂x_0| + Σ_j log sech² x_K,j − log sech² x_0,j]
    for any field: over all steps, the sum of Eq. (8) is that mean over the same noise."""
    velocity, s, x0 = random_network(fmer, dim), torch.randn(B, S), torch.randn(B, dim)
    path = fmer.sample_path(velocity, s, x0.unsqueeze(1), steps)[:, :, 0]

    def end(b, x):
        with_gradient = fmer.sample_path.__wrapped__
        return with_gradient(velocity, s[[b]], x.view(1, 1, dim), steps)[-1, 0, 0]

    expected = dim * fmer.BASE_ENTROPY
    for b in range(B):
        jacobian = torch.autograd.functional.jacobian(lambda x, b=b: end(b, x), x0[b])
        expected += jacobian.det().abs().log() / B
        expected += (log_sech2(path[-1, b]) - log_sech2(x0[b])).sum() / B
    repeated, k = all_steps(path)
    entropy = fmer.sampler_entropy(velocity, s.repeat_interleave(steps, 0), repeated, k)
    torch.testing.assert_close(entropy, expected)


@pytest.mark.parametrize("steps", [1, 4])
def test_exact_entropy_of_a_linear_field(fmer, steps):
    """v = (s + t)·x: x_K = Π_k (1 + h(s + kh))·x_0 is Gaussian."""
    sigma = math.prod(1 + (0.3 + k / steps) / steps for k in range(steps))
    noise = Normal(0.0, 1.0).icdf((torch.arange(10_000) + 0.5) / 10_000).view(-1, 1, 1)

    def velocity(s, x, t):
        return (s + t) * x

    s = torch.full((len(noise), 1), 0.3)
    path, k = all_steps(fmer.sample_path(velocity, s, noise, steps)[:, :, 0])
    entropy = fmer.sampler_entropy(velocity, torch.full((len(k), 1), 0.3), path, k)
    assert entropy.item() == pytest.approx(squashed_entropy(sigma), abs=1e-3)


def test_exact_entropy_takes_the_modulus_of_a_reflecting_step(fmer):
    noise = torch.randn(2, B, 1)
    k = torch.zeros(B, dtype=torch.long)
    entropy = fmer.sampler_entropy(lambda s, x, t: -2 * x, torch.zeros(B, S), noise, k)
    assert entropy.item() == pytest.approx(fmer.BASE_ENTROPY)  # one step, x ↦ −x


def test_entropies_are_finite_in_saturation(fmer):
    """v = 0 changes nothing: H = d·H_0 wherever the sampler has been, at ±10⁴ as well."""
    path = torch.full((K + 1, B, D), 1e4) * torch.tensor([1.0, -1.0, 0.0])
    s, k, probe = torch.zeros(B, S), torch.arange(B), torch.ones(B, D)

    def velocity(s, x, t):
        return 0 * x * t

    expected = pytest.approx(D * fmer.BASE_ENTROPY)
    assert fmer.sampler_entropy(velocity, s, path, k).item() == expected
    assert fmer.ode_entropy(velocity, s, path, k, probe).item() == expected


def test_ode_entropy_is_the_integral_that_eq_9_says(fmer):
    """∇·v by the whole Jacobian; Hutchinson's estimate of it by the mean over all ±1."""
    velocity, s, path = random_network(fmer), torch.randn(B, S), torch.randn(K + 1, B, D)
    expected = D * fmer.BASE_ENTROPY
    for b, k in itertools.product(range(B), range(K)):
        t, x = torch.tensor([k / K]), path[k, b]
        jacobian = torch.autograd.functional.jacobian(
            lambda x, b=b, t=t: velocity(s[b], x, t), x
        )
        integrand = jacobian.trace() - 2 * (x.tanh() * velocity(s[b], x, t)).sum()
        expected += integrand.detach() / K / B
    probes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=D)))
    repeated, k = all_steps(path)
    entropy = fmer.ode_entropy(
        velocity,
        s.repeat_interleave(K, 0).repeat(len(probes), 1),
        repeated.repeat(1, len(probes), 1),
        k.repeat(len(probes)),
        probes.repeat_interleave(B * K, 0),
    )
    torch.testing.assert_close(entropy, expected)


def entropies(fmer, c, steps):
    """Of v = c·x, by Eq. (8) and by Eq. (9), over the same noise."""
    noise = Normal(0.0, 1.0).icdf((torch.arange(100) + 0.5) / 100).view(-1, 1, 1)
    path = fmer.sample_path(lambda s, x, t: c * x, torch.zeros(100, S), noise, steps)
    path, k = all_steps(path[:, :, 0])
    arguments = lambda s, x, t: c * x, torch.zeros(len(k), S), path, k  # noqa: E731
    exact = fmer.sampler_entropy(*arguments).item()
    return exact, fmer.ode_entropy(*arguments, torch.ones(len(k), 1)).item()


def test_the_ode_limit_approaches_the_exact_entropy_as_one_over_k(fmer):
    gaps = []
    for steps in (10, 20, 40):
        exact, limit = entropies(fmer, -2.0, steps)
        gaps.append(limit - exact)
    assert gaps[0] > 0.1
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.1)


def test_the_ode_limit_is_too_high_unless_the_field_rotates(fmer):
    """log(1 + hλ) ≤ hλ for real λ, and log sech² is concave. A pair of complex λ, as of a
    contraction that turns and so keeps lengths, can outweigh both."""
    h, turn = 0.2, torch.tensor([[0.0, -1.0], [1.0, 0.0]])

    def linear(matrix):
        return lambda s, x, t: x @ torch.tensor(matrix)

    def narrow_then_turn(s, x, t):
        return torch.where(t < 0.3, -0.45 * x, -0.5 * x + math.sqrt(0.75) * x @ turn) / h

    def gap(velocity):
        x0 = torch.randn(499, 1, 2)
        path, k = all_steps(fmer.sample_path(velocity, torch.zeros(499, S), x0, 5)[:, :, 0])
        arguments = velocity, torch.zeros(len(k), S), path, k
        probes = torch.tensor([[1.0, 1.0], [1.0, -1.0]])  # εᵀAε: their mean is the trace
        limits = [fmer.ode_entropy(*arguments, probe.expand(len(k), 2)) for probe in probes]
        return (sum(limits) / 2 - fmer.sampler_entropy(*arguments)).item()

    for matrix in ([[-2.0, 0.5], [0.5, -1.0]], [[1.0, 0.3], [0.3, -0.5]]):
        assert gap(linear(matrix)) > 0.05
    assert gap(narrow_then_turn) < -1


def test_both_entropies_approach_that_of_the_flow(fmer):
    """v = c·x, K → ∞: x_1 = e^c·x_0."""
    for entropy in entropies(fmer, -0.8, 500):
        assert entropy == pytest.approx(squashed_entropy(math.exp(-0.8)), abs=0.01)


def test_no_gradient_reaches_the_path(fmer):
    s, path, k = (
        torch.zeros(B, S),
        torch.randn(K + 1, B, D, requires_grad=True),
        torch.arange(B),
    )
    scale = torch.tensor(0.3, requires_grad=True)

    def velocity(s, x, t):
        return torch.sin(scale * x)

    for entropy, more in (
        (fmer.sampler_entropy, []),
        (fmer.ode_entropy, [torch.ones(B, D)]),
    ):
        scale.grad = None
        entropy(velocity, s, path, k, *more).backward()
        assert path.grad is None and scale.grad != 0


@pytest.mark.parametrize(
    ("theta", "true", "semi"), [(-0.19, 0.083, -0.046), (0.8, -2.024, -1.089)]
)
def test_the_entropy_gradient_is_a_semi_gradient(fmer, theta, true, semi):
    """v = θx, K = 10. True: x_10 = (1+hθ)^10·x_0, its entropy is known for every θ.
    Eq. (8)'s holds the visited x_k = (1+hθ)^k·x_0 fixed: Σ_k h/(1+hθ) −
    2h·E[x_k tanh((1+hθ)·x_k)]. Nearly uniform actions: the opposite direction."""

    def entropy(theta):
        return squashed_entropy((1 + theta / 10) ** 10)

    assert (entropy(theta + 1e-5) - entropy(theta - 1e-5)) / 2e-5 == pytest.approx(
        true, abs=6e-4
    )
    z, w = normal_nodes(150)
    formula = sum(
        0.1 / (1 + 0.1 * theta)
        - 0.2 * (w * x * torch.tanh((1 + 0.1 * theta) * x)).sum().item()
        for x in [(1 + 0.1 * theta) ** k * z for k in range(10)]
    )

    def velocity(s, x, t):  # θ is the state
        return s * x

    s = torch.full((len(z), 1), theta)
    path, k = all_steps(fmer.sample_path(velocity, s, z.view(-1, 1, 1), 10)[:, :, 0])
    s, weights = torch.full((len(k), 1), theta), w.repeat_interleave(10) / 10
    measured = gradient(fmer.sampler_entropy, velocity, s, path, k, weights).item()
    assert measured == pytest.approx(formula) == pytest.approx(semi, abs=6e-4)


# --- Eq. (10): the minimiser, and where repeated updates come to rest --------------------


@pytest.mark.parametrize("which", ["sampler_entropy", "ode_entropy"])
def test_the_loss_is_stationary_at_the_closed_form_minimiser(fmer, which):
    """For x_1 ~ N(0,σ²), s_t² = (1−t)² + t²σ², uniform weights and the limit (9):
    v = x·(tσ² − (1−t) + α/2)/s_t² − α·tanh x. Eq. (8) comes close for many steps."""
    sigma, alpha, steps = 0.6, 0.5, 200
    x0, x1, t, weights = product(normal_nodes(), normal_nodes(), unit_nodes(20))
    x0, x1, t = x0.view(1, -1, 1), sigma * x1.view(1, -1, 1), t.view(1, -1, 1)
    times = torch.arange(steps + 1) / steps
    z, w = normal_nodes()
    deviation = ((1 - times) ** 2 + (times * sigma) ** 2).sqrt()
    path = (deviation.unsqueeze(1) * z).unsqueeze(2)  # of the p_t that (10) is derived for
    path = path.repeat_interleave(steps + 1, 1)
    k = torch.arange(steps + 1).repeat(len(z))
    ends = torch.full((steps + 1,), 1 / steps)
    ends[[0, -1]] /= 2  # the trapezoidal rule: k = K as well
    path_weights = w.repeat_interleave(steps + 1) * ends.repeat(len(z))
    probe = [torch.ones(len(k), 1)] if which == "ode_entropy" else []

    def slopes(alpha_of_field):
        def velocity(theta, x, t):  # θ, the state: of four directions away from it
            variance = (1 - t) ** 2 + t**2 * sigma**2
            v = x * (t * sigma**2 - (1 - t) + alpha_of_field / 2) / variance
            basis = torch.cat([x, t * x, x.tanh(), torch.sin(2 * x) * (1 - t)], -1)
            return v - alpha_of_field * x.tanh() + (theta * basis).sum(-1, keepdim=True)

        theta = torch.zeros(1, 4, requires_grad=True)
        loss = fmer.flow_matching_loss(velocity, theta, x0, x1, t, weights.unsqueeze(0))
        (slope,) = torch.autograd.grad(loss, theta)
        theta = torch.zeros(len(k), 4)
        entropy = getattr(fmer, which)
        slope = slope[0] - alpha * gradient(
            entropy, velocity, theta, path, k, path_weights, *probe
        )
        return slope.abs().max().item()

    assert slopes(alpha) < (1e-4 if which == "ode_entropy" else 0.02)
    assert slopes(0.0) > 0.15, "without its entropy term the field is not stationary"


@pytest.mark.parametrize(
    ("alpha", "temperature"), [(0.005, 30.0), (0.01, 30.0), (0.005, 60.0)]
)
def test_the_fixed_point_balances_selection_and_diffusion(fmer, alpha, temperature):
    """Q = −x²/2κ², policy N(0,σ²) in the latent, first order in α and 1/T. Selection:
    1/σ_w² = 1/σ² + 1/(κ²T), that is d log σ = −σ²/(2κ²T). Diffusion: the drift
    α·x/(2·s_t²) of (10), s_t² = (1−t)² + t²σ², gives d log σ = (α/2)·∫_0^1 dt/s_t²
    = απ/(4σ), by u = t/(1−t). They cancel at σ³ = (π/2)·α·T·κ², not at σ² = α·κ².
    Apart from both, Euler's steps contract: with c = (ds_t/dt)/s_t, −½·Σ_k (h·c_k)² and
    the end terms of h·Σ_k c_k make −h/2 − hπ(1+σ²)/(8σ), little beside diffusion only if
    α ≫ h/2."""
    kappa, steps = 1.3, 400
    z, w = normal_nodes(20)

    def update(sigma, alpha, temperature):
        """σ after the minimiser of Eq. (10) over v = c_k·x, which is quadratic in c."""
        x0, x1, weights = product((z, w), (sigma * z, w))
        weights = torch.softmax(-(x1**2) / (2 * kappa**2 * temperature) + weights.log(), 0)
        x0, x1 = x0.view(1, -1, 1), x1.view(1, -1, 1)
        k = torch.arange(steps)
        path = torch.full((steps + 1, steps, 1), 1e-5)  # where tanh is linear: the latent

        def slopes(c):  # state k has the coefficient of step k
            c.requires_grad_()
            t, probe = (k / steps).view(-1, 1, 1), torch.ones(steps, 1)
            loss = fmer.flow_matching_loss(lambda s, x, t: s * x, c, x0, x1, t, weights)
            entropy = fmer.ode_entropy(lambda s, x, t: s * x, c, path, k, probe)
            return torch.autograd.grad(loss - alpha * entropy, c)[0]

        c = minimum(slopes, steps, 1)
        field = lambda s, x, t: c[min(round(t.item() * steps), steps - 1)] * x  # noqa: E731
        return fmer.sample_path(field, torch.zeros(1, S), torch.ones(1, 1, 1), steps)[
            -1
        ].item()

    def change(sigma):  # less the contraction of the sampler itself
        updated = update(sigma, alpha, temperature) / update(sigma, 0.0, math.inf)
        return math.log(updated)

    for sigma in (0.3, 0.7):
        contraction = (1 + math.pi * (1 + sigma**2) / (4 * sigma)) / (2 * steps)
        change_alone = math.log(update(sigma, 0.0, math.inf) / sigma)
        assert change_alone == pytest.approx(-contraction, rel=0.03)
    selection = lambda sigma: sigma**2 / (2 * kappa**2 * temperature)  # noqa: E731
    rest = (math.pi / 2 * alpha * temperature * kappa**2) ** (1 / 3)
    assert change(rest) == pytest.approx(0, abs=0.05 * selection(rest))
    assert (
        change(1.1 * rest)
        < -0.2 * selection(rest)
        < 0.2 * selection(rest)
        < change(0.9 * rest)
    )
    assert change(alpha**0.5 * kappa) > selection(rest), "the policy leaves exp(Q/α)"


# --- Eq. (14): acting -------------------------------------------------------------------


def test_best_of_executes_the_candidate_of_largest_mean_q(fmer):
    s, a = torch.randn(B, S), torch.randn(B, N, D)

    def critic(s, a):
        return torch.stack([a[..., 0] + s[..., 0], a[..., 1] - s[..., 1]])

    best, value = fmer.best_of(critic, s, a)
    assert best.shape == (B, D) and value.shape == (B,)
    for b in range(B):
        scores = [((x[0] + s[b, 0]) + (x[1] - s[b, 1])) / 2 for x in a[b]]
        assert value[b] == max(scores)
        assert torch.equal(best[b], a[b, scores.index(max(scores))])
