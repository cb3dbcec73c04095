"""The 2-D multi-goal task (Haarnoja et al. 2017), and what FMER learns on it.

    python figures/multigoal.py --num-seeds 5 --out figures
    python fmer_continuous.py --env-id figures.multigoal:MultiGoal-v0

A point walks to any of four equally good goals, so the best policy has four modes. The
first command prints how often each goal is reached, and draws weighted_update.png,
multigoal_policy.png and multigoal_strategy.png if --out names a folder.
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import matplotlib.style
import numpy as np
import torch
import tyro
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
import fmer_continuous as fmer

NAMES = ["right", "up", "left", "down"]
GOALS = np.array([(5, 0), (0, 5), (-5, 0), (0, -5)])
HORIZON = 30
ORIGIN = torch.zeros(1, 2)
SIZES = dict(
    env_id="MultiGoal-v0",
    cuda=False,
    eval_interval=0,
    hidden_dim=64,
    buffer_size=100_000,
)
GREEDY = dict(autotune_temperature=False, temperature=1e-6)  # all weight on the best
VARIANTS = {
    "FMER": {},
    "no entropy term": dict(autotune=False, alpha=0.0),
    "greedy": GREEDY,
}
STYLE = [
    Path(__file__).with_name("style.mplstyle"),
    {"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True},
]
BLUES = ListedColormap(matplotlib.colormaps["Blues"](np.linspace(0, 0.65, 12)))
DOTS = dict(ls="", marker="o", mew=0, color="C1")


@dataclass
class Args:
    """Train FMER on the multi-goal task, count the goals it reaches, draw its policy."""

    learning_starts: int = 10_000  # steps of uniform random actions before learning
    learning_steps: int = 20_000  # steps of learning after them
    num_seeds: int = 1  # seeds of each row of the table; the pictures show the first
    episodes: int = 400  # episodes from the origin for each run in the table
    updates: int = 1_000  # policy updates on the known critic of weighted_update.png
    out: Path | None = None  # folder for three pictures; none: only the table


def goal_reward(s: np.ndarray) -> np.ndarray:
    """−min_g ‖s − g‖²: (…,2) -> (…)."""
    return -np.square(s[..., None, :] - GOALS).sum(-1).min(-1)


def transition(s: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """s' = clip(s + a, ±7), r = 0.1·(−30‖a‖² − min_g‖s' − g‖² + 10·[reached]), |a_j| ≤ 1.

    reached: s' is nearer than 1 to a goal. Learners scale this task's reward by the 0.1.
    s (…,2), a (…,2) -> s' (…,2), r (…), reached (…)
    """
    a = np.clip(a, -1, 1)
    s = np.clip(s + a, -7, 7)
    reached = goal_reward(s) > -1
    return s, 0.1 * (-30 * np.square(a).sum(-1) + goal_reward(s) + 10 * reached), reached


class MultiGoal(gym.Env):
    """s_0 ~ N(0, 0.1²·I), then `transition`: terminated at a goal, truncated after 30."""

    def __init__(self, render_mode: str | None = None):
        self.observation_space = gym.spaces.Box(-7, 7, (2,), np.float64)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.render_mode = render_mode

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.s = self.np_random.normal(0, 0.1, 2)
        return self.s, {}

    def step(self, action):
        self.s, reward, reached = transition(self.s, action)
        return self.s, float(reward), bool(reached), False, {}


gym.register("MultiGoal-v0", MultiGoal, max_episode_steps=HORIZON)


def train(args: Args, learning_steps: int, **changes) -> fmer.Agent:
    """The agent after so many steps. A longer run of the same seed passes through it."""
    steps = dict(
        learning_starts=args.learning_starts,
        total_timesteps=args.learning_starts + learning_steps,
    )
    flags = SIZES | steps | changes
    # On stdout there is nothing but the table
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        return fmer.main(fmer.Args(run_dir=f"{folder}/run", **flags))["agent"]


def sample_path(agent: fmer.Agent, s: torch.Tensor, num: int) -> torch.Tensor:
    """tanh x_0 … tanh x_1 of the policy itself, not of its best of M: (K+1,B,num,2)."""
    x0 = torch.randn(len(s), num, 2)
    return fmer.sample_path(agent.velocity, s, x0, agent.args.flow_steps).tanh()


def sampler(agent: fmer.Agent) -> Callable:
    """The policy as a function of states: one sample each, (B,2) -> (B,2)."""

    def act(s: np.ndarray) -> np.ndarray:
        s = torch.as_tensor(s, dtype=torch.float32)
        return sample_path(agent, s, 1)[-1, :, 0].numpy()

    return act


def rollouts(act: Callable, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Episodes from the origin: states (31,num,2), the last repeated; the goal, or −1."""
    s = [np.zeros((num, 2))]
    goal = np.full(num, -1)
    for _ in range(HORIZON):
        next_s, _, reached = transition(s[-1], act(s[-1]))
        s.append(np.where(goal[:, None] < 0, next_s, s[-1]))
        nearest = np.square(next_s[:, None] - GOALS).sum(-1).argmin(-1)
        goal = np.where((goal < 0) & reached, nearest, goal)
    return np.stack(s), goal


def goal_shares(act: Callable, episodes: int) -> np.ndarray:
    """(4,): the share of the episodes from the origin that reaches each goal."""
    _, goal = rollouts(act, episodes)
    return (goal[:, None] == np.arange(4)).mean(0)


def table(shares: dict[str, list[np.ndarray]]) -> str:
    """Means over seeds of the shares (4,), and of how many are above 5 %."""
    lines = [
        f"| variant | seeds | {' | '.join(NAMES)} | none | goals with share > 5 % |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for variant, seeds in shares.items():
        x = np.stack(seeds)
        cells = [f"{100 * share:.1f} %" for share in [*x.mean(0), 1 - x.sum(1).mean()]]
        goals = (x > 0.05).sum(1).mean()
        lines.append(f"| {variant} | {len(x)} | {' | '.join(cells)} | {goals:.1f} |")
    return "\n".join(lines)


class Peaks(torch.nn.Module):
    """Q(s,a) = Σ_k h_k exp(−‖a − m_k‖² / (2·0.2²)): a known critic, four unequal modes."""

    m = torch.tensor([(-0.5, 0.5), (0.5, 0.5), (0.5, -0.5), (-0.5, -0.5)])
    h = torch.tensor([1.0, 0.9, 0.8, 0.7])

    def forward(self, s: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        squared = (a.unsqueeze(-2) - self.m).square().sum(-1)
        return (self.h * torch.exp(-squared / 0.08)).sum(-1).expand(2, *a.shape[:-1])


def first_agent(**changes) -> fmer.Agent:
    """The first policy, tanh N(0,I), under the critic `Peaks`."""
    torch.manual_seed(1)
    agent = fmer.Agent(2, 2, fmer.Args(**SIZES | dict(temperature=0.2) | changes))
    agent.critic = Peaks()
    return agent


def improve_once(agent: fmer.Agent, updates: int) -> None:
    """Descend Eq. (7) with all candidates from the first policy, x_1 ~ N(0,I)."""
    s = ORIGIN.expand(64, 2)
    for _ in range(updates):
        x1 = torch.randn(64, agent.args.num_candidates, 2)
        q = agent.critic(s, x1.tanh())[0]
        weights, _ = fmer.candidate_weights(q, agent.args.temperature)
        x0 = torch.randn_like(x1)
        t = torch.rand_like(x1[..., :1])
        loss = fmer.flow_matching_loss(agent.velocity, s, x0, x1, t, weights)
        agent.policy_optimizer.zero_grad()
        loss.backward()
        agent.policy_optimizer.step()


def improve_repeatedly(agent: fmer.Agent, updates: int) -> None:
    """Whole policy updates, Eq. (10), with candidates from the current policy."""
    for _ in range(updates):
        agent.update_actor(ORIGIN.expand(64, 2))


def draw_critic(panel, agent: fmer.Agent) -> None:
    """Contours of the twins' mean at s = (0,0) over the actions: the darker, the better."""
    x = torch.linspace(-1, 1, 81)
    with torch.no_grad():
        q = agent.critic(ORIGIN, torch.cartesian_prod(x, x)).mean(0).view(81, 81).T
    panel.contourf(x, x, q, 12, cmap=BLUES)
    panel.set(aspect="equal", xlim=(-1, 1), ylim=(-1, 1))
    panel.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1))


def draw_candidates(panel, agent: fmer.Agent) -> None:
    """Sixteen candidates, each in a disc of the area of its weight."""
    a = sample_path(agent, ORIGIN, 16)[-1, 0]
    weights, _ = fmer.candidate_weights(agent.critic(ORIGIN, a)[0], agent.args.temperature)
    panel.scatter(*a.T, 400 * weights, "C1", lw=0, alpha=0.8)
    panel.plot(*a.T, "k.", ms=2)


def draw_samples(panel, agent: fmer.Agent) -> None:
    """Samples of the policy, and the share of each quadrant among 2000 of them."""
    a = sample_path(agent, ORIGIN, 2000)[-1, 0]
    panel.plot(*a[:400].T, **DOTS, ms=2.5, alpha=0.6)
    for m in Peaks.m:
        share = (a * m > 0).all(-1).float().mean()
        side = dict(ha="left" if m[0] < 0 else "right", va="center", weight="bold")
        panel.text(1.9 * m[0], 1.76 * m[1], f"{share:.0%}", **side)


def draw_update(updates: int) -> Figure:
    """After the paper's Fig. 2: soft weights above, below all weight on the best."""
    figure = Figure((7, 4.9))
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    panels[0, 0].set_ylabel("weighted", weight="bold")
    panels[1, 0].set_ylabel("greedy", weight="bold")
    for row, changes in zip(panels, [{}, GREEDY], strict=True):
        for panel, improve in zip(row[1:], [improve_once, improve_repeatedly], strict=True):
            agent = first_agent(**changes)
            improve(agent, updates)
            draw_critic(panel, agent)
            draw_samples(panel, agent)
        agent = first_agent(**changes)
        draw_critic(row[0], agent)
        draw_candidates(row[0], agent)
    panels[0, 0].set_title("16 candidates: weights", size="medium")
    panels[0, 1].set_title("one improvement step", size="medium")
    panels[0, 2].set_title("updates on own samples", size="medium")
    return figure


def draw_policy(agents: dict[int, fmer.Agent]) -> Figure:
    """After its Fig. 3: the sampler's paths from noise to action at s = (0,0)."""
    figure = Figure((2.2 * len(agents), 2.75))
    panels = figure.subplots(1, len(agents), sharey=True, squeeze=False)[0]
    for panel, (steps, agent) in zip(panels, agents.items(), strict=True):
        draw_critic(panel, agent)
        panel.set_title(f"{steps:,} learning steps")
        path = sample_path(agent, ORIGIN, 60)[:, 0]
        panel.plot(*path.permute(2, 0, 1), color="0.25", lw=0.5)
        ring = dict(ls="", marker="o", ms=2.5, mfc="w", mec="0.25", mew=0.5)
        noise = panel.plot(*path[0].T, **ring)
        action = panel.plot(*path[-1].T, **DOTS, ms=4)
    labels = ["noise tanh x₀", "action tanh x₁"]
    place = dict(loc="outside lower center", ncols=2, labelcolor="k")
    figure.legend(noise + action, labels, **place)
    return figure


def draw_strategy(agent: fmer.Agent) -> Figure:
    """After its Fig. 4: the executed action, Eq. (14), by state; episodes of samples."""
    figure = Figure((7, 3.7))
    left, right = figure.subplots(1, 2, sharey=True)
    x = np.linspace(-7, 7, 141)
    for panel in (left, right):
        panel.contourf(x, x, goal_reward(np.stack(np.meshgrid(x, x), -1)), 12, cmap=BLUES)
        panel.plot(*GOALS.T, "k*", ms=13)
        panel.set(aspect="equal", xticks=(-5, 0, 5), yticks=(-5, 0, 5))
    grid = np.linspace(-6.5, 6.5, 14)
    s = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    s = s[goal_reward(s) < -1]  # elsewhere the episode is over
    arrows = dict(angles="xy", scale_units="xy", scale=0.9, width=0.006)
    m = agent.args.num_act_candidates
    left.quiver(*s.T, *agent.act(s, m)[0].T, color="C1", **arrows)
    left.set_title(f"action in evaluation, best of {m}")
    states, _ = rollouts(sampler(agent), 60)
    right.plot(*states.transpose(2, 0, 1), color="C1", lw=0.7)
    right.set_title("60 episodes, one sample a step")
    return figure


def draw(args: Args, last: fmer.Agent) -> None:
    """Write the three pictures; earlier policies are those of shorter runs."""
    agents = {}
    for part in (64, 16, 4):
        steps = args.learning_steps // part
        agents[steps] = train(args, steps)
    agents[args.learning_steps] = last
    torch.manual_seed(0)
    with matplotlib.style.context(STYLE):
        draw_update(args.updates).savefig(args.out / "weighted_update.png")
        draw_policy(agents).savefig(args.out / "multigoal_policy.png")
        draw_strategy(last).savefig(args.out / "multigoal_strategy.png")


def main(args: Args) -> None:
    """Train, print the table, and draw if there is a folder to draw into."""
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    agents = {}
    shares = {variant: [] for variant in VARIANTS}
    for seed in range(1, args.num_seeds + 1):
        for variant, changes in VARIANTS.items():
            agent = train(args, args.learning_steps, seed=seed, **changes)
            torch.manual_seed(seed)
            shares[variant].append(goal_shares(sampler(agent), args.episodes))
            agents.setdefault(variant, agent)
    print(table(shares))
    if args.out:
        draw(args, agents["FMER"])


if __name__ == "__main__":
    main(tyro.cli(Args))
