"""figures/advantages.py: rollouts against plain loops, statistics against known truth."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import fmer_continuous as fmer
from envs import SMALL
from figures import advantages

TASK = "InvertedPendulum-v5"  # terminates when the pole leans


@pytest.fixture
def agent():
    torch.manual_seed(7)
    return fmer.Agent(4, 1, fmer.Args(**SMALL | dict(env_id=TASK, gamma=0.9)))


def test_what_is_known_of_the_truth_is_found():
    rng = np.random.default_rng(5)
    true = rng.normal(0, 0.5, (397, 11))
    q = 100 + 0.6 * true + rng.normal(0, 0.4, true.shape)  # correlation 0.6
    returns = 7 + true[..., None] + rng.normal(0, 2, (*true.shape, 31))
    row = advantages.compare(q, returns)
    deviation, by_q, correlation, within, gain, error, promised = row
    shrunk = np.sqrt(10 / 11)  # each state's mean of 11 is taken off
    assert deviation == pytest.approx(0.5 * shrunk, rel=0.05)
    assert by_q == pytest.approx(0.5 * shrunk, rel=0.05)
    assert correlation == pytest.approx(0.6, abs=0.05)
    assert within == pytest.approx(np.sqrt((1 + 0.6**2) / (397 * 11)), rel=0.5)
    best = np.arange(397), q.argmax(1)
    centred = true - true.mean(1, keepdims=True)
    assert gain == pytest.approx(centred[best].mean(), abs=4 * error)
    assert promised == pytest.approx((q - q.mean(1, keepdims=True))[best].mean())


def test_noise_alone_has_no_advantage():
    rng = np.random.default_rng(3)
    returns = rng.normal(0, 1, (397, 11, 31))
    columns = advantages.compare(rng.normal(size=(397, 11)), returns)
    deviation, *_, gain, error, _ = columns
    assert deviation < 0.05 and abs(gain) < 4 * error


def test_a_snapshot_brings_the_same_future_back(agent):
    env = fmer.make_env("Hopper-v5")
    env.reset(seed=3)
    rng = np.random.default_rng(3)
    actions = rng.uniform(-1, 1, (13, 3)).astype(np.float32)
    for action in actions:
        env.step(action)
    state = advantages.snapshot(env)
    futures = []
    for _ in range(2):
        advantages.restore(env, state)
        futures.append(np.stack([env.unwrapped.step(action)[0] for action in actions]))
    np.testing.assert_array_equal(*futures)


def test_states_are_those_of_the_episodes_that_act(agent):
    env = fmer.make_env(TASK)
    states, obs = advantages.visited(agent, env, 17, 2)
    assert obs.shape == (17, 4)
    for state, row in zip(states, obs, strict=True):
        np.testing.assert_array_equal(
            np.concatenate(state[:2]), row
        )  # positions, velocities
    assert len(np.unique(obs, axis=0)) == 17


def test_q_that_knows_the_returns_has_correlation_one(agent, tmp_path, monkeypatch):
    """γ = 0, H = 1: the return is the reward of the first step, s_0 + 3 a² + noise."""
    env = fmer.make_env(TASK)
    rng, taken, step = np.random.default_rng(3), [], env.unwrapped.step

    def rewarded(scaled):
        before = advantages.snapshot(env)[0][0]
        taken.append(scaled)
        obs, _, *rest = step(scaled)
        return obs, before + 3 * (scaled[0] / 3) ** 2 + rng.normal(0, 0.1), *rest

    class Knows(torch.nn.Module):
        def forward(self, s, a):
            return torch.stack([s[..., 0] + 3 * a[..., 0] ** 2 + x for x in (-1, 1)])

    agent.critic, agent.args.gamma = Knows(), 0.0
    monkeypatch.setattr(env.unwrapped, "step", rewarded)
    monkeypatch.setattr(advantages, "load", lambda run_dir: (fmer, agent, env))
    args = advantages.Args((tmp_path,), states=13, candidates=5, rollouts=7, horizon=1)
    deviation, by_q, correlation, *_ = advantages.measure(tmp_path, args)
    assert correlation == pytest.approx(1, abs=0.05)
    assert deviation == pytest.approx(by_q, rel=0.1) and deviation > 0.3
    assert len(taken) > 13 * 5 * 7


def test_a_rollout_is_a_plain_episode_discounted_with_the_critics_at_its_end(agent):
    """A policy that does nothing, critics that say 3 and 5: from upright it survives 7
    steps, from a lean it falls."""
    agent.sample = lambda s, number: torch.zeros(2, len(s), number, 1)
    for q, value in ((agent.target_critic.q1, 3.0), (agent.target_critic.q2, 5.0)):
        torch.nn.init.zeros_(q.out.weight)
        torch.nn.init.constant_(q.out.bias, value)
    env = fmer.make_env(TASK)
    env.reset(seed=0)
    still = [np.zeros(2), np.zeros(2), np.zeros(2)]
    lean = [np.array([0, 0.19]), np.array([0, 1.0]), np.zeros(2)]
    first = np.array([[0.5], [0.0]], np.float32)
    found = advantages.rollouts(agent, env, [still, lean], first, 7)

    plain = gym.make(TASK).unwrapped
    for start, action, total in zip([still, lean], first, found, strict=True):
        plain.reset(seed=0)
        plain.set_state(*start[:2])
        plain.data.qacc_warmstart[:] = 0
        expected, terminated = 0.0, False
        for h in range(7):
            if not terminated:
                scaled = 3 * action if h == 0 else np.zeros(1)  # the box is [-3, 3]
                _, reward, terminated, *_ = plain.step(scaled)
                expected += 0.9**h * reward
        expected += 0.0 if terminated else 0.9**7 * 3
        assert total == pytest.approx(expected, rel=1e-6)
    assert found[1] < 3 < found[0]  # it fell, it did not
