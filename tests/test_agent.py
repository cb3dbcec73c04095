"""The agent's updates, Algorithm 1's lines 3 and 5-10, on both scripts: which losses they
take a step on, with what arguments, and what they change. Recorded, not copied: a test
looks at the arguments that a loss was called with, whatever drew them."""

import copy
import functools
import inspect
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from envs import SMALL, needs_gpu

S, D = 11, 3


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def new_agent(fmer, **changes):
    """An agent whose flow is not the identity, as it is at the start."""
    agent = fmer.Agent(S, D, fmer.Args(**(SMALL | changes)))
    torch.nn.init.normal_(agent.velocity.net.out.weight, std=0.1)
    return agent


def random_batch(size=29):
    s, next_s = torch.randn(2, size, S)
    return [s, torch.rand(size, D) * 2 - 1, torch.randn(size), next_s, torch.zeros(size)]


def recorded(monkeypatch, fmer, *names):
    """The arguments, by name, of every later call of these functions, and its result."""
    calls = {name: [] for name in names}
    for name in names:
        function = getattr(fmer, name)

        @functools.wraps(function)
        def watched(*args, function=function, name=name, **kwargs):
            arguments = inspect.signature(function).bind(*args, **kwargs).arguments
            result = function(*args, **kwargs)
            calls[name].append(arguments | {"result": result})
            return result

        monkeypatch.setattr(fmer, name, watched)
    return calls


def snapshot(agent):
    return {name: value.clone() for name, value in agent.state_dict().items()}


def changed(before, agent):
    """The names of what an update has changed."""
    after = agent.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def gradient(module):
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


def same_direction(a, b):
    """Adam takes no notice of a gradient's length, and clipping it is no other loss."""
    return torch.cosine_similarity(a, b, dim=0).item() == pytest.approx(1, abs=1e-5)


def steps_taken(optimizer):
    return {int(state["step"]) for state in optimizer.state.values()}


class Probe(torch.nn.Module):
    """Q_1 = s_0 − 3(a_0 − 0.3)², Q_2 = Q_1 − a_1; remembers what it was asked."""

    def forward(self, s, a):
        self.s, self.a = s, a
        q1 = s[..., 0] - 3 * (a[..., 0] - 0.3).square()
        return torch.stack([q1, q1 - a[..., 1]])


class Known(torch.nn.Module):
    """Critics that know this batch's values by heart."""

    def __init__(self, q):
        super().__init__()
        self.q = torch.nn.Parameter(q)

    def forward(self, s, a):
        return self.q


class Forbidden(torch.nn.Module):
    def forward(self, s, a):
        raise AssertionError("these critics must not be asked")


# --- Line 1 -----------------------------------------------------------------------------


def test_networks_have_the_width_and_the_norm_that_flags_ask_for(fmer):
    for layer_norm in (False, True):
        agent = new_agent(fmer, hidden_dim=23, layer_norm=layer_norm)
        for net in (agent.velocity.net, agent.critic.q1, agent.critic.q2):
            assert net.hidden.weight.shape == (23, 23)
        for q in (agent.critic.q1, agent.critic.q2):
            for norm in (q.norm1, q.norm2):
                assert isinstance(norm, torch.nn.LayerNorm) == layer_norm
        assert not isinstance(agent.velocity.net.norm1, torch.nn.LayerNorm)


# --- Line 5: the critics, Eqs. (12), (13) -----------------------------------------------


def test_a_critic_step_changes_the_critics_only(fmer):
    agent = new_agent(fmer)
    before = snapshot(agent)
    losses = agent.update_critic(*random_batch())
    assert changed(before, agent) == {name for name in before if name.startswith("critic.")}
    assert losses["qf_loss"] > 0 and steps_taken(agent.q_optimizer) == {1}
    assert not agent.policy_optimizer.state


def test_the_critic_regresses_on_the_target_of_eq_12(fmer):
    """With Q̄ ≡ 5 and γ = 0.5: y = r + 2.5, or r where terminated, in Eq. (13)."""
    agent = new_agent(fmer, gamma=0.5)
    for q in (agent.target_critic.q1, agent.target_critic.q2):
        torch.nn.init.zeros_(q.out.weight)
        torch.nn.init.constant_(q.out.bias, 5.0)
    s, a, r, next_s, terminated = random_batch()
    terminated[:13] = 1
    y = torch.cat([r[:13], r[13:] + 2.5])
    copied = copy.deepcopy(agent.critic)
    q1, q2 = copied(s, a)
    loss = ((q1 - y) ** 2).mean() + ((q2 - y) ** 2).mean()
    loss.backward()
    losses = agent.update_critic(s, a, r, next_s, terminated)
    assert same_direction(gradient(agent.critic), gradient(copied))
    assert losses["qf_loss"].item() == pytest.approx(loss.item() / 2, rel=1e-5)  # CleanRL's
    expected = (q1.mean() + q2.mean()).item() / 2
    assert losses["qf_values"].item() == pytest.approx(expected, abs=1e-6)


def test_the_target_is_the_smaller_target_q_of_one_sample_at_the_next_state(
    fmer, monkeypatch
):
    """Critics that know y have no loss, whatever the loss: (13) has a test of its own."""
    agent = new_agent(fmer, gamma=0.5)
    agent.target_critic = probe = Probe()
    s, a, r, next_s, terminated = random_batch()
    calls = recorded(monkeypatch, fmer, "sample_path")
    torch.manual_seed(5)
    assert agent.update_critic(s, a, r, next_s, terminated)["qf_loss"] > 0.1
    (sampling,) = calls["sample_path"]
    assert torch.equal(sampling["s"], next_s) and torch.equal(probe.s, next_s)
    torch.testing.assert_close(probe.a, sampling["result"][-1, :, 0].tanh())
    assert sampling["x0"].shape == (29, 1, D)
    y = r + 0.5 * probe(next_s, probe.a).min(0).values
    agent.critic = Known(torch.stack([y, y]))
    torch.manual_seed(5)  # the same sample
    assert agent.update_critic(s, a, r, next_s, terminated)["qf_loss"] < 1e-9


# --- The scale of observations ------------------------------------------------------------


def seen(scale):
    """1,009 observations: two that differ in scale and offset, the rest constant at 7."""
    obs = np.full((1009, S), 7.0)
    obs[:, :2] = np.random.default_rng(0).normal([3, -50], scale, size=(1009, 2))
    return obs


def test_running_moments_are_numpys(fmer):
    agent, obs = new_agent(fmer), seen([0.05, 20])
    for each in obs:
        agent.observe(each)
    assert agent.count == 1009 and agent.mean.shape == (S,)
    torch.testing.assert_close(agent.mean, torch.tensor(obs.mean(0)))
    torch.testing.assert_close(agent.variance, torch.tensor(obs.var(0)))


def test_running_moments_follow_after_a_million_steps(fmer):
    """In single precision a mean far from 0 freezes, at some 200,000 steps."""
    agent = new_agent(fmer)
    agent.count.fill_(1e6), agent.mean.fill_(2.0)
    for _ in range(100):
        agent.observe(np.full(S, 2.02))
    expected = torch.full((S,), 2 + 0.02 * 100 / (1e6 + 100), dtype=torch.float64)
    torch.testing.assert_close(agent.mean, expected, rtol=1e-10, atol=0)


def test_observations_are_scaled_to_unit_deviation_with_a_floor_and_clipped(fmer):
    agent, obs = new_agent(fmer, normalize_observations=True), seen([0.05, 20])
    for each in obs:
        agent.observe(each)
    s = torch.tensor(obs, dtype=torch.float32)
    s[0, 0], s[0, 1], s[1, 2] = -1e6, 1e6, 7.002
    z = agent.normalize(s)
    assert z[0, :2].tolist() == [-10, 10]
    assert z[1, 2].item() == pytest.approx(0.2, rel=0.01)
    assert not z[2:, 2:].any(), "what never moved"
    for column, deviation in ((0, 0.05), (1, 20.0)):
        expected = deviation / (deviation + 0.01)
        assert z[1:, column].std().item() == pytest.approx(expected, rel=0.05)
        assert abs(z[1:, column].mean()) < 0.01
    agent.args.normalize_observations = False
    assert agent.normalize(s) is s


def test_every_network_sees_scaled_observations_and_only_observe_moves_the_scale(fmer):
    agent = new_agent(fmer, normalize_observations=True)
    agent.mean.fill_(3.0), agent.variance.fill_(4.0), agent.count.fill_(5.0)
    asked = []
    for net in (agent.velocity, agent.critic, agent.target_critic):
        net.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    moments = {
        name: agent.state_dict()[name].clone() for name in ("count", "mean", "variance")
    }
    batch = random_batch()
    batch[0].fill_(5.01), batch[3].fill_(1 - 0.02)
    agent.update(batch, with_actor=True)
    values = {round(value, 4) for s in asked for value in s.unique().tolist()}
    assert values == {1.0, -round(2.02 / 2.01, 4)}, "(s − 3) / (2 + 0.01)"
    asked.clear()
    agent.act(np.full((2, S), 5.01), 5)
    assert asked and all(torch.allclose(s, torch.ones(())) for s in asked)
    assert (batch[0] == 5.01).all(), "the batch itself is as it was"
    assert all(torch.equal(agent.state_dict()[name], moments[name]) for name in moments)


# --- Lines 3, 7: candidates ---------------------------------------------------------------


def test_acting_takes_the_best_of_m_candidates_by_the_critics(fmer):
    agent = new_agent(fmer)
    agent.critic, agent.target_critic = (probe := Probe()), Forbidden()
    obs = np.random.default_rng(0).normal(size=(2, S))
    actions, values = agent.act(obs, 4)  # not num_act_candidates
    a = torch.as_tensor(actions)
    assert probe.a.shape == (2, 4, D) and (probe.a.abs() < 1).all()
    value, best = probe(torch.as_tensor(obs).unsqueeze(1), probe.a).mean(0).max(1)
    assert torch.equal(a, probe.a[torch.arange(2), best])
    torch.testing.assert_close(torch.as_tensor(values), value.float())


def test_candidates_start_from_fresh_standard_normal_noise(fmer):
    agent = new_agent(fmer)
    s = torch.randn(2003, S)
    first, second = agent.sample(s, 7), agent.sample(s, 7)
    assert first.shape == (agent.args.flow_steps + 1, 2003, 7, D)
    assert abs(first[0].mean()) < 0.02 and abs(first[0].std() - 1) < 0.02
    assert abs((first[0] * second[0]).mean()) < 0.02
    assert (first[0, :, 0] != first[0, :, 1]).all(), "candidates have noise of their own"
    torch.testing.assert_close(first, fmer.sample_path(agent.velocity, s, first[0], 3))


def test_a_generator_makes_acting_reproducible_and_spares_the_default_one(fmer):
    agent, obs = new_agent(fmer), np.ones((2, S))
    state = torch.get_rng_state()
    actions = [agent.act(obs, 7, torch.Generator().manual_seed(3))[0] for _ in range(2)]
    assert np.array_equal(*actions) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("exact", [True, False])
def test_the_actor_weights_its_candidates_by_the_mean_q_of_their_actions(
    fmer, monkeypatch, exact
):
    agent = new_agent(fmer, temperature=0.3, exact_entropy=exact)
    agent.critic, agent.target_critic = Probe(), Forbidden()
    names = "sample_path candidate_weights flow_matching_loss sampler_entropy ode_entropy"
    calls = recorded(monkeypatch, fmer, *names.split())
    s = torch.randn(23, S)
    agent.update_actor(s)
    (weighing,), (matching,) = calls["candidate_weights"], calls["flow_matching_loss"]
    used, unused = ["sampler_entropy", "ode_entropy"][:: 1 if exact else -1]
    (entropy,) = calls[used]
    assert not calls[unused]
    for call in (matching, entropy):
        assert torch.equal(call["s"], s) and call["velocity"] is agent.velocity
    x1 = matching["x1"]
    assert x1.shape == (23, 7, D) and not x1.requires_grad
    q = Probe()(s.unsqueeze(1), x1.tanh()).mean(0)
    torch.testing.assert_close(weighing["q"], q)
    assert float(weighing["temperature"]) == pytest.approx(0.3)
    assert torch.equal(matching["weights"], weighing["result"][0])
    path, candidates = entropy["path"], calls["sample_path"][0]["result"]
    assert path.shape == (4, 23, D) and torch.equal(candidates[-1], x1)
    same = (path.unsqueeze(2) == candidates).all(-1).all(0)  # (B,N)
    assert same.any(1).all(), "the whole path of one of the candidates of each state"


def test_an_update_gives_the_actor_the_first_states_of_the_batch(fmer, monkeypatch):
    agent, batch = new_agent(fmer), random_batch()
    calls = recorded(monkeypatch, fmer, "flow_matching_loss")
    agent.update(batch, with_actor=True)
    agent.update(batch, with_actor=False)
    (matching,) = calls["flow_matching_loss"]
    assert torch.equal(matching["s"], batch[0][:23])


def test_the_actor_asks_the_critics_as_just_updated(fmer):
    """Algorithm 1's line 5 comes before line 7."""
    agent, asked = new_agent(fmer), []
    agent.critic.register_forward_hook(lambda critic, *call: asked.append(call))
    agent.update(random_batch(), with_actor=True)
    ((s, a), of_regression), (candidates, of_actor) = asked
    assert a.shape == (29, D) and candidates[1].shape == (23, 7, D)
    assert not torch.equal(agent.critic(s, a), of_regression), "the critics moved"
    torch.testing.assert_close(agent.critic(*candidates), of_actor)


@pytest.mark.parametrize("exact", [True, False])
def test_noise_times_steps_and_probes_are_independent_and_cover_their_range(
    fmer, monkeypatch, exact
):
    agent = new_agent(fmer, exact_entropy=exact)
    entropy_name = "sampler_entropy" if exact else "ode_entropy"
    names = ["flow_matching_loss", entropy_name, "sample_path"]
    calls = recorded(monkeypatch, fmer, *names)
    s = torch.randn(2003, S)
    agent.update_actor(s)
    agent.update_actor(s)
    matching, again = calls["flow_matching_loss"]
    x0, t = matching["x0"], matching["t"]
    start = calls["sample_path"][0]["x0"]
    assert abs(x0.mean()) < 0.02 and abs(x0.std() - 1) < 0.02
    for other in (start, matching["x1"], again["x0"]):
        assert abs((x0 * other).mean()) < 0.02, "x_0 of Eq. (7) is independent of x_1"
    assert 0 <= t.min() < 0.01 and 0.99 < t.max() <= 1
    assert abs(t.mean() - 0.5) < 0.02 and abs(t.std() - 12**-0.5) < 0.02
    assert not torch.equal(t, again["t"])
    for noise in (x0 - x0.mean(), t - t.mean()):
        first, second = noise[:, 0], noise[:, 1]
        assert abs((first * second).mean()) < 0.06, "each candidate has its own"
    drift = (x0.mean(-1, keepdim=True) * (t - 0.5)).mean()
    assert abs(drift) < 0.01, "t is independent of x_0"
    entropy = calls[entropy_name][0]
    counts = entropy["k"].bincount()
    assert len(counts) == 3 and (counts / 2003 - 1 / 3).abs().max() < 0.05
    if not exact:
        probe = entropy["probe"]
        assert probe.shape == (2003, D) and torch.equal(probe.abs(), torch.ones(2003, D))
        second_moments = probe.T @ probe / 2003
        assert (
            second_moments - torch.eye(D)
        ).abs().max() < 0.1 and probe.mean().abs() < 0.1


# --- Line 8: the policy's step, Eq. (10) -------------------------------------------------


def test_an_actor_step_changes_the_velocity_field_and_the_multipliers_only(fmer):
    agent = new_agent(fmer)
    agent.update_critic(*random_batch())  # leaves gradients on the critics
    before = snapshot(agent)
    agent.update_actor(random_batch()[0])
    expected = {name for name in before if name.startswith(("velocity.", "log_"))}
    assert changed(before, agent) == expected
    for optimizer in (agent.policy_optimizer, agent.q_optimizer):
        assert steps_taken(optimizer) == {1}


@pytest.mark.parametrize("exact", [True, False])
def test_the_policys_step_is_on_flow_matching_less_alpha_times_entropy(
    fmer, monkeypatch, exact
):
    agent = new_agent(fmer, alpha=0.7, exact_entropy=exact)
    copied = copy.deepcopy(agent.velocity)
    entropy_name = "sampler_entropy" if exact else "ode_entropy"
    calls = recorded(monkeypatch, fmer, "flow_matching_loss", entropy_name)
    agent.update_actor(random_batch()[0])  # another update leaves nothing behind:
    copied.load_state_dict(agent.velocity.state_dict())
    alpha, temperature = agent.log_alpha.exp().item(), agent.log_temperature.exp().item()
    losses = agent.update_actor(random_batch()[0])
    arguments = [calls[name][1] for name in ("flow_matching_loss", entropy_name)]
    values = [call.pop("result") for call in arguments]
    matching, entropy = [call | {"velocity": copied} for call in arguments]
    loss = fmer.flow_matching_loss(**matching)
    loss = loss - alpha * getattr(fmer, entropy_name)(**entropy)
    loss.backward()
    assert same_direction(gradient(agent.velocity), gradient(copied))
    assert losses["actor_loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert losses["flow_matching"] == values[0] and losses["entropy"] == values[1]
    assert losses["alpha"].item() == pytest.approx(alpha)
    assert losses["temperature"].item() == pytest.approx(temperature)


def test_no_gradient_crosses_the_ode_solver_and_nothing_is_integrated_twice(fmer):
    agent, calls = new_agent(fmer), []
    agent.velocity.register_forward_pre_hook(
        lambda *_: calls.append(torch.is_grad_enabled())
    )
    agent.update(random_batch(), with_actor=True)
    assert calls.count(False) == 2 * 3, (
        "K for the target's candidates and K for the actor's"
    )
    assert calls.count(True) == 2, "Eqs. (7) and (8), once each"


def test_learning_rates_reach_their_networks(fmer):
    """The first Adam step moves a parameter with a gradient by its learning rate."""
    agent = new_agent(fmer, policy_lr=3e-4, q_lr=2e-3)
    before = snapshot(agent)
    agent.update(random_batch(), with_actor=True)
    after = agent.state_dict()
    for prefix, rate in (("velocity.", 3e-4), ("critic.", 2e-3), ("log_", 2e-3)):
        names = [name for name in before if name.startswith(prefix)]
        largest = max((after[name] - before[name]).abs().max() for name in names)
        assert largest.item() == pytest.approx(rate, rel=0.01), prefix


def test_a_step_moves_only_what_has_a_gradient(fmer):
    """No decay of weights: behind a last layer of zeros gradients are zero."""
    agent = new_agent(fmer)
    for net in (agent.velocity.net, agent.critic.q1):
        torch.nn.init.zeros_(net.out.weight)
    before = snapshot(agent)
    agent.update_critic(*random_batch())
    agent.update_actor(random_batch()[0])
    moved = changed(before, agent)
    for name in ("velocity.net.", "critic.q1."):
        assert name + "out.weight" in moved and name + "hidden.weight" not in moved


# --- Line 9: the dual steps, Eqs. (6), (11) ----------------------------------------------


@pytest.mark.parametrize("high", [False, True])
def test_dual_steps_push_entropy_and_ess_to_their_targets(fmer, monkeypatch, high):
    """A target just above or below: the first Adam step is the learning rate, whatever the
    gap. ESS/N counts by its mean over states: here one state is far from the others."""
    target = (0.72 if high else 0.62) * D  # around v = 0's: H = d·H_0 exactly
    agent = new_agent(fmer, alpha=0.1, temperature=0.5, ess_target=0.5, q_lr=0.01)
    agent.target_entropy = target
    torch.nn.init.zeros_(agent.velocity.net.out.weight)
    others, one = (1.0, 7.0) if high else (7.0, 1.0)
    ess = torch.tensor([one] + [others] * 22)

    def weigh(q, temperature):
        return torch.full_like(q, 1 / 7), ess

    monkeypatch.setattr(fmer, "candidate_weights", weigh)
    losses = agent.update_actor(random_batch(23)[0])
    assert losses["entropy"].item() == pytest.approx(D * fmer.BASE_ENTROPY, abs=1e-5)
    assert losses["ess"].item() == pytest.approx(ess.mean().item() / 7)
    step = 0.01 if high else -0.01
    assert agent.log_alpha.item() == pytest.approx(math.log(0.1) + step, abs=1e-5)
    assert agent.log_temperature.item() == pytest.approx(math.log(0.5) + step, abs=1e-5)


def test_the_entropy_target_is_per_action_dimension(fmer):
    assert new_agent(fmer, target_entropy_scale=-1.5).target_entropy == -1.5 * D


@pytest.mark.parametrize(
    "fixed", [["log_alpha"], ["log_temperature"], ["log_alpha", "log_temperature"]]
)
def test_fixed_multipliers_stay_fixed(fmer, fixed):
    flags = dict(autotune="log_alpha", autotune_temperature="log_temperature")
    agent = new_agent(fmer, **{flag: name not in fixed for flag, name in flags.items()})
    before = snapshot(agent)
    agent.update_actor(random_batch()[0])
    moved = {name for name in changed(before, agent) if name.startswith("log_")}
    assert moved == set(flags.values()) - set(fixed)
    assert steps_taken(agent.policy_optimizer) == {1}


def test_no_entropy_term_is_a_fixed_alpha_of_zero(fmer):
    agent = new_agent(fmer, autotune=False, alpha=0.0)
    for _ in range(2):
        losses = agent.update_actor(random_batch()[0])
    assert agent.log_alpha.exp() == losses["alpha"] == 0
    assert losses["actor_loss"] == losses["flow_matching"]
    assert all(value.isfinite() for value in losses.values())


def test_self_distillation_holds_the_entropy_of_the_real_policy_at_its_target(
    fmer, monkeypatch
):
    """Uniform weights, target −1 nat per dimension: the actions' histogram agrees."""
    sizes = SMALL | dict(hidden_dim=32, flow_steps=5, num_candidates=4)
    args = fmer.Args(**sizes, target_entropy_scale=-1.0, policy_lr=5e-3, q_lr=2e-2)
    agent, s = fmer.Agent(1, 2, args), torch.zeros(128, 1)

    def uniform(q, temperature):
        return torch.full_like(q, 1 / q.shape[1]), torch.full_like(q[:, 0], q.shape[1])

    monkeypatch.setattr(fmer, "candidate_weights", uniform)
    for step in range(1200):
        if step == 700:  # settle: the target must hold on average, not at one lucky step
            agent.policy_optimizer.param_groups[0]["lr"] = 2e-4
        agent.update_actor(s)
    a = agent.sample(s[:1], 200_000)[-1].tanh()[0].numpy()
    density, *_ = np.histogram2d(*a.T, bins=50, range=[(-1, 1)] * 2, density=True)
    density = density[density > 0]
    entropy = -(density * np.log(density)).sum() * 0.04**2
    assert entropy == pytest.approx(-2.0, abs=0.1)


# --- Line 10, and the whole step ---------------------------------------------------------


def test_target_critics_move_by_exactly_tau_towards_the_critics(fmer):
    agent = new_agent(fmer, tau=0.25)
    for update in range(2):
        before = [p.clone() for p in agent.target_critic.parameters()]
        agent.update(random_batch(), with_actor=False)
        sources = agent.critic.parameters()
        averages = agent.target_critic.parameters()
        for average, old, source in zip(averages, before, sources, strict=True):
            torch.testing.assert_close(average, 0.75 * old + 0.25 * source)
            assert not torch.equal(average, old), update
            assert not average.requires_grad, "nor does Eq. (12) through them"
    assert steps_taken(agent.q_optimizer) == {2} and not agent.policy_optimizer.state


def test_target_critics_start_as_the_critics(fmer):
    agent = new_agent(fmer)
    for average, source in zip(
        agent.target_critic.parameters(), agent.critic.parameters(), strict=True
    ):
        assert torch.equal(average, source) and average is not source
        assert not average.requires_grad


@pytest.mark.parametrize("exact", [True, False])
def test_the_learners_step_stays_on_its_device_and_reads_nothing_from_it(fmer, exact):
    """On PyTorch's device without memory: an operand left on the CPU, or a read, raises.
    (Not in Adam's steps, which still hold the parameters from before the move.)"""
    meta = torch.device("meta")
    agent = new_agent(fmer, exact_entropy=exact, normalize_observations=True).to(meta)
    agent.observe(np.ones(S))
    buffer = fmer.ReplayBuffer(101, S, D, meta)
    buffer.num_added = 3
    losses = agent.update(buffer.sample(29), with_actor=True)
    assert len(losses) >= 8 and {value.device for value in losses.values()} == {meta}
    with pytest.raises(RuntimeError):
        losses["qf_loss"].item()
    with pytest.raises(RuntimeError):
        agent.velocity(torch.zeros(5, S), torch.zeros(5, D, device=meta), torch.zeros(1))


class NoScalarRead(TorchDispatchMode):
    """Fails on what a GPU would have to be waited for: a number read, a data-made shape."""

    forbidden = "_local_scalar_dense nonzero is_nonzero equal masked_select unique".split()
    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.forbidden, f"{function} reads the device"
        self.calls += 1
        return function(*args, **(kwargs or {}))


def test_adams_steps_read_nothing_from_the_device(fmer):
    agent = new_agent(fmer)
    agent.update(random_batch(), with_actor=True)
    before = snapshot(agent)
    for name in fmer.OPTIMIZERS:
        with NoScalarRead() as mode:
            getattr(agent, name).step()
        assert mode.calls > 0
    trained = ("velocity.", "critic.", "log_")
    assert changed(before, agent) == {name for name in before if name.startswith(trained)}
    with pytest.raises(AssertionError, match="reads the device"), NoScalarRead():
        agent.log_alpha.item()


def draw_on_the_cpu(monkeypatch):
    """The same noise on every device."""
    for name in ("randn", "randint"):
        function = getattr(torch, name)

        def draw(*args, device, generator=None, function=function):
            return function(*args, generator=generator).to(device)

        monkeypatch.setattr(torch, name, draw)
    for name in ("randn_like", "rand_like"):
        function = getattr(torch, name)

        def draw_like(x, function=function):
            return function(x.cpu()).to(x.device)

        monkeypatch.setattr(torch, name, draw_like)


@needs_gpu
@pytest.mark.parametrize("exact", [True, False])
def test_the_gpu_computes_what_the_cpu_computes(monkeypatch, fmer, exact):
    cpu = new_agent(fmer, exact_entropy=exact)
    gpu = copy.deepcopy(cpu).cuda()
    batch = random_batch()
    draw_on_the_cpu(monkeypatch)
    results = []
    for agent, device in ((cpu, "cpu"), (gpu, "cuda")):
        torch.manual_seed(1)
        losses = agent.update([x.to(device) for x in batch], with_actor=True)
        gradients = [parameter.grad for parameter in agent.parameters()]
        values = [*losses.values(), *[grad for grad in gradients if grad is not None]]
        results.append([value.cpu() for value in values])
    assert len(results[0]) > 20
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


@needs_gpu
def test_the_learners_step_never_waits_for_the_gpu(fmer):
    agent, buffer = new_agent(fmer).cuda(), fmer.ReplayBuffer(101, S, D, "cuda")
    for _ in range(3):
        buffer.add(np.ones(S), np.full(D, 0.5), 1.0, np.ones(S), False)
    agent.update(buffer.sample(29), with_actor=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.update(buffer.sample(29), with_actor=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- Line 11: the replay buffer -----------------------------------------------------------


def test_buffer_returns_what_was_stored_and_forgets_the_oldest(fmer):
    buffer = fmer.ReplayBuffer(5, 3, 2, "cpu")
    for i in range(7):
        buffer.add(
            np.full(3, i), np.full(2, 10 + i), 20 + i, np.full(3, 30 + i), i % 2 == 0
        )
        assert len(buffer) == min(i + 1, 5)
    s, a, r, next_s, terminated = buffer.sample(2003)
    assert (s.shape, a.shape, r.shape) == ((2003, 3), (2003, 2), (2003,))
    assert (next_s.shape, terminated.shape) == ((2003, 3), (2003,))
    i = s[:, 0]
    assert set(i.tolist()) == {2, 3, 4, 5, 6}
    assert torch.equal(a[:, 1], 10 + i) and torch.equal(r, 20 + i)
    assert torch.equal(next_s[:, 2], 30 + i)
    assert torch.equal(terminated, (i % 2 == 0).float())
    shares = torch.bincount(i.long())[2:] / 2003
    assert (shares - 0.2).abs().max() < 0.05, "uniform over what is stored"


def test_a_part_filled_buffer_yields_stored_rows_only(fmer):
    buffer = fmer.ReplayBuffer(101, 3, 2, "cpu")
    for i in range(1, 4):
        buffer.add(np.full(3, i), np.zeros(2), 0, np.zeros(3), False)
    assert set(buffer.sample(307)[0][:, 0].tolist()) == {1, 2, 3}
