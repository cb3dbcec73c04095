"""fmer_kitchen.py: tasks, their completions, and a short real run on FrankaKitchen-v1."""

import csv
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fmer_kitchen as fmer
from figures import kitchen_filmstrip, kitchen_random

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:.*share an object")  # the goals, which are unused


def small(**changes):
    settings = dict(
        cuda=False, total_timesteps=331, learning_starts=293, batch_size=29, actor_batch_size=23,
        hidden_dim=19, flow_steps=3, num_candidates=7, num_act_candidates=5,
        num_target_candidates=2, eval_interval=331, eval_episodes=2, log_interval=13,
        buffer_size=1009,
    )  # fmt: skip
    return fmer.Args(**(settings | changes))


class Script(gym.Env):
    """Completes tasks at given steps, with the real environment's traps: it appends to one list,
    may name a task twice, and empties the list in reset()."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, tasks, schedule):
        self.tasks, self.schedule, self.completions = tasks, schedule, []

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.completions.clear()
        return np.zeros(3), {}

    def step(self, action):
        self.steps += 1
        new = self.schedule.get(self.steps, [])
        self.completions += new
        missing = [task for task in self.tasks if task not in self.completions]
        info = {"episode_task_completions": self.completions, "tasks_to_complete": missing}
        return np.zeros(3), float(len(set(new))), not missing, self.steps == 7, info


def test_completions_are_counted_once_and_before_the_reset():
    tasks = ["kettle", "microwave", "light switch"]
    env = Script(tasks, {2: ["kettle"], 5: ["microwave", "microwave"]})
    env = gym.wrappers.RecordEpisodeStatistics(env)
    (metrics,) = fmer.evaluate(fmer.Agent(3, 2, small()), [env])
    assert metrics["tasks_completed"] == 2 and metrics["success_rate"] == pytest.approx(2 / 3)
    assert metrics["task/kettle"] == metrics["task/microwave"] == 1
    assert metrics["task/light switch"] == metrics["task/hinge cabinet"] == 0
    assert metrics["return"] == 2 and metrics["length"] == 7


def test_the_real_environment_aliases_its_list_too():
    env = fmer.make_env(["kettle"])
    env.reset(seed=1)
    info = env.step(np.zeros(9, np.float32))[4]
    info["episode_task_completions"].append("kettle")
    info = env.step(np.zeros(9, np.float32))[4] | {"episode": {"r": 1, "l": 2}}
    assert fmer.episode_metrics(info)["task/kettle"] == 1
    env.reset(seed=1)
    assert fmer.episode_metrics(info)["task/kettle"] == 0, "too late: hence before the reset"


def test_all_tasks_done_ends_the_episode():
    env = gym.wrappers.RecordEpisodeStatistics(Script(["kettle"], {3: ["kettle"]}))
    (metrics,) = fmer.evaluate(fmer.Agent(3, 2, small()), [env])
    assert metrics["length"] == 3 and metrics["success_rate"] == 1


def test_observation_is_the_59_vector_without_goals():
    env = fmer.make_env(["microwave"])
    obs, _ = env.reset(seed=5)
    raw = env.unwrapped.observation_space["observation"]
    assert obs.shape == env.observation_space.shape == raw.shape == (59,)
    assert env.action_space.shape == (9,) and (env.action_space.high == 1).all()
    assert env.spec.max_episode_steps == 280
    kept, other = obs.copy(), env.step(np.ones(9, np.float32))[0]
    assert not np.array_equal(kept, other) and np.array_equal(obs, kept), "observations are fresh"


@pytest.mark.parametrize(
    ("flags", "tasks"),
    [
        ([], fmer.TASKS),
        (["--num-tasks", "1"], ["microwave"]),
        (["--num-tasks", "4"], ["microwave", "kettle", "bottom burner", "light switch"]),
        (["--tasks", "kettle", "hinge cabinet"], ["kettle", "hinge cabinet"]),
        (["--tasks", "kettle", "kettle"], ["kettle"]),
    ],
)
def test_task_flags(flags, tasks, monkeypatch):
    chosen = []
    monkeypatch.setattr(fmer, "make_env", lambda task, **options: chosen.append(task) or 1 / 0)
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        fmer.main(tyro.cli(fmer.Args, args=flags))
    assert chosen == [tasks]


def test_an_unknown_task_is_refused(tmp_path):
    with pytest.raises(SystemExit) as refusal:
        fmer.main(small(tasks=("toaster",), run_dir=str(tmp_path / "run")))
    message = str(refusal.value)
    assert message.startswith("error: cannot make ['toaster']") and "\n" not in message
    assert not (tmp_path / "run").exists()


def test_the_command_line_names_the_seven_tasks():
    script = [sys.executable, str(ROOT / "fmer_kitchen.py"), "--tasks", "toaster"]
    refused = subprocess.run(script, capture_output=True, text=True)
    assert refused.returncode != 0 and "Traceback" not in refused.stderr
    shown = " ".join((refused.stdout + refused.stderr).replace("│", " ").split())
    assert all(task in shown for task in fmer.TASKS)


def test_a_short_run_trains_on_the_kitchen(tmp_path):
    torch.manual_seed(0)
    result = fmer.main(small(run_dir=str(tmp_path / "run"), tasks=("kettle", "microwave")))
    agent = result["agent"]
    updates = {
        name: {int(agent.optimizer.state[p]["step"]) for p in getattr(agent, name).parameters()}
        for name in ("critic", "velocity")
    }
    assert updates == {"critic": {331 - 293}, "velocity": {331 // 2 - 293 // 2}}
    assert [step for step, _ in result["eval_returns"]] == [0, 331]
    with open(tmp_path / "run" / "eval.csv") as file:
        rows = list(csv.DictReader(file))
    names = ["return", "length", "tasks_completed", "success_rate"]
    names += [f"task/{task}" for task in fmer.TASKS]
    assert list(rows[0]) == ["step", "episode", *names, "seconds"] and len(rows) == 4
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"eval/{name}" for name in names} | {f"charts/episodic_{n}" for n in names} <= tags
    assert len(events.Scalars("charts/episodic_success_rate")) == 331 // 280


def test_filmstrip_keeps_even_times_and_every_completion(tmp_path):
    env = Script(["kettle", "microwave"], {2: ["kettle"], 5: ["microwave"]})
    env.render = lambda: np.full((8, 8, 3), 40 * env.steps, np.uint8)
    film = kitchen_filmstrip.Film(gym.wrappers.RecordEpisodeStatistics(env), interval=3)
    fmer.evaluate(fmer.Agent(3, 2, small()), [film])
    shown = [(step, picture.max(), new) for step, picture, new in film.frames]
    assert shown == [(1, 40, []), (2, 80, ["kettle"]), (4, 160, []), (5, 200, ["microwave"])]
    kitchen_filmstrip.draw(film, tmp_path / "film.png")
    assert (tmp_path / "film.png").stat().st_size > 3_000


def test_random_actions_go_through_the_same_evaluation(tmp_path):
    kitchen_random.main(kitchen_random.Args(seeds=1, eval_episodes=1, results=tmp_path))
    for number in (1, 4, 7):
        with open(tmp_path / f"FrankaKitchen-v1-{number}" / "random" / "seed_1.csv") as file:
            (row,) = csv.DictReader(file)
        assert row["length"] == "280" and float(row["success_rate"]) <= 1
