"""fmer_kitchen.py's own: tasks, their completions, and a short run on FrankaKitchen-v1."""

import csv
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fmer_kitchen as fmer
from envs import SMALL, CompletesTasks

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*share an object"
)  # goals, which are unused


def episode(tasks, schedule):
    """The metrics of an evaluation in which these tasks are completed at these steps."""
    env = gym.wrappers.RecordEpisodeStatistics(CompletesTasks(tasks, schedule))
    (metrics,) = fmer.evaluate(fmer.Agent(3, 2, fmer.Args(**SMALL)), [env])
    return metrics


def test_completions_are_counted_once_and_before_the_reset():
    tasks = ["kettle", "microwave", "light switch"]
    metrics = episode(tasks, {2: ["kettle"], 5: ["microwave", "microwave"]})
    assert metrics["tasks_completed"] == 2
    assert metrics["success_rate"] == pytest.approx(2 / 3)
    assert metrics["task/kettle"] == metrics["task/microwave"] == 1
    assert metrics["task/light switch"] == metrics["task/hinge cabinet"] == 0
    assert metrics["return"] == 2 and metrics["length"] == 7


def test_all_tasks_done_ends_the_episode():
    metrics = episode(["kettle"], {3: ["kettle"]})
    assert metrics["length"] == 3 and metrics["success_rate"] == 1


def test_the_real_environment_empties_its_list_in_reset():
    env = fmer.make_env(["kettle"])
    env.reset(seed=1)
    info = env.step(np.zeros(9, np.float32))[4]
    info["episode_task_completions"].append("kettle")
    info = env.step(np.zeros(9, np.float32))[4] | {"episode": {"r": 1, "l": 2}}
    assert fmer.episode_metrics(info)["task/kettle"] == 1
    env.reset(seed=1)
    assert fmer.episode_metrics(info)["task/kettle"] == 0, "too late: hence before it"


def test_a_task_is_rewarded_once_and_the_last_one_ends_the_episode():
    """Completed by putting its goal where its object is."""
    env, seen = fmer.make_env(["kettle", "microwave"]), []
    env.reset(seed=1)
    kitchen = env.unwrapped
    for task in (None, "kettle", None, "microwave"):
        if task:
            state = kitchen._get_obs(kitchen.robot_env._get_obs())
            kitchen.goal[task] = state["achieved_goal"][task]
        seen.append(env.step(np.zeros(9, np.float32))[1:3])
    assert seen == [(0, False), (1, False), (0, False), (1, True)]


def test_observation_is_the_59_vector_without_goals():
    env = fmer.make_env(["microwave"])
    obs, _ = env.reset(seed=5)
    raw = env.unwrapped.observation_space["observation"]
    assert obs.shape == env.observation_space.shape == raw.shape == (59,)
    assert env.action_space.shape == (9,) and (env.action_space.high == 1).all()
    assert env.spec.max_episode_steps == 280
    kept, other = obs.copy(), env.step(np.ones(9, np.float32))[0]
    assert not np.array_equal(kept, other) and np.array_equal(obs, kept), "a fresh array"


class Chosen(Exception):
    """Raised in place of making the environment."""


@pytest.mark.parametrize(
    ("flags", "tasks"),
    [
        ([], fmer.TASKS),
        (["--num-tasks", "1"], ["microwave"]),
        (["--num-tasks", "4"], ["microwave", "kettle", "bottom burner", "light switch"]),
        (["--num-tasks", "7"], fmer.TASKS),
        (["--tasks", "kettle", "hinge cabinet"], ["kettle", "hinge cabinet"]),
        (["--tasks", "kettle", "kettle"], ["kettle"]),
    ],
)
def test_task_flags(flags, tasks, monkeypatch):
    def make_env(task, **options):
        raise Chosen(task)

    monkeypatch.setattr(fmer, "make_env", make_env)
    with pytest.raises(Chosen) as chosen:
        fmer.main(tyro.cli(fmer.Args, args=flags))
    assert chosen.value.args == (tasks,) and len(set(fmer.TASKS)) == 7


def test_the_command_line_names_the_seven_tasks_and_refuses_others():
    script = [sys.executable, str(ROOT / "fmer_kitchen.py"), "--tasks", "toaster"]
    refused = subprocess.run(script, capture_output=True, text=True)
    assert refused.returncode != 0 and "Traceback" not in refused.stderr
    shown = " ".join((refused.stdout + refused.stderr).replace("│", " ").split())
    assert all(task in shown for task in fmer.TASKS)


def test_a_short_run_trains_on_the_kitchen(tmp_path):
    length = dict(
        total_timesteps=311, learning_starts=283, eval_interval=311, eval_episodes=1
    )
    settings = SMALL | length | dict(run_dir=str(tmp_path / "run"))
    result = fmer.main(fmer.Args(**settings, tasks=["kettle", "microwave"]))
    for name, updates in (("q_optimizer", 28), ("policy_optimizer", 155 - 141)):
        states = getattr(result["agent"], name).state.values()
        assert {int(state["step"]) for state in states} == {updates}
    assert list(result["progress"].eval_returns) == [0, 311]
    with open(tmp_path / "run" / "eval.csv") as file:
        rows = list(csv.DictReader(file))
    names = ["return", "length", "tasks_completed", "success_rate"]
    names += [f"task/{task}" for task in fmer.TASKS]
    assert list(rows[0]) == ["step", "episode", *names, "seconds"] and len(rows) == 2
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {f"eval/{name}" for name in names}
    assert tags >= {f"charts/episodic_{name}" for name in names}
    assert len(events.Scalars("charts/episodic_success_rate")) == 1
