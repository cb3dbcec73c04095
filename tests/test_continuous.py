"""The agent, the loop, evaluation, output and refusals of fmer_continuous.py."""

import csv
import dataclasses
import hashlib
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path

import envs  # noqa: F401  registers the tasks below
import numpy as np
import pytest
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode

import fmer_continuous as fmer

ROOT = Path(__file__).parent.parent
S, D = 11, 3


def small(**changes):
    """A run of seconds: the real algorithm at prime sizes."""
    settings = dict(
        env_id="Target-v0", cuda=False, total_timesteps=97, learning_starts=31, batch_size=29,
        actor_batch_size=23, hidden_dim=19, flow_steps=3, num_candidates=7, num_act_candidates=5,
        num_target_candidates=2, eval_interval=0, eval_episodes=3, log_interval=13,
        buffer_size=1009,
    )  # fmt: skip
    return fmer.Args(**(settings | changes))


def run(tmp_path, name="run", **changes):
    return fmer.main(small(run_dir=str(tmp_path / name), **changes))


def parameter_hash(module):
    digest = hashlib.sha256()
    for parameter in module.state_dict().values():
        digest.update(parameter.cpu().numpy().tobytes())
    return digest.hexdigest()


def adam_steps(agent, module):
    return {int(agent.optimizer.state[p]["step"]) for p in module.parameters()}


def random_batch(size=29):
    s, next_s = torch.randn(2, size, S)
    return s, torch.rand(size, D) * 2 - 1, torch.randn(size), next_s, torch.zeros(size)


def changed(before, module):
    return {name: not torch.equal(before[name], p) for name, p in module.state_dict().items()}


def snapshot(agent):
    return {name: p.clone() for name, p in agent.state_dict().items()}


# --- Replay buffer ----------------------------------------------------------------------------


def test_buffer_returns_what_was_stored_and_forgets_the_oldest():
    buffer = fmer.ReplayBuffer(5, 3, 2, torch.device("cpu"))
    for i in range(7):
        buffer.add(np.full(3, i), np.full(2, 10 + i), 20 + i, np.full(3, 30 + i), i % 2 == 0)
        assert len(buffer) == min(i + 1, 5)
    s, a, r, next_s, terminated = buffer.sample(2003)
    assert (s.shape, a.shape, r.shape) == ((2003, 3), (2003, 2), (2003,))
    assert (next_s.shape, terminated.shape) == ((2003, 3), (2003,))
    i = s[:, 0]
    assert set(i.tolist()) == {2, 3, 4, 5, 6}
    assert torch.equal(a[:, 1], 10 + i) and torch.equal(r, 20 + i)
    assert torch.equal(next_s[:, 2], 30 + i) and torch.equal(terminated, (i % 2 == 0).float())
    shares = torch.bincount(i.long())[2:] / 2003
    assert (shares - 0.2).abs().max() < 0.05, "uniform over what is stored"


def test_a_part_filled_buffer_yields_stored_rows_only():
    buffer = fmer.ReplayBuffer(101, 3, 2, torch.device("cpu"))
    for i in range(1, 4):
        buffer.add(np.full(3, i), np.zeros(2), 0, np.zeros(3), False)
    assert set(buffer.sample(307)[0][:, 0].tolist()) == {1, 2, 3}


# --- What an update changes, and what it must not -----------------------------------------------


def test_a_critic_step_changes_only_the_critics():
    torch.manual_seed(0)
    agent = fmer.Agent(S, D, small())
    before = snapshot(agent)
    metrics = agent.update_critic(*random_batch())
    for name, differs in changed(before, agent).items():
        assert differs == name.startswith("critic."), name
    assert metrics["critic"] > 0 and adam_steps(agent, agent.critic) == {1}


def test_an_actor_step_changes_only_the_velocity_field_and_the_multipliers():
    torch.manual_seed(0)
    agent = fmer.Agent(S, D, small())
    torch.nn.init.normal_(agent.velocity.net.out.weight)
    agent.update_critic(*random_batch())  # leaves gradients on the critics: they must not be reused
    before = snapshot(agent)
    agent.update_actor(random_batch()[0])
    for name, differs in changed(before, agent).items():
        assert differs == name.startswith(("velocity.", "log_")), name
    assert adam_steps(agent, agent.velocity) == {1} and adam_steps(agent, agent.critic) == {1}


def test_fixed_multipliers_stay_fixed():
    agent = fmer.Agent(S, D, small(autotune=False, alpha=0.0, autotune_temperature=False))
    metrics = agent.update_actor(random_batch()[0])
    assert agent.log_alpha.exp() == 0 and agent.log_temperature == 0
    assert all(math.isfinite(value) for value in metrics.values())


def test_dual_steps_push_entropy_and_ess_to_their_targets():
    agent = fmer.Agent(S, D, small(target_entropy_scale=0.69, ess_target=1.0, q_lr=0.01))
    agent.update_actor(random_batch()[0])  # entropy below its target, ESS below its target
    assert agent.log_alpha.item() == pytest.approx(math.log(0.1) + 0.01, abs=1e-5)
    assert agent.log_temperature.item() == pytest.approx(0.01, abs=1e-5)
    agent = fmer.Agent(S, D, small(target_entropy_scale=-9.0, ess_target=1 / 7, q_lr=0.01))
    agent.update_actor(random_batch()[0])
    assert agent.log_alpha.item() == pytest.approx(math.log(0.1) - 0.01, abs=1e-5)
    assert agent.log_temperature.item() == pytest.approx(-0.01, abs=1e-5)


def test_target_critics_move_by_exactly_tau():
    agent = fmer.Agent(S, D, small(tau=0.25))
    old = [p.clone() for p in agent.target_critic.parameters()]
    agent.update(random_batch(), with_actor=False)
    for average, before, source in zip(
        agent.target_critic.parameters(), old, agent.critic.parameters(), strict=True
    ):
        torch.testing.assert_close(average, 0.75 * before + 0.25 * source)
        assert not torch.equal(average, before)


def test_no_gradient_crosses_the_ode_solver():
    agent, calls = fmer.Agent(S, D, small()), []
    agent.velocity.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    agent.update(random_batch(), with_actor=True)
    solver_calls = 2 * agent.args.flow_steps  # one rollout for the target, one for the candidates
    assert calls == [False] * solver_calls + [True, True]  # then Eq. (7) and Eq. (8), once each


def test_the_critic_regresses_on_the_target_of_eq_12():
    """With Q ≡ 5 and γ = 0.5: y = r + 2.5, or r where terminated; the loss is Eq. (13)."""
    agent = fmer.Agent(S, D, small(gamma=0.5))
    for critic in (agent.critic, agent.target_critic):
        for q in (critic.q1, critic.q2):
            torch.nn.init.zeros_(q.out.weight)
            torch.nn.init.constant_(q.out.bias, 5.0)
    s, a, r, next_s, terminated = random_batch()
    terminated[:13] = 1
    loss = agent.update_critic(s, a, r, next_s, terminated)["critic"]
    y = torch.cat([r[:13], r[13:] + 2.5])
    torch.testing.assert_close(loss, 2 * (5 - y).square().mean())


class Probe(torch.nn.Module):
    """Q_1 = s_0 − 3 (a_0 − 0.3)², Q_2 = Q_1 − a_1; remembers the candidates it was asked about."""

    def forward(self, s, a):
        self.s, self.a = s, a
        q1 = s[..., 0] - 3 * (a[..., 0] - 0.3).square()
        return torch.stack([q1, q1 - a[..., 1]])


def test_the_target_asks_the_target_critics_about_m_prime_candidates_of_the_next_state():
    agent = fmer.Agent(S, D, small(gamma=0.5))
    agent.target_critic = probe = Probe()
    for q in (agent.critic.q1, agent.critic.q2):
        torch.nn.init.zeros_(q.out.weight), torch.nn.init.zeros_(q.out.bias)
    s, a, r, next_s, terminated = random_batch()
    loss = agent.update_critic(s, a, r, next_s, terminated)["critic"]
    assert probe.a.shape == (29, 2, D) and torch.equal(probe.s.squeeze(1), next_s)
    value = probe(next_s.unsqueeze(1), probe.a).min(0).values.max(1).values
    torch.testing.assert_close(loss, 2 * (r + 0.5 * value).square().mean())


def test_acting_takes_the_best_of_m_candidates_by_the_critics():
    agent = fmer.Agent(S, D, small())
    agent.critic = probe = Probe()
    obs = np.random.default_rng(0).normal(size=(2, S))
    a = torch.as_tensor(agent.act(obs))
    assert probe.a.shape == (2, 5, D) and (probe.a.abs() <= 1).all()
    best = probe(torch.as_tensor(obs).unsqueeze(1), probe.a).min(0).values.argmax(1)
    assert torch.equal(a, probe.a[torch.arange(2), best])


@pytest.mark.parametrize("exact", [True, False])
def test_the_actor_weights_its_candidates_by_the_smaller_q_of_their_actions(monkeypatch, exact):
    agent, seen = fmer.Agent(S, D, small(temperature=0.3, exact_entropy=exact)), []
    agent.critic.forward = Probe().forward
    monkeypatch.setattr(agent, "update_critic", lambda *batch: {})
    loss, entropy = fmer.flow_matching_loss, fmer.policy_entropy
    monkeypatch.setattr(fmer, "flow_matching_loss", lambda *a: (seen.append(a), loss(*a))[1])
    monkeypatch.setattr(fmer, "policy_entropy", lambda *a: (seen.append(a), entropy(*a))[1])
    batch = random_batch()
    agent.update(batch, with_actor=True)
    (_, s, x1, weights), (_, _, path, exact_flag) = seen
    assert torch.equal(s, batch[0][:23]), "the first actor_batch_size states"
    q = Probe()(s.unsqueeze(1), x1.tanh()).min(0).values
    torch.testing.assert_close(weights, torch.softmax(q / 0.3, 1))
    assert torch.equal(path[-1], x1) and x1.shape == (23, 7, D) and exact_flag == exact


def test_learning_rates_reach_their_networks():
    """The first Adam step moves every parameter with a gradient by its learning rate."""
    agent = fmer.Agent(S, D, small(policy_lr=3e-4, q_lr=2e-3))
    before = snapshot(agent)
    agent.update(random_batch(), with_actor=True)
    for prefix, rate in (("velocity", 3e-4), ("critic", 2e-3), ("log_", 2e-3)):
        moved = [(p - before[n]).abs().max() for n, p in agent.state_dict().items()
                 if n.startswith(prefix)]  # fmt: skip
        assert max(moved) == pytest.approx(rate, rel=0.01), prefix


def test_alpha_follows_the_entropy_gap_alone():
    """At first H = d·H_0 exactly. Just above its target, α falls, whatever α·H itself would say."""
    agent = fmer.Agent(S, D, small(target_entropy_scale=fmer.BASE_ENTROPY - 0.03, q_lr=0.01))
    agent.update_actor(random_batch()[0])
    assert agent.log_alpha.item() == pytest.approx(math.log(0.1) - 0.01, abs=1e-5)


def test_self_distillation_holds_the_entropy_of_the_real_policy_at_its_target():
    """Flat critic (uniform weights), target −1 nat per dimension: the histogram entropy agrees."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    args = small(hidden_dim=64, flow_steps=5, num_candidates=8, policy_lr=2e-3, q_lr=5e-3)
    args.target_entropy_scale = -1.0
    agent = fmer.Agent(1, 2, args)
    for q in (agent.critic.q1, agent.critic.q2):
        torch.nn.init.zeros_(q.out.weight)
    s = torch.zeros(128, 1)
    for step in range(1200):
        if step == 900:  # settle: the target must hold on average, not at one lucky step
            agent.optimizer.param_groups[0]["lr"] = 2e-4
        metrics = agent.update_actor(s)
    assert metrics["ess"] == pytest.approx(1), "uniform weights"
    a = fmer.sample_path(agent.velocity, s[:1], 1_000_000, 5, 2)[-1].tanh()[0].numpy()
    density, *_ = np.histogram2d(*a.T, bins=100, range=[(-1, 1)] * 2, density=True)
    density = density[density > 0]
    entropy = -(density * np.log(density)).sum() * 0.02**2
    assert entropy == pytest.approx(-2.0, abs=0.1)


# --- The loop, against Algorithm 1 --------------------------------------------------------------


def test_number_of_updates_is_algorithm_1s(tmp_path):
    agent = run(tmp_path, policy_frequency=3)["agent"]
    assert adam_steps(agent, agent.critic) == {97 - 31}
    assert adam_steps(agent, agent.velocity) == {97 // 3 - 31 // 3}


def test_warm_up_is_uniform_and_actions_are_rescaled_to_the_box(tmp_path, monkeypatch):
    seen = []
    step = envs.Target.step
    monkeypatch.setattr(
        envs.Target, "step", lambda self, a: (seen.append(np.array(a)), step(self, a))[1]
    )
    buffer = run(tmp_path, total_timesteps=499, learning_starts=490)["buffer"]
    stored = buffer.rows[:499, 3:5].numpy()
    np.testing.assert_allclose(np.stack(seen), 3 * stored, rtol=1e-5)
    warm_up = stored[:490]
    assert abs(warm_up.mean()) < 0.06 and abs(warm_up.std() - 3**-0.5) < 0.03
    assert np.abs(stored).max() <= 1
    assert warm_up.max() > 0.99 and warm_up.min() < -0.99


@pytest.mark.parametrize(("env_id", "ends"), [("Target-v0", 0), ("Terminating-v0", 97 // 7)])
def test_a_time_limit_is_not_stored_as_termination(tmp_path, env_id, ends):
    buffer = run(tmp_path, env_id=env_id)["buffer"]
    terminated = buffer.rows[: len(buffer), -1]
    assert terminated.sum() == ends
    assert len(buffer) == 97


def test_stored_transitions_join_up_within_an_episode_only(tmp_path):
    buffer = run(tmp_path)["buffer"]
    s, _, _, next_s, _ = buffer.rows[:97].split(buffer.widths, 1)
    joins = (s[1:] == next_s[:-1]).all(1)
    ends = torch.arange(1, 97) % 7 == 0
    assert torch.equal(joins, ~ends)


@pytest.fixture
def recorded_seeds(monkeypatch):
    seeds, reset = [], envs.Target.reset

    def recording_reset(self, seed=None, options=None):
        seeds.append(seed)
        return reset(self, seed, options)

    monkeypatch.setattr(envs.Target, "reset", recording_reset)
    return seeds


def test_every_training_episode_has_its_own_seed(tmp_path, recorded_seeds):
    for seed in (3, 4):
        run(tmp_path, f"seed{seed}", seed=seed)
    assert len(recorded_seeds) == 2 * (1 + 97 // 7) == len(set(recorded_seeds))
    assert max(recorded_seeds) < fmer.EVAL_SEED and recorded_seeds[0] == 3


def test_the_learner_runs_between_acting_and_the_simulator(tmp_path, monkeypatch):
    calls = []

    def spy_on(owner, name):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a: (calls.append(name), function(*a))[1])

    spy_on(fmer.Agent, "act")
    spy_on(fmer.Agent, "update")
    spy_on(envs.Target, "step")
    run(tmp_path, total_timesteps=41)
    assert calls == ["step"] * 31 + ["act", "update", "step"] * 10


def test_observations_are_copied_from_simulators_that_reuse_their_array(tmp_path):
    buffer = run(tmp_path, env_id="Aliasing-v0")["buffer"]
    s, _, _, next_s, _ = buffer.rows[:97].split(buffer.widths, 1)
    assert (s != next_s).any(1).all()


def test_observations_in_a_dictionary_are_flattened(tmp_path):
    buffer = run(tmp_path, env_id="Nested-v0")["buffer"]
    s, _, _, next_s, _ = buffer.rows[:97].split(buffer.widths, 1)
    assert s.shape == (97, 6) and s.abs().max() > 0
    assert torch.equal(s[:, :3], -s[:, 3:]) and torch.equal(next_s[:, :3], -next_s[:, 3:])


class NoScalarRead(TorchDispatchMode):
    """Fails on whatever a GPU would have to be waited for: reading a number, a data-made shape."""

    forbidden = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.forbidden, f"{function} reads the device"
        result = function(*args, **(kwargs or {}))
        self.calls = getattr(self, "calls", 0) + 1
        return result


@pytest.mark.parametrize("exact", [True, False])
def test_the_learners_step_reads_no_scalar(exact):
    agent = fmer.Agent(S, D, small(exact_entropy=exact))
    buffer = fmer.ReplayBuffer(101, S, D, torch.device("cpu"))
    for _ in range(3):
        buffer.add(np.ones(S), np.zeros(D), 1.0, np.ones(S), False)
    before = parameter_hash(agent)
    for _ in range(2):  # the first also makes Adam's state
        with NoScalarRead() as mode:
            agent.update(buffer.sample(29), with_actor=True)
    assert mode.calls > 100 and parameter_hash(agent) != before
    with pytest.raises(AssertionError, match="reads the device"), NoScalarRead():
        agent.log_alpha.item()


@pytest.mark.parametrize("exact", [True, False])
def test_the_learners_step_stays_on_its_device(exact):
    """On PyTorch's device without memory: an operand left on the CPU, or a read, would raise.
    (All but Adam's step, which still holds the parameters from before the move.)"""
    meta = torch.device("meta")
    agent = fmer.Agent(S, D, small(exact_entropy=exact)).to(meta)
    metrics = agent.update(fmer.ReplayBuffer(101, S, D, meta).sample(29), with_actor=True)
    assert len(metrics) == 7 and {value.device for value in metrics.values()} == {meta}
    with pytest.raises(RuntimeError):
        metrics["critic"].item()
    with pytest.raises(RuntimeError):
        agent.velocity(torch.zeros(5, S), torch.zeros(5, D, device=meta), torch.zeros(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_learners_step_never_waits_for_the_gpu():
    agent = fmer.Agent(S, D, small()).cuda()
    buffer = fmer.ReplayBuffer(101, S, D, torch.device("cuda"))
    for _ in range(3):
        buffer.add(np.ones(S), np.zeros(D), 1.0, np.ones(S), False)
    agent.update(buffer.sample(29), with_actor=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.update(buffer.sample(29), with_actor=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_same_seed_same_parameters_other_seed_others(tmp_path):
    first, second = run(tmp_path, "a", seed=3), run(tmp_path, "b", seed=3)
    other = run(tmp_path, "c", seed=4)
    assert parameter_hash(first["agent"]) == parameter_hash(second["agent"])
    assert parameter_hash(first["agent"]) != parameter_hash(other["agent"])
    assert torch.equal(first["buffer"].rows, second["buffer"].rows)


def test_evaluating_never_changes_training(tmp_path):
    never = run(tmp_path, "never", eval_interval=0)
    often = run(tmp_path, "often", eval_interval=11)
    assert never["eval_returns"] == [] and len(often["eval_returns"]) == 1 + 97 // 11 + 1
    assert parameter_hash(never["agent"]) == parameter_hash(often["agent"])
    assert torch.equal(never["buffer"].rows, often["buffer"].rows)


def test_evaluation_repeats_exactly_and_is_the_same_for_every_seed(tmp_path):
    agent = run(tmp_path)["agent"]
    tasks = [fmer.make_env("Target-v0") for _ in range(3)]
    results = [[m["return"] for m in fmer.evaluate(agent, tasks)] for _ in range(2)]
    assert results[0] == results[1] and len(set(results[0])) == 3
    agent.args.seed += 1
    assert results[0] == [m["return"] for m in fmer.evaluate(agent, tasks)], "whatever the seed"


def test_evaluation_episodes_have_fixed_seeds_of_their_own(tmp_path, recorded_seeds):
    agent = run(tmp_path)["agent"]
    recorded_seeds.clear()
    fmer.evaluate(agent, [fmer.make_env("Target-v0") for _ in range(3)])
    assert recorded_seeds == [fmer.EVAL_SEED + i for i in range(3)]


def test_learns_to_hit_a_target_that_depends_on_the_state(tmp_path):
    """−‖a − 3 tanh(s)‖² over 7 steps: random actions earn about −60, a learner more than −7."""
    torch.manual_seed(0)
    result = run(
        tmp_path, total_timesteps=2_500, learning_starts=200, batch_size=64, actor_batch_size=32,
        hidden_dim=64, flow_steps=5, num_candidates=16, num_act_candidates=16, gamma=0.0,
        eval_interval=2_500, eval_episodes=10,
    )  # fmt: skip
    (_, before), (_, after) = result["eval_returns"]
    assert before < -30 and after > -7


# --- Output -----------------------------------------------------------------------------------


def test_output_files(tmp_path):
    result = run(tmp_path, eval_interval=50)
    directory = Path(result["run_dir"])
    with open(directory / "eval.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "episode", "return", "length", "seconds"]
    assert [(int(r["step"]), int(r["episode"])) for r in rows] == [
        (step, i) for step in (0, 50, 97) for i in range(3)
    ]
    assert {r["length"] for r in rows} == {"7"}
    for step, mean in result["eval_returns"]:
        recorded = [float(r["return"]) for r in rows if int(r["step"]) == step]
        assert np.mean(recorded) == pytest.approx(mean)

    events = EventAccumulator(str(directory)).Reload()
    tags = set(events.Tags()["scalars"])
    losses = "critic q_values flow_matching entropy alpha temperature ess"
    assert tags == {f"losses/{name}" for name in losses.split()} | {
        "eval/return", "eval/length", "charts/SPS", "charts/episodic_return",
        "charts/episodic_length",
    }  # fmt: skip
    listed = re.findall(r"`((?:losses|eval|charts)/\w+)`", (ROOT / "README.md").read_text())
    assert tags <= set(listed), "the README lists every key"
    assert [e.step for e in events.Scalars("charts/episodic_return")] == list(range(7, 98, 7))
    assert [e.step for e in events.Scalars("losses/critic")] == [39, 52, 65, 78, 91]
    assert "hyperparameters/text_summary" in events.Tags()["tensors"]


def test_default_run_directory_is_cleanrls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = fmer.main(small(seed=7))["run_dir"]
    head, exp, seed, stamp = directory.split("__")
    assert (head, exp, seed) == ("runs/Target-v0", "fmer_continuous", "7") and stamp.isdigit()


def test_the_trained_policy_can_be_loaded(tmp_path):
    trained = run(tmp_path, eval_interval=97)["agent"]
    saved = torch.load(tmp_path / "run" / "policy.pt", weights_only=True)
    agent = fmer.Agent(*saved["dims"], fmer.Args(**saved["args"]))
    agent.load_state_dict(saved["agent"])
    assert parameter_hash(agent) == parameter_hash(trained)


def test_videos_of_evaluation_episodes(tmp_path):
    run(tmp_path, capture_video=True, eval_interval=97)
    videos = list((tmp_path / "run" / "videos").glob("*/*.mp4"))
    assert len(videos) == 2, "one of each evaluation"
    assert all(video.stat().st_size > 500 for video in videos)


# --- Command line -----------------------------------------------------------------------------


def test_every_flag_has_a_help_sentence(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(fmer.Args, args=["--help"])
    shown = "".join(capsys.readouterr().out.replace("│", " ").split())
    source = (ROOT / "fmer_continuous.py").read_text().splitlines()
    for field in dataclasses.fields(fmer.Args):
        (line,) = [each for each in source if each.startswith(f"    {field.name}: ")]
        sentence = line.split("  # ")[1]
        assert f"--{field.name.replace('_', '-')}" in shown and "".join(sentence.split()) in shown


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_candidates": 0}, "--num_candidates"),
        ({"flow_steps": 0}, "--flow_steps"),
        ({"gamma": 1.5}, "--gamma"),
        ({"gamma": math.nan}, "--gamma"),
        ({"tau": -0.1}, "--tau"),
        ({"total_timesteps": 0}, "--total_timesteps"),
        ({"learning_starts": 0}, "--learning_starts"),
        ({"batch_size": -1}, "--batch_size"),
        ({"actor_batch_size": 30}, "--actor_batch_size"),
        ({"policy_lr": 0.0}, "--policy_lr"),
        ({"q_lr": math.inf}, "--q_lr"),
        ({"alpha": -0.1}, "--alpha"),
        ({"ess_target": 1.01}, "--ess_target"),
        ({"target_entropy_scale": 0.7}, "--target_entropy_scale"),
        ({"eval_interval": -1}, "--eval_interval"),
        ({"eval_episodes": 0}, "--eval_episodes"),
        ({"seed": -1}, "--seed"),
        ({"env_id": "NoSuchTask-v0"}, "NoSuchTask"),
        ({"env_id": "no_such_module:Task-v0"}, "no_such_module"),
        ({"env_id": "not an id"}, "not an id"),
        ({"env_id": "Refused-discrete-v0"}, "Discrete(2) are no flat real box"),
        ({"env_id": "Refused-matrix-v0"}, "(2, 3), float32) are no flat real box"),
        ({"env_id": "Refused-integer-v0"}, "no flat real box"),
        ({"env_id": "Refused-degenerate-v0"}, "no flat real box"),
        ({"env_id": "Refused-unbounded-v0"}, "no flat real box of finite bounds"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*A Box action space m")  # what they are refused for
def test_bad_input_is_refused_before_training(tmp_path, changes, complaint):
    with pytest.raises(SystemExit) as refusal:
        run(tmp_path, **changes)
    message = str(refusal.value)
    assert message.startswith("error: ") and complaint in message and "\n" not in message
    assert not (tmp_path / "run").exists()


def test_a_used_or_unwritable_run_directory_is_refused(tmp_path):
    run(tmp_path, eval_interval=97)
    before = (tmp_path / "run" / "eval.csv").read_text()
    with pytest.raises(FileExistsError):
        run(tmp_path)
    assert (tmp_path / "run" / "eval.csv").read_text() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        run(tmp_path / "file")


def command(*flags, **kwargs):
    arguments = [sys.executable, str(ROOT / "fmer_continuous.py"), *flags]
    return subprocess.run(arguments, capture_output=True, text=True, **kwargs)


def test_command_line_trains_a_mujoco_task_and_refuses_bad_flags(tmp_path):
    """One real process on Hopper-v4 at the default networks, and one refusal."""
    flags = "--env-id Hopper-v4 --total-timesteps 130 --learning-starts 100 --eval-episodes 2"
    done = command(*flags.split(), "--no-cuda", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("done: runs/Hopper-v4__fmer_continuous__1__")
    assert "130/130" in done.stderr
    refused = command("--gamma", "1.5", cwd=tmp_path)
    assert refused.returncode == 1 and refused.stdout == ""
    assert refused.stderr == "error: --gamma must lie in [0, 1], not 1.5\n"


@pytest.mark.parametrize(("env_id", "bound"), [("HalfCheetah-v5", 1.0), ("Humanoid-v4", 0.4)])
def test_mujoco_action_boxes_are_rescaled(env_id, bound):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # v4 ids
        env = fmer.make_env(env_id)
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    assert (env.unwrapped.action_space.high == np.float32(bound)).all()
