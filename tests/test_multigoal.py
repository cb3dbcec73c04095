"""The multi-goal task against its definition; its table and pictures from a tiny run."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import fmer_continuous as fmer
from figures import multigoal

ID = "figures.multigoal:MultiGoal-v0"


@pytest.mark.filterwarnings("ignore")
def test_gymnasium_accepts_the_environment():
    check_env(gym.make(ID).unwrapped, skip_render_check=True)


def test_an_episode_starts_at_the_origin_and_is_truncated_after_30_steps():
    env = gym.make(ID)
    starts = np.stack([env.reset(seed=k)[0] for k in range(499)])
    assert starts.mean() == pytest.approx(0, abs=0.02)
    assert starts.std() == pytest.approx(0.1, rel=0.1)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(30)]
    assert ends == [(False, False)] * 29 + [(False, True)]


@pytest.mark.parametrize(
    ("s", "a", "expected_s", "reached"),
    [
        ([1.0, 2.0], [0.5, -0.25], [1.5, 1.75], False),
        ([6.5, -6.8], [3.0, -0.9], [7.0, -7.0], False),  # both clipped, the action first
        ([4.0, 0.2], [0.5, 0.0], [4.5, 0.2], True),
    ],
)
def test_a_step_is_the_definition(s, a, expected_s, reached):
    env = gym.make(ID, disable_env_checker=True)
    env.reset(seed=0)
    env.unwrapped.s = np.array(s)
    next_s, reward, terminated, truncated, _ = env.step(np.array(a))
    np.testing.assert_allclose(next_s, expected_s)
    goals = [(5, 0), (-5, 0), (0, 5), (0, -5)]
    nearest = min(np.square(next_s - goal).sum() for goal in goals)
    cost = 30 * np.square(np.clip(a, -1, 1)).sum() + nearest
    assert reward == pytest.approx(0.1 * (-cost + 10 * reached))
    assert terminated == reached and not truncated


def test_goal_shares_of_a_scripted_policy():
    """Of ten episodes five walk right and three up; two stay. The table says so."""

    def act(s):
        directions = np.array([(1, 0)] * 5 + [(0, 1)] * 3 + [(0, 0)] * 2, float)
        return directions

    shares = multigoal.goal_shares(act, 10)
    assert list(shares) == [0.5, 0.3, 0, 0]
    last = multigoal.table({"scripted": [shares, shares]}).splitlines()[-1]
    assert last == "| scripted | 2 | 50.0 % | 30.0 % | 0.0 % | 0.0 % | 20.0 % | 2.0 |"


def test_one_improvement_step_prefers_the_better_modes():
    """At first the quadrants are equal, then they are ordered as their modes' heights."""
    torch.set_num_threads(1)
    agent = multigoal.first_agent()
    lead = []
    for updates in (0, 150):
        multigoal.improve_once(agent, updates)
        a = multigoal.sample_path(agent, torch.zeros(1, 2), 4000)[-1, 0]
        shares = [(a * m > 0).all(-1).float().mean() for m in multigoal.Peaks.m]
        lead.append(shares[0] + shares[1] - shares[2] - shares[3])
    assert abs(lead[0]) < 0.05 and 0.1 < lead[1] < 0.6


def test_the_script_trains_on_it_by_its_id(tmp_path):
    small = dict(total_timesteps=60, learning_starts=40, hidden_dim=13, batch_size=17)
    small |= dict(actor_batch_size=11, eval_interval=60, eval_episodes=2, cuda=False)
    result = fmer.main(fmer.Args(env_id=ID, run_dir=str(tmp_path / "run"), **small))
    assert list(result["progress"].eval_returns) == [0, 60]


def test_table_and_pictures_of_a_tiny_training(tmp_path, monkeypatch, capsys):
    sizes = dict(learning_starts=129, learning_steps=64, episodes=3, updates=2)
    multigoal.main(multigoal.Args(out=tmp_path / "new", **sizes))
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("| variant | seeds |"), "nothing else on stdout"
    names = [row.split(" | ")[0] for row in rows]
    assert names == ["| FMER", "| no entropy term", "| greedy"]
    written = {path.name: path.stat().st_size for path in tmp_path.glob("new/*")}
    pictures = ["multigoal_policy.png", "multigoal_strategy.png", "weighted_update.png"]
    assert sorted(written) == pictures and min(written.values()) > 10_000

    monkeypatch.chdir(tmp_path / "new")
    monkeypatch.setattr(multigoal, "train", lambda *a, **changes: multigoal.first_agent())
    multigoal.main(multigoal.Args(episodes=3))
    assert len(list(tmp_path.rglob("*.png"))) == 3, "none without --out"
