"""The multi-goal task against its definition, and its pictures from a tiny training."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
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


def test_pictures_and_table_of_a_tiny_training(tmp_path, capsys):
    sizes = dict(learning_starts=129, learning_steps=64, episodes=3, updates=2)
    multigoal.main(multigoal.Args(out=tmp_path, **sizes))
    pictures = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    names = {"weighted_update.png", "multigoal_policy.png", "multigoal_strategy.png"}
    assert set(pictures) == names and min(pictures.values()) > 10_000
    assert "| FMER | 1 |" in capsys.readouterr().out
