"""The multi-goal task against its definition, and its pictures from a tiny training."""

import warnings
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import fmer_continuous as fmer
from figures import multigoal

ID = "figures.multigoal:MultiGoal-v0"


def test_gymnasium_accepts_the_environment():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(gym.make(ID).unwrapped, skip_render_check=True)


def test_a_step_is_the_definition():
    env = gym.make(ID, disable_env_checker=True)
    starts = np.stack([env.reset(seed=k)[0] for k in range(499)])
    assert starts.mean() == pytest.approx(0, abs=0.02)
    assert starts.std() == pytest.approx(0.1, rel=0.1)
    for s, a, expected_s, reached in (
        ([1.0, 2.0], [0.5, -0.25], [1.5, 1.75], False),
        ([6.5, -6.8], [3.0, -0.9], [7.0, -7.0], False),  # both clipped: the action to 1 first
        ([4.0, 0.2], [0.5, 0.0], [4.5, 0.2], True),
    ):
        env.reset(seed=0)
        env.unwrapped.s = np.array(s)
        next_s, reward, terminated, truncated, _ = env.step(np.array(a))
        np.testing.assert_allclose(next_s, expected_s)
        goals = [(5, 0), (-5, 0), (0, 5), (0, -5)]
        nearest = min(np.square(next_s - g).sum() for g in goals)
        cost = 30 * np.square(np.clip(a, -1, 1)).sum() + nearest
        assert reward == pytest.approx(0.1 * (-cost + 10 * reached))
        assert terminated == reached and not truncated


def test_an_episode_is_truncated_after_30_steps():
    env = gym.make(ID)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(30)]
    assert ends == [(False, False)] * 29 + [(False, True)]


def test_goal_shares_of_a_scripted_policy():
    """Half of the episodes walk right, the others up: shares of one half each."""

    def act(s):
        right = np.arange(len(s)) % 2 == 0
        return np.where(right[:, None], [1.0, 0.0], [0.0, 1.0])

    shares = multigoal.goal_shares(act, 20)
    assert sorted(shares) == [0, 0, 0.5, 0.5]
    assert "| two | 1 |" in multigoal.table({"two": [shares]})


def test_the_script_trains_on_it_by_its_id(tmp_path):
    small = dict(total_timesteps=60, learning_starts=40, hidden_dim=13, batch_size=17)
    small |= dict(actor_batch_size=11, eval_interval=60, eval_episodes=2, cuda=False)
    result = fmer.main(fmer.Args(env_id=ID, run_dir=str(tmp_path / "run"), **small))
    assert [step for step, _ in result["eval_returns"]] == [0, 60]


def test_log_density_of_a_linear_field():
    """x_1 = (1 + h·c)^K x_0 is Gaussian: π is its density under tanh, by torch.distributions."""
    torch.manual_seed(0)
    c = torch.tensor([0.7, -0.4])
    path = fmer.sample_path(lambda s, x, t: c * x, torch.zeros(3, 2), 5, 7, 2)
    log_p = multigoal.log_density(lambda s, x, t: c * x, torch.zeros(3, 2), path)
    gaussian = torch.distributions.Normal(torch.zeros(2), (1 + c / 7) ** 7)
    squash = torch.distributions.TanhTransform(cache_size=1)
    policy = torch.distributions.TransformedDistribution(gaussian, squash)
    assert log_p.shape == (3, 5)
    torch.testing.assert_close(log_p, policy.log_prob(path[-1].tanh()).sum(-1), atol=1e-3, rtol=0)


def test_soft_advantages_weigh_by_q_minus_alpha_log_density():
    """At first v = 0, so that π = tanh N(0,I): its density is known for every candidate."""
    torch.manual_seed(0)
    agent = multigoal.SoftAdvantage(2, 2, fmer.Args(**multigoal.SMALL | dict(alpha=0.25)))
    paths, seen, sample, weigh = [], [], fmer.sample_path, fmer.candidate_weights
    before = {name: p.clone() for name, p in agent.state_dict().items()}
    s = torch.randn(64, 2)
    with (
        mock.patch.object(
            fmer, "sample_path", lambda *a, **k: paths.append(sample(*a, **k)) or paths[0]
        ),
        mock.patch.object(fmer, "candidate_weights", lambda *a: seen.append(a) or weigh(*a)),
    ):
        agent.update_actor(s)
    (soft_q, temperature), a = seen[0], paths[0][-1].tanh()
    assert soft_q.shape == (64, 16) and temperature == 1, "the larger of α and T"
    normal, squash = torch.distributions.Normal(0.0, 1.0), torch.distributions.TanhTransform(1)
    policy = torch.distributions.TransformedDistribution(normal, squash)
    critic = {n.removeprefix("critic."): p for n, p in before.items() if n.startswith("critic.")}
    agent.critic.load_state_dict(critic)
    q = agent.critic(s.unsqueeze(1), a).amin(0) - 0.25 * policy.log_prob(a).sum(-1)
    torch.testing.assert_close(soft_q, q, atol=1e-3, rtol=1e-3)
    moved = {
        n.split(".")[0] for n, p in agent.state_dict().items() if not torch.equal(p, before[n])
    }
    assert moved == {"velocity", "log_alpha", "log_temperature"}


def test_pictures_and_table_of_a_tiny_training(tmp_path, capsys):
    sizes = dict(learning_starts=129, learning_steps=64, episodes=3, updates=2)
    multigoal.main(multigoal.Args(out=tmp_path, **sizes))
    pictures = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    names = {"weighted_update.png", "multigoal_policy.png", "multigoal_strategy.png"}
    assert set(pictures) == names and min(pictures.values()) > 10_000
    assert "| FMER | 1 |" in capsys.readouterr().out
