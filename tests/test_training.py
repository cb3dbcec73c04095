"""The loop against Algorithm 1, evaluation, outputs and the command line."""

import csv
import json
import math
import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import envs
import fmer_continuous as fmer
from envs import SMALL

ROOT = Path(__file__).parent.parent


def run(tmp_path, name="run", **changes):
    settings = SMALL | dict(env_id="Target-v0", run_dir=str(tmp_path / name)) | changes
    return fmer.main(fmer.Args(**settings))


def steps_taken(optimizer):
    return {int(state["step"]) for state in optimizer.state.values()}


def same_parameters(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def transitions(buffer):
    """s, a, r, s', terminated of all that is stored, in order."""
    return buffer.rows[: len(buffer)].split(buffer.widths, 1)


def watch(monkeypatch, owner, name, calls):
    """Appends the name to `calls` at each call."""
    function = getattr(owner, name)

    def watched(*args):
        calls.append(name)
        return function(*args)

    monkeypatch.setattr(owner, name, watched)


# --- The loop, against Algorithm 1 ------------------------------------------------------


def test_number_of_updates_is_algorithm_1s(tmp_path):
    agent = run(tmp_path, policy_frequency=3)["agent"]
    assert steps_taken(agent.q_optimizer) == {97 - 31}
    assert steps_taken(agent.policy_optimizer) == {97 // 3 - 31 // 3}


def test_the_learner_runs_between_acting_and_the_simulator(tmp_path, monkeypatch):
    calls = []
    watch(monkeypatch, fmer.Agent, "act", calls)
    watch(monkeypatch, fmer.Agent, "update", calls)
    watch(monkeypatch, envs.Target, "step", calls)
    run(tmp_path, total_timesteps=41)
    assert calls == ["step"] * 31 + ["act", "update", "step"] * 10


def test_the_learner_gets_batches_of_what_is_stored(tmp_path, monkeypatch):
    batches, update = [], fmer.Agent.update

    def watched(self, batch, with_actor):
        batches.append(batch)
        return update(self, batch, with_actor)

    monkeypatch.setattr(fmer.Agent, "update", watched)
    s, a, r, next_s, terminated = transitions(run(tmp_path)["buffer"])
    assert len(batches) == 97 - 31
    for number, batch in enumerate(batches):
        assert [len(each) for each in batch] == [29] * 5
        stored = 31 + number
        same = (batch[0].unsqueeze(1) == s[:stored]).all(-1)  # (29, stored)
        assert (same.sum(1) == 1).all()
        i = same.int().argmax(1)
        assert torch.equal(batch[1], a[i]) and torch.equal(batch[2], r[i, 0])
        assert torch.equal(batch[3], next_s[i]) and torch.equal(batch[4], terminated[i, 0])


def test_warm_up_is_uniform_and_actions_are_rescaled_to_the_box(tmp_path, monkeypatch):
    seen, step = [], envs.Target.step

    def watched(self, action):
        seen.append(np.array(action))
        return step(self, action)

    monkeypatch.setattr(envs.Target, "step", watched)
    buffer = run(tmp_path, total_timesteps=499, learning_starts=490)["buffer"]
    stored = transitions(buffer)[1].numpy()
    np.testing.assert_allclose(np.stack(seen), 3 * stored, rtol=1e-5)
    warm_up = stored[:490]
    assert abs(warm_up.mean()) < 0.06 and abs(warm_up.std() - 3**-0.5) < 0.03
    assert np.abs(stored).max() <= 1
    assert warm_up.max() > 0.99 and warm_up.min() < -0.99


def test_a_random_action_is_repeated_up_to_the_end_of_its_episode(tmp_path):
    """Episodes of 7 steps, actions for 5: the second of an episode is repeated once."""
    settings = dict(total_timesteps=71, learning_starts=63, warmup_repeat=5)
    a = transitions(run(tmp_path, **settings)["buffer"])[1]
    changes = (a[1:] != a[:-1]).all(1).nonzero().squeeze(1) + 1  # the first step has none
    in_warm_up = [step for step in range(1, 63) if step % 7 in (0, 5)]
    assert changes.tolist() == in_warm_up + list(range(63, 71))
    assert len(a.unique(dim=0)) == 2 * 9 + 8


@pytest.mark.parametrize(
    ("env_id", "ends"), [("Target-v0", 0), ("Terminating-v0", 97 // 7)]
)
def test_a_time_limit_is_not_stored_as_termination(tmp_path, env_id, ends):
    terminated = transitions(run(tmp_path, env_id=env_id)["buffer"])[4]
    assert terminated.sum() == ends and len(terminated) == 97


def test_stored_transitions_join_up_within_an_episode_only(tmp_path):
    s, _, _, next_s, _ = transitions(run(tmp_path)["buffer"])
    joins = (s[1:] == next_s[:-1]).all(1)
    ends = torch.arange(1, 97) % 7 == 0
    assert torch.equal(joins, ~ends)


def test_the_stored_reward_is_that_of_the_stored_state_and_action(tmp_path):
    s, a, r, _, _ = transitions(run(tmp_path)["buffer"])
    expected = -(3 * a - 3 * s[:, :2].tanh()).square().sum(1, keepdim=True)
    torch.testing.assert_close(r, expected, rtol=1e-4, atol=1e-4)


def test_the_scale_is_that_of_the_training_steps_and_what_is_stored_is_raw(tmp_path):
    settings = dict(normalize_observations=True, eval_interval=20)
    result = run(tmp_path, **settings)
    s = transitions(result["buffer"])[0]
    assert result["agent"].count == 97, "evaluations are not counted"
    mean, variance = result["agent"].mean.float(), result["agent"].variance.float()
    torch.testing.assert_close(mean, s.mean(0))
    torch.testing.assert_close(variance, s.var(0, correction=0))
    raw = transitions(run(tmp_path, "raw", eval_interval=20)["buffer"])[0]
    assert torch.equal(s[:31], raw[:31])


def test_q_bias_is_q_as_it_was_when_acting_less_the_discounted_return(
    tmp_path, monkeypatch
):
    """Episodes of 7 steps; in warm-up, where nothing is asked, Q counts as 0."""
    values, act = [0.0] * 31, fmer.Agent.act

    def watched(self, obs, num_samples):
        action, value = act(self, obs, num_samples)
        values.append(value[0] + len(values))
        return action, value + len(values) - 1

    monkeypatch.setattr(fmer.Agent, "act", watched)
    r = transitions(run(tmp_path, gamma=0.7)["buffer"])[2].squeeze(1).tolist()
    logged = EventAccumulator(str(tmp_path / "run")).Reload().Scalars("charts/q_bias")
    assert [event.step for event in logged] == list(range(7, 97, 7))
    for event in logged:
        errors = []
        for t in range(event.step - 7, event.step):
            following = sum(0.7 ** (k - t) * r[k] for k in range(t, event.step))
            errors.append(values[t] - following)
        assert event.value == pytest.approx(np.mean(errors), rel=1e-5)


def test_q_bias_of_an_episode_of_three_steps(fmer):
    """Q = 3, r = 1, γ = ½: G = 7/4, 3/2 and 1."""
    assert fmer.q_bias([(None, 3.0, 1.0)] * 3, 0.5) == pytest.approx(19 / 12)


@pytest.mark.parametrize(
    ("env_id", "value"),
    [("Constant-v0", 1 / 0.2), ("ConstantTerminating-v0", 1 / 0.314)],
)
def test_q_approaches_the_discounted_return(tmp_path, env_id, value):
    """Reward 1, γ = 0.8: 1/(1−γ) through time limits; and where each step ends the episode
    with probability 1/7 (observations do not tell), 1/(1 − γ·6/7). Batches of 64:
    the backup takes the smaller of two critics, the lower the noisier they are."""
    fast = dict(q_lr=3e-3, tau=0.1, gamma=0.8, policy_frequency=10, batch_size=64)
    result = run(tmp_path, env_id=env_id, total_timesteps=700, learning_starts=200, **fast)
    s, a, *_ = transitions(result["buffer"])
    q = result["agent"].critic(s, a)
    assert q.mean().item() == pytest.approx(value, rel=0.1)
    assert steps_taken(result["agent"].policy_optimizer) == {50}


def test_learns_to_hit_a_target_that_depends_on_the_state(tmp_path):
    """−‖a − 3 tanh(s)‖² over 7 steps: random actions earn about −60, a learner over −15."""
    sizes = dict(hidden_dim=32, batch_size=64, num_act_candidates=16, learning_starts=200)
    rates = dict(gamma=0.0, q_lr=5e-3, policy_lr=2e-3)
    length = dict(total_timesteps=900, eval_interval=900, eval_episodes=10)
    result = run(tmp_path, **sizes, **rates, **length)
    before, after = result["progress"].eval_returns.values()
    assert before < -30 and after > -15


def test_training_explores_with_its_own_number_of_candidates(tmp_path, monkeypatch):
    asked, act = [], fmer.Agent.act

    def recorded(agent, obs, num_samples, generator=None):
        asked.append((num_samples, generator is None, len(obs)))
        return act(agent, obs, num_samples, generator)

    monkeypatch.setattr(fmer.Agent, "act", recorded)
    flags = dict(num_explore_candidates=3, num_act_candidates=7, eval_interval=50)
    result = run(tmp_path, **flags)
    evaluations = {each for each in asked if each != (3, True, 1)}
    args = result["agent"].args
    assert evaluations == {(7, False, args.eval_episodes)}
    assert asked.count((3, True, 1)) == args.total_timesteps - args.learning_starts


def test_observations_are_copied_from_simulators_that_reuse_their_array(tmp_path):
    s, _, _, next_s, _ = transitions(run(tmp_path, env_id="Aliasing-v0")["buffer"])
    assert (s != next_s).any(1).all()


def test_observations_in_a_dictionary_are_flattened(tmp_path):
    s, _, _, next_s, _ = transitions(run(tmp_path, env_id="Nested-v0")["buffer"])
    assert s.shape == (97, 6) and s.abs().max() > 0
    assert torch.equal(s[:, :3], -s[:, 3:]) and torch.equal(next_s[:, :3], -next_s[:, 3:])


def test_same_seed_same_parameters_other_seed_others(tmp_path):
    first, second = run(tmp_path, "a", seed=3), run(tmp_path, "b", seed=3)
    other = run(tmp_path, "c", seed=4)
    assert same_parameters(first["agent"], second["agent"])
    assert not same_parameters(first["agent"], other["agent"])
    assert torch.equal(first["buffer"].rows, second["buffer"].rows)


def test_networks_and_noise_have_the_seed_too(tmp_path):
    """In warm-up, where what environments show changes neither networks nor actions."""
    warm_up = dict(learning_starts=97)
    first, other = (run(tmp_path, str(seed), seed=seed, **warm_up) for seed in (3, 4))
    for name in ("velocity.net.hidden.weight", "critic.q1.hidden.weight"):
        weights = [result["agent"].state_dict()[name] for result in (first, other)]
        assert not torch.equal(*weights), name
    actions = [transitions(result["buffer"])[1] for result in (first, other)]
    assert not (actions[0] == actions[1]).any()
    assert abs(torch.corrcoef(actions[0].T)[0, 1]) < 0.3, "components are independent"


def test_denormal_numbers_are_flushed_to_zero(tmp_path):
    torch.set_flush_denormal(False)
    assert torch.tensor([1e-40]).mul(2).item() > 0
    run(tmp_path)
    assert torch.tensor([1e-40]).mul(2).item() == 0


# --- Evaluation ---------------------------------------------------------------------------


@pytest.fixture
def recorded_seeds(monkeypatch):
    """Of every reset of a Target environment."""
    seeds, reset = [], envs.Target.reset

    def watched(self, seed=None, options=None):
        seeds.append(seed)
        return reset(self, seed, options)

    monkeypatch.setattr(envs.Target, "reset", watched)
    return seeds


def test_every_training_episode_has_a_seed_of_its_own(tmp_path, recorded_seeds):
    for seed in (3, 4):
        run(tmp_path, f"seed{seed}", seed=seed)
    assert len(recorded_seeds) == 2 * (1 + 97 // 7) == len(set(recorded_seeds))
    assert recorded_seeds[0] == 3


def test_no_training_episode_has_a_seed_of_evaluations(
    tmp_path, monkeypatch, recorded_seeds
):
    """However many there are: here the seventh would."""
    monkeypatch.setattr(fmer, "EVAL_SEED", 5_000_017)
    run(tmp_path)
    assert len(set(recorded_seeds)) == 14 and max(recorded_seeds) < 5_000_017


def test_evaluating_never_changes_training(tmp_path):
    never = run(tmp_path, "never", eval_interval=0)
    often = run(tmp_path, "often", eval_interval=11)
    assert never["progress"].eval_returns == {}
    assert list(often["progress"].eval_returns) == [*range(0, 97, 11), 97]
    assert same_parameters(never["agent"], often["agent"])
    assert torch.equal(never["buffer"].rows, often["buffer"].rows)


def test_evaluation_repeats_exactly_and_is_the_same_for_every_seed(tmp_path):
    agent = run(tmp_path)["agent"]
    tasks = [fmer.make_env("Target-v0") for _ in range(3)]
    first, second = fmer.evaluate(agent, tasks), fmer.evaluate(agent, tasks)
    assert first == second and len({episode["return"] for episode in first}) == 3
    agent.args.seed += 1
    assert fmer.evaluate(agent, tasks) == first


def test_evaluation_episodes_have_fixed_seeds_of_their_own(tmp_path, recorded_seeds):
    agent = run(tmp_path)["agent"]
    recorded_seeds.clear()
    fmer.evaluate(agent, [fmer.make_env("Target-v0") for _ in range(3)])
    assert recorded_seeds == [fmer.EVAL_SEED + i for i in range(3)]


class Countdown(gym.Env):
    """Ends after a number of steps, and earns 1 in each."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, length):
        self.length, self.actions = length, []

    def reset(self, seed=None, options=None):
        self.steps = 0
        return np.zeros(3), {}

    def step(self, action):
        self.steps += 1
        self.actions.append(tuple(action))
        assert self.steps <= self.length, "stepped after its end"
        return np.zeros(3), 1.0, self.steps == self.length, False, {}


def test_evaluation_episodes_of_different_lengths_are_each_run_to_their_end():
    agent = fmer.Agent(3, 2, fmer.Args(**SMALL))
    tasks = [gym.wrappers.RecordEpisodeStatistics(Countdown(n)) for n in (3, 1, 5)]
    episodes = fmer.evaluate(agent, tasks)
    assert episodes == [{"return": n, "length": n} for n in (3, 1, 5)]
    actions = sum((task.unwrapped.actions for task in tasks), [])
    assert len(set(actions)) == 9, "in one state: by noise of its own in each step"


def test_an_evaluation_is_abandoned_when_the_run_is_stopped():
    agent = fmer.Agent(3, 2, fmer.Args(**SMALL))
    task = gym.wrappers.RecordEpisodeStatistics(Countdown(3))
    assert fmer.evaluate(agent, [task], []) != []
    assert fmer.evaluate(agent, [task], [15]) == []


def test_without_evaluations_no_environments_are_made_for_them(tmp_path, monkeypatch):
    made = []
    watch(monkeypatch, fmer, "make_env", made)
    run(tmp_path, total_timesteps=5, eval_interval=0)
    assert len(made) == 1


# --- Outputs ------------------------------------------------------------------------------


def test_output_files(tmp_path, capsys):
    result = run(tmp_path, eval_interval=50)
    directory = result["run_dir"]
    with open(directory / "eval.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "episode", "return", "length", "seconds"]
    expected = [(step, i) for step in (0, 50, 97) for i in range(3)]
    assert [(int(row["step"]), int(row["episode"])) for row in rows] == expected
    assert {row["length"] for row in rows} == {"7"}
    lines = capsys.readouterr()
    for step, mean in result["progress"].eval_returns.items():
        recorded = [float(row["return"]) for row in rows if int(row["step"]) == step]
        assert np.mean(recorded) == pytest.approx(mean)
        assert f"step {step}: return {mean:.1f}" in lines.out
    assert str(directory) in lines.out and "97/97" in lines.err

    events = EventAccumulator(str(directory)).Reload()
    tags = set(events.Tags()["scalars"])
    losses = "qf_loss qf_values actor_loss flow_matching entropy alpha temperature ess"
    assert tags >= {f"losses/{name}" for name in losses.split()}
    assert tags >= {"eval/return", "eval/length", "charts/SPS"}
    returns = [e.value for e in events.Scalars("eval/return")]
    assert returns == pytest.approx(list(result["progress"].eval_returns.values()))
    rewards = transitions(result["buffer"])[2][:91].view(13, 7).sum(1).tolist()
    for name, values in (("return", rewards), ("length", [7] * 13)):
        logged = events.Scalars(f"charts/episodic_{name}")
        assert [e.step for e in logged] == list(range(7, 98, 7))
        assert [e.value for e in logged] == pytest.approx(values, rel=1e-5)
    assert [e.step for e in events.Scalars("losses/qf_loss")] == [39, 52, 65, 78, 91]
    (flags,) = events.Tensors("hyperparameters/text_summary")
    (text,) = flags.tensor_proto.string_val
    fence, *lines, last = text.decode().splitlines()
    assert fence == last == "```", "a block of code in TensorBoard's Markdown"
    assert json.loads("".join(lines)) == asdict(result["agent"].args)


def test_default_run_directory_is_cleanrls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = run(tmp_path, seed=7, run_dir="")["run_dir"]
    name, exp, seed, stamp = directory.name.split("__")
    assert (name, exp, seed) == ("Target-v0", "fmer_continuous", "7") and stamp.isdigit()
    assert directory.parent == tmp_path / "runs"


def test_the_trained_policy_can_be_loaded(tmp_path):
    trained = run(tmp_path, eval_interval=97)["agent"]
    saved = torch.load(tmp_path / "run" / "policy.pt", weights_only=True)
    agent = fmer.Agent(*saved["dims"], fmer.Args(**saved["args"]))
    agent.load_state_dict(saved["agent"])
    assert same_parameters(agent, trained)


def test_a_loss_that_is_not_finite_is_named_when_it_is_logged(tmp_path):
    writer = SummaryWriter(tmp_path)
    with pytest.raises(SystemExit, match="^error: step 52: losses/ qf_loss is not finite"):
        fmer.log(writer, "losses/", {"alpha": 1.0, "qf_loss": math.nan}, 52)


# --- Command line and refusals ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_candidates": 1}, "--num-candidates"),
        ({"num_threads": 100_000}, "--num-threads"),
        ({"hidden_dim": 1_000_000}, "--hidden-dim"),
        ({"num_candidates": 3, "ess_target": 0.3}, "--num-candidates"),
        ({"alpha": math.inf}, "--alpha"),
        ({"buffer_size": 10**12, "total_timesteps": 10**12}, "needs 80000.0 GB"),
        ({"env_id": "Endless-v0"}, "max_episode_steps"),
        ({"flow_steps": 0}, "--flow-steps"),
        ({"gamma": 1.5}, "--gamma"),
        ({"gamma": math.nan}, "--gamma"),
        ({"tau": -0.1}, "--tau"),
        ({"total_timesteps": 0}, "--total-timesteps"),
        ({"learning_starts": 0}, "--learning-starts"),
        ({"batch_size": -1}, "--batch-size"),
        ({"actor_batch_size": 0}, "--actor-batch-size"),
        ({"policy_frequency": 0}, "--policy-frequency"),
        ({"policy_lr": 0.0}, "--policy-lr"),
        ({"q_lr": math.inf}, "--q-lr"),
        ({"temperature": 0.0}, "--temperature"),
        ({"alpha": -0.1, "autotune": False}, "--alpha"),
        ({"alpha": 0.0}, "--alpha"),
        ({"ess_target": 1.01}, "--ess-target"),
        ({"target_entropy_scale": 0.7}, "--target-entropy-scale"),
        ({"eval_interval": -1}, "--eval-interval"),
        ({"eval_episodes": 0}, "--eval-episodes"),
        ({"seed": -1}, "--seed"),
        ({"buffer_size": 0}, "--buffer-size"),
        ({"log_interval": 0}, "--log-interval"),
        ({"checkpoint_minutes": -1}, "--checkpoint-minutes"),
        ({"warmup_repeat": 0}, "--warmup-repeat"),
        ({"num_act_candidates": 0}, "--num-act-candidates"),
        ({"num_explore_candidates": 0}, "--num-explore-candidates"),
        ({"env_id": "NoSuchTask-v0"}, "NoSuchTask"),
        ({"env_id": "no_such_module:Task-v0"}, "no_such_module"),
        ({"env_id": "not an id"}, "not an id"),
        ({"env_id": "Refused-discrete-v0"}, "Discrete(2)"),
        ({"env_id": "Refused-matrix-v0"}, "(2, 3), float32)"),
        ({"env_id": "Refused-integer-v0"}, "int32"),
        ({"env_id": "Refused-degenerate-v0"}, "(2,), float32)"),
        ({"env_id": "Refused-unbounded-v0"}, "inf"),
        ({"env_id": "Refused-huge-v0"}, "e+38"),
        ({"env_id": "Hopper-v3"}, "Hopper-v3"),
        ({"run_dir": "long" * 100}, "cannot use"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*A Box action space m")  # what they are refused for
def test_bad_input_is_refused_before_training(tmp_path, changes, complaint):
    with pytest.raises(SystemExit) as refusal:
        run(tmp_path, **changes)
    message = str(refusal.value)
    assert message.startswith("error: ") and complaint in message and "\n" not in message
    assert not (tmp_path / "run").exists()


def test_the_buffer_is_no_larger_than_the_run_or_than_asked(tmp_path):
    assert len(run(tmp_path, buffer_size=10**12)["buffer"].rows) == 97
    assert len(run(tmp_path, "small", buffer_size=61)["buffer"].rows) == 61


def test_a_run_uses_as_many_threads_as_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    run(tmp_path, num_threads=os.cpu_count())
    assert asked == [os.cpu_count()]


def test_the_bounds_themselves_are_allowed(fmer):
    fmer.check(fmer.Args(gamma=1.0, tau=1.0))
    fmer.check(fmer.Args(gamma=0.0, seed=0, alpha=0.0, autotune=False))
    fmer.check(fmer.Args())


def test_an_error_in_the_users_own_environment_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(envs.Target, "__init__", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path)


def test_a_used_run_directory_is_refused(tmp_path):
    run(tmp_path, eval_interval=97)
    before = (tmp_path / "run" / "eval.csv").read_text()
    with pytest.raises(
        SystemExit, match="^error: .*run must exist with --resume, and not without"
    ):
        run(tmp_path)
    assert (tmp_path / "run" / "eval.csv").read_text() == before


def test_the_command_line_trains_a_mujoco_task_and_refuses_bad_flags(tmp_path):
    """One real process on Hopper-v4 at the default networks, and one refusal."""

    def command(flags):
        script = [sys.executable, str(ROOT / "fmer_continuous.py"), *shlex.split(flags)]
        return subprocess.run(script, capture_output=True, text=True, cwd=tmp_path)

    short = "--total-timesteps 110 --learning-starts 100 --eval-episodes 1 --no-cuda"
    done = command(f"{short} --exp-name idea")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"done: {tmp_path}/runs/Hopper-v4__idea__1__")
    assert "110/110" in done.stderr
    refused = command("--gamma 1.5")
    assert refused.returncode == 1 and refused.stdout == ""
    assert refused.stderr.startswith("error: --gamma") and refused.stderr.count("\n") == 1


def test_a_task_of_the_users_own_is_found_in_his_directory(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from envs import Target, register\nregister('Mine-v0', Target)\n"
    )
    flags = "--env-id mine:Mine-v0 --no-cuda --total-timesteps 9 --eval-interval 0"
    done = subprocess.run(
        [sys.executable, str(ROOT / "fmer_continuous.py"), *flags.split()],
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs").glob("mine_Mine-v0__*/checkpoint.pt"))


@pytest.mark.parametrize(
    ("env_id", "bound"), [("HalfCheetah-v5", 1.0), ("Humanoid-v4", 0.4)]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # v4
def test_mujoco_action_boxes_are_rescaled(env_id, bound):
    env = fmer.make_env(env_id)
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    assert (env.unwrapped.action_space.high == np.float32(bound)).all()
