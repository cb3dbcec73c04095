"""The 2-D multi-goal task (Haarnoja et al. 2017), what FMER learns on it, and three pictures of it.

s' = clip(s + clip(a, ±1), ±7): a point that may walk to any of four equally good goals, so the best
policy has four modes. Run this file for the pictures and a table, or train on the task by

    python fmer_continuous.py --env-id figures.multigoal:MultiGoal-v0
"""

import copy
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
import fmer_continuous as fmer
from figures.learning_curves import COLOURS, STYLE

GOALS = {"right": (5, 0), "up": (0, 5), "left": (-5, 0), "down": (0, -5)}
HORIZON = 30
SMALL = dict(env_id="MultiGoal-v0", cuda=False, eval_interval=0, hidden_dim=64, flow_steps=5)
SMALL |= dict(batch_size=128, actor_batch_size=64, buffer_size=100_000)  # minutes on one core
GREEDY = dict(autotune_temperature=False, temperature=1e-6)  # one-hot weights: the best candidate
VARIANTS = {"FMER": {}, "no entropy term": dict(autotune=False, alpha=0.0), "greedy": GREEDY}
STYLE = STYLE | {"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}
FIELD = dict(cmap="Blues", alpha=0.75)  # contours: the darker, the better
ORANGE = COLOURS[1]


@dataclass
class Args:
    """Train FMER on the multi-goal task; draw its policy; count the goals that it reaches."""

    out: Path = Path("figures")  # folder of the three pictures
    learning_starts: int = 10_000  # steps of uniform random actions before learning
    learning_steps: int = 20_000  # steps of learning after them
    num_seeds: int = 1  # seeds of each row of the table; the pictures show the first
    episodes: int = 400  # episodes from the origin for each run in the table
    updates: int = 1_000  # policy updates on the known landscape of weighted_update.png


def landscape(s: np.ndarray) -> np.ndarray:
    """−min_g ‖s − g‖²: (…,2) -> (…)."""
    return -np.square(s[..., None, :] - np.array([*GOALS.values()])).sum(-1).min(-1)


def transition(s: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """s' = clip(s + a, ±7), r = 0.1·(−30‖a‖² − min_g‖s' − g‖² + 10·[reached]), a clipped to ±1.

    reached: a goal is nearer to s' than 1. The factor 0.1 is the learner's usual scale of rewards.
    s, a (…,2) -> s' (…,2), r (…), reached (…).
    """
    a = np.clip(a, -1, 1)
    s = np.clip(s + a, -7, 7)
    reached = landscape(s) > -1
    return s, 0.1 * (-30 * np.square(a).sum(-1) + landscape(s) + 10 * reached), reached


class MultiGoal(gym.Env):
    """s_0 ~ N(0, 0.1²·I); then `transition`, which ends an episode at a goal, or after 30 steps."""

    def __init__(self, render_mode: str | None = None):
        self.observation_space = gym.spaces.Box(-7, 7, (2,), np.float64)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.render_mode = render_mode

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.s = 0.1 * self.np_random.standard_normal(2)
        return self.s, {}

    def step(self, action):
        self.s, reward, reached = transition(self.s, action)
        return self.s, float(reward), bool(reached), False, {}


gym.register("MultiGoal-v0", MultiGoal, max_episode_steps=HORIZON)


def train(total_timesteps: int, **changes) -> fmer.Agent:
    """The agent after `total_timesteps`: a longer run of the same seed passes through it."""
    with tempfile.TemporaryDirectory() as folder:
        args = SMALL | dict(total_timesteps=total_timesteps, run_dir=f"{folder}/run") | changes
        return fmer.main(fmer.Args(**args))["agent"]


def one_sample(agent: fmer.Agent, seed: int = 0):
    """The sampled policy a = tanh x_1, one candidate and not the best of M: s (B,2) -> a (B,2)."""
    generator = torch.Generator().manual_seed(seed)

    def act(s: np.ndarray) -> np.ndarray:
        s = torch.as_tensor(s, dtype=torch.float32)
        path = fmer.sample_path(agent.velocity, s, 1, generator=generator, **agent.solver)
        return path[-1, :, 0].tanh().numpy()

    return act


def rollouts(act, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Episodes from s (B,2): their states (31,B,2), still at a goal, and whose it is (B,), or -1."""
    states, done = [s], landscape(s) > -1
    for _ in range(HORIZON):
        next_s, _, reached = transition(states[-1], act(states[-1]))
        states.append(np.where(done[:, None], states[-1], next_s))
        done |= reached
    to_goals = states[-1][:, None] - np.array([*GOALS.values()])
    return np.stack(states), np.where(done, np.square(to_goals).sum(-1).argmin(-1), -1)


def goal_shares(act, episodes: int) -> np.ndarray:
    """share_g = episodes from the origin that reach goal g / episodes: (4,)."""
    _, goals = rollouts(act, np.zeros((episodes, 2)))
    return np.bincount(goals[goals >= 0], minlength=len(GOALS)) / episodes


def table(shares: dict[str, np.ndarray]) -> str:
    """Means over seeds of share_g and of #{g: share_g > 5 %}, in Markdown; shares (seeds,4)."""
    text = f"| variant | seeds | {' | '.join(GOALS)} | none | goals with share > 5 % |"
    text += "\n|---|" + 7 * "--:|"
    for variant, x in shares.items():
        cells = " | ".join(f"{100 * each:.1f} %" for each in (*x.mean(0), 1 - x.sum(1).mean()))
        text += f"\n| {variant} | {len(x)} | {cells} | {(x > 0.05).sum(1).mean():.1f} |"
    return text


class Landscape(torch.nn.Module):
    """Q(s,a) = Σ_k h_k exp(−‖a − m_k‖² / (2·0.2²)): a known critic, four peaks of unequal height."""

    peaks = torch.tensor([[-0.5, 0.5], [0.5, 0.5], [0.5, -0.5], [-0.5, -0.5]])
    heights = torch.tensor([1.0, 0.9, 0.8, 0.7])

    def forward(self, s: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        squared = (a.unsqueeze(-2) - self.peaks).square().sum(-1)
        return (self.heights * torch.exp(-squared / 0.08)).sum(-1).expand(2, *a.shape[:-1])


def improve(updates: int, own: bool, **changes) -> fmer.Agent:
    """`updates` steps on the known landscape, from the initial policy tanh N(0,I).

    own: Agent.update_actor, Eq. (10), each update on the policy's own candidates. Otherwise one
    improvement step, Eq. (7) alone: every candidate is the initial policy's.
    """
    torch.manual_seed(1)
    agent = fmer.Agent(2, 2, fmer.Args(**SMALL | dict(temperature=0.2) | changes))
    agent.critic, old, s = Landscape(), copy.deepcopy(agent.velocity), torch.zeros(64, 2)
    for _ in range(updates):
        if own:
            agent.update_actor(s)
            continue
        x1 = fmer.sample_path(old, s, agent.args.num_candidates, **agent.solver)[-1]
        weights, _ = fmer.candidate_weights(agent.critic(s, x1.tanh())[0], agent.args.temperature)
        agent.descend(fmer.flow_matching_loss(agent.velocity, s, x1, weights))
    return agent
