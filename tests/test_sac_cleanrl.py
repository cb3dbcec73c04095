"""figures/sac_cleanrl.py around a script with the interface of CleanRL's, which draws
random actions and gives its actor another mean after each step."""

import csv

import numpy as np
import pytest
import torch

import envs
import fmer_continuous
from figures import sac_cleanrl

SCRIPT = """
import sys
import gymnasium as gym
import numpy as np
import torch
from cleanrl_utils import WIDTH

class Actor(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(WIDTH))
    def forward(self, x):
        return self.mean.expand(len(x), -1), None

class SoftQNetwork(torch.nn.Module):
    def forward(self, x, a):
        return x

if __name__ == "__main__":
    flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    torch.manual_seed(int(flags["--seed"]))
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(flags["--env-id"]))
    envs = gym.vector.SyncVectorEnv([lambda: env])
    envs.single_action_space.seed(int(flags["--seed"]))
    actor, critic = Actor(), SoftQNetwork()
    obs, _ = envs.reset(seed=int(flags["--seed"]))
    seen, means, ends = [obs[0]], [actor.mean.tolist()], []
    for step in range(int(flags["--total-timesteps"])):
        actions = np.array([envs.single_action_space.sample()])
        obs, _, terminations, truncations, infos = envs.step(actions)
        if "final_info" in infos:
            (info,) = infos["final_info"]
            last = infos["final_observation"][0]
            ends.append((info["episode"]["r"].item(), info["episode"]["l"].item(), last))
        seen.append(obs[0])
        actor.mean.data += 0.1 * torch.randn(WIDTH)
        means.append(actor.mean.tolist())
    scaled = critic(torch.Tensor(obs), torch.Tensor(actions))
    end = dict(seen=seen, means=means, ends=ends, scaled=scaled, gamma=flags["--gamma"])
    torch.save(end, "end.pt")
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs SCRIPT in tmp_path/<name>. Returns what it saved and the rows of a CSV."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "cleanrl" / "cleanrl" / "sac.py"
    utils = tmp_path / "cleanrl" / "cleanrl_utils.py"
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT)

    def runs(name="run", width=2, file="eval.csv", **changes):
        utils.write_text(f"WIDTH = {width}")
        monkeypatch.delitem(sac_cleanrl.sys.modules, "cleanrl_utils", raising=False)
        monkeypatch.chdir(tmp_path)
        options = dict(eval_interval=20, eval_episodes=3, flags="--gamma 0.97") | changes
        sac_cleanrl.main(sac_cleanrl.Args(script, tmp_path / name, **options))
        with open(tmp_path / name / file, newline="") as content:
            rows = list(csv.DictReader(content))
        return torch.load(tmp_path / name / "end.pt", weights_only=False), rows

    return runs


def episode(seed, mean):
    """The return of an episode of Target that acts by 3·tanh(mean)."""
    env = envs.Target()
    env.reset(seed=seed)
    action = 3 * np.tanh(np.array(mean, np.float32))
    return sum(env.step(action)[1] for _ in range(7))


def test_evaluates_by_the_mean_after_so_many_updates(run):
    end, rows = run(env_id="Target-v0", seed=5, total_timesteps=47)
    assert list(rows[0]) == ["step", "episode", "return", "length", "seconds"]
    places = [(int(row["step"]), int(row["episode"])) for row in rows]
    assert places == [(step, i) for step in (0, 20, 40, 47) for i in range(3)]
    for (step, i), row in zip(places, rows, strict=True):
        expected = episode(fmer_continuous.EVAL_SEED + i, end["means"][step])
        assert float(row["return"]) == pytest.approx(expected, rel=1e-5)
        assert row["length"] == "7"
    assert end["gamma"] == "0.97"


def test_training_is_what_it_is_without_evaluations(run):
    often, _ = run("often", env_id="Target-v0", total_timesteps=47)
    never, rows = run("never", env_id="Target-v0", total_timesteps=47, eval_interval=10**6)
    assert {row["step"] for row in rows} == {"0", "47"}
    assert often["means"] == never["means"] and len(often["means"]) == 48
    np.testing.assert_array_equal(often["seen"], never["seen"])


def test_the_script_sees_episodes_end_as_in_gymnasium_0_29(run):
    """`obs` is of the next episode, final_observation of the one that ended."""
    end, _ = run(env_id="Target-v0", seed=5, total_timesteps=17)
    env, rewards = envs.Target(), []
    seen = [env.reset(seed=5)[0]]
    actions = envs.Target().action_space
    actions.seed(5)
    for _ in range(7):
        obs, reward, *_ = env.step(actions.sample())
        seen.append(obs)
        rewards.append(reward)
    np.testing.assert_array_equal(end["seen"][:7], seen[:7])
    assert [length for _, length, _ in end["ends"]] == [7, 7]
    total, _, last = end["ends"][0]
    assert total == pytest.approx(sum(rewards), rel=1e-5)
    np.testing.assert_array_equal(last, seen[7])
    assert not np.array_equal(end["seen"][7], last)


def test_random_actions_are_repeated_up_to_the_end_of_their_episode(run, monkeypatch):
    """Target is made anew for each evaluation: its training actions are those in the box
    of a script that draws nothing but random ones. Episodes of 7 steps, actions for 3."""
    made, make = [], envs.Target.__init__
    monkeypatch.setattr(
        envs.Target, "__init__", lambda self: (make(self), made.append(self))[0]
    )
    run(env_id="Target-v0", seed=5, total_timesteps=17, warmup_repeat=3)
    drawn = envs.Target().action_space
    drawn.seed(5)
    episode = [0, 0, 0, 1, 1, 1, 2]
    actions = np.array([drawn.sample() for _ in range(7)])
    expected = actions[episode + [3 + i for i in episode] + [6] * 3]
    (trained,) = [env.actions for env in made if len(env.actions) == 17]
    np.testing.assert_array_equal(trained, expected)


def test_in_the_kitchen_networks_see_observations_on_one_scale(run):
    options = dict(tasks=("kettle",), total_timesteps=283, eval_interval=10**6, seed=3)
    end, rows = run(width=9, file="train.csv", eval_episodes=1, **options)
    s = np.array(end["seen"][:-1])  # the last one has not been acted on
    scaled = (end["seen"][-1] - s.mean(0)) / (s.std(0) + 0.01)
    expected = scaled.clip(-10, 10)
    np.testing.assert_allclose(end["scaled"][0], expected, rtol=1e-4, atol=1e-4)
    assert rows == [dict(step="280", tasks_completed="0", length="280", q_bias="nan")]


def test_refusals(run, tmp_path):
    with pytest.raises(SystemExit, match="^error: no script "):
        sac_cleanrl.main(sac_cleanrl.Args(tmp_path / "none.py", tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit, match="^error: .*cleanrl is there already"):
        run("cleanrl")
