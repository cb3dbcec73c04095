"""Tiny environments that make one property visible each, and sizes of runs of seconds."""

import os
import time

import gymnasium as gym
import numpy as np
import pytest
import torch

SMALL = dict(
    cuda=False,
    total_timesteps=97,
    learning_starts=31,
    batch_size=29,
    actor_batch_size=23,
    hidden_dim=19,
    flow_steps=3,
    num_candidates=7,
    num_act_candidates=5,
    num_explore_candidates=2,
    eval_interval=0,
    eval_episodes=3,
    log_interval=13,
    buffer_size=1009,
    normalize_observations=False,
)  # the real algorithm at prime sizes
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Target(gym.Env):
    """Reward −‖a − 3 tanh(obs)‖², a in [-3,3]². After 7 steps truncated, or terminated."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(self, terminate=False, render_mode=None):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = gym.spaces.Box(-3.0, 3.0, (2,), np.float32)
        self.terminate, self.render_mode, self.actions = terminate, render_mode, []

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.obs = 0, self.np_random.normal(size=3)
        return self.obs, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.actions.append(action)
        reward = -np.square(action - 3 * np.tanh(self.obs[:2])).sum()
        self.steps, self.obs = self.steps + 1, self.np_random.normal(size=3)
        end = self.steps == 7
        return self.obs, reward, end and self.terminate, end and not self.terminate, {}

    def render(self):
        return np.full((32, 32, 3), 40 * self.steps % 256, np.uint8)


class Constant(Target):
    """Reward 1, whatever is done."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, 1.0, *rest


class Aliasing(Target):
    """Returns one array again and again, changed in place, and its rewards as arrays."""

    def reset(self, seed=None, options=None):
        fresh, info = super().reset(seed=seed)
        self.shared = fresh.copy()
        return self.shared, info

    def step(self, action):
        self.shared[:], reward, *rest = super().step(action)
        return self.shared, np.array(reward), *rest


class Careful(Target):
    """Takes only what is in its box, which is not symmetric."""

    def __init__(self):
        super().__init__()
        low, high = np.array([-0.1, -1.2]), np.array([0.2, 0.6])
        self.action_space = gym.spaces.Box(np.float32(low), np.float32(high))

    def step(self, action):
        assert self.action_space.contains(action), action
        return super().step(action)


class OneElement(Target):
    """Rewards as arrays of one element."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, np.array([reward]), *rest


class Stuck(Target):
    """Its third step never returns, and says so."""

    def step(self, action):
        if self.steps == 2:
            print("stuck", flush=True)
            while True:
                time.sleep(0.1)
        return super().step(action)


class Moving(Target):
    """Changes the working directory, as wrappers of simulators do."""

    def reset(self, seed=None, options=None):
        os.chdir("/")
        return super().reset(seed=seed)


class ByChance(Target):
    """Ends when it likes to, and wants a reset then."""

    length = 7

    def step(self, action):
        assert self.steps < self.length
        obs, reward, *_ = super().step(action)
        return obs, reward, self.steps == self.length, False, {}


class OtherSpaces(Target):
    """A task that the script must refuse."""

    def __init__(self, which="discrete", render_mode=None):
        super().__init__()
        if which == "discrete":
            self.action_space = gym.spaces.Discrete(2)
        elif which == "matrix":
            self.action_space = gym.spaces.Box(-1.0, 1.0, (2, 3), np.float32)
        elif which == "unbounded":
            self.action_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        elif which == "huge":  # its width is infinite in single precision
            self.action_space = gym.spaces.Box(-3e38, 3e38, (2,), np.float32)
        elif which == "integer":
            self.action_space = gym.spaces.Box(0, 5, (2,), np.int32)
        elif which == "degenerate":
            self.action_space = gym.spaces.Box(0.0, 0.0, (2,), np.float32)


class Nested(Target):
    """Observations in a dictionary."""

    def __init__(self, render_mode=None):
        super().__init__()
        space = self.observation_space
        self.observation_space = gym.spaces.Dict({"x": space, "y": space})

    def reset(self, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return {"x": obs, "y": -obs}, info

    def step(self, action):
        obs, *rest = super().step(action)
        return {"x": obs, "y": -obs}, *rest


class CompletesTasks(gym.Env):
    """Completes tasks at given steps, with FrankaKitchen's traps: it appends to one list,
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


def register(name, task, **options):
    gym.register(name, task, max_episode_steps=1000, **options)


register("Target-v0", Target)
register("Nested-v0", Nested)
register("Aliasing-v0", Aliasing, disable_env_checker=True)
register("OneElement-v0", OneElement, disable_env_checker=True)
register("Careful-v0", Careful)
register("Stuck-v0", Stuck)
register("Moving-v0", Moving)
register("ByChance-v0", ByChance)
register("Terminating-v0", Target, kwargs={"terminate": True})
register("Constant-v0", Constant)
register("ConstantTerminating-v0", Constant, kwargs={"terminate": True})
gym.register("Endless-v0", Target)
for which in ("discrete", "matrix", "unbounded", "huge", "integer", "degenerate"):
    register(f"Refused-{which}-v0", OtherSpaces, kwargs={"which": which})


def at_step(monkeypatch, fmer, step, action):
    """Calls action() when the transition of that step is stored."""
    add = fmer.ReplayBuffer.add

    def watched(self, *transition):
        add(self, *transition)
        if self.num_added == step:
            action()

    monkeypatch.setattr(fmer.ReplayBuffer, "add", watched)
