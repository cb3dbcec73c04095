"""The 2-D multi-goal task (Haarnoja et al. 2017), what FMER learns on it, and three pictures of it.

s' = clip(s + clip(a, ±1), ±7): a point that may walk to any of four equally good goals, so the best
policy has four modes. Run this file for the pictures and a table, or train on the task by

    python fmer_continuous.py --env-id figures.multigoal:MultiGoal-v0
"""

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
import fmer_continuous as fmer
from figures.learning_curves import COLOURS, STYLE

NAMES, GOALS = ("right", "up", "left", "down"), np.array([(5, 0), (0, 5), (-5, 0), (0, -5)])
HORIZON, ORIGIN = 30, torch.zeros(1, 2)
SMALL = dict(env_id="MultiGoal-v0", cuda=False, eval_interval=0, hidden_dim=64, flow_steps=5)
SMALL |= dict(batch_size=128, actor_batch_size=64, buffer_size=100_000)  # minutes on one core
GREEDY = dict(autotune_temperature=False, temperature=1e-6)  # one-hot weights: the best candidate
STYLE = STYLE | {"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}
PICTURES = "weighted_update", "multigoal_policy", "multigoal_strategy"
BLUES = ListedColormap(matplotlib.colormaps["Blues"](np.linspace(0, 0.65, 12)))
DOTS = dict(ls="", marker="o", mew=0, color=COLOURS[1])


@dataclass
class Args:
    """Train FMER on the multi-goal task, draw its policy, and count the goals that it reaches."""

    out: Path = Path("figures")  # folder for the three pictures
    learning_starts: int = 10_000  # steps of uniform random actions before learning
    learning_steps: int = 20_000  # steps of learning after them
    num_seeds: int = 1  # seeds of each row of the table; the pictures show the first
    episodes: int = 400  # episodes from the origin for each run in the table
    updates: int = 1000  # policy updates on the known landscape of weighted_update.png


def goal_reward(s: np.ndarray) -> np.ndarray:
    """−min_g ‖s − g‖²: (…,2) -> (…)."""
    return -np.square(s[..., None, :] - GOALS).sum(-1).min(-1)


def transition(s: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """s' = clip(s + a, ±7), r = 0.1·(−30‖a‖² − min_g‖s' − g‖² + 10·[reached]), a clipped to ±1.

    reached: s' is nearer than 1 to a goal. Learners scale this task's reward by the factor 0.1.
    s (…,2), a (…,2) -> s' (…,2), r (…), reached (…)
    """
    a = np.clip(a, -1, 1)
    s = np.clip(s + a, -7, 7)
    reached = goal_reward(s) > -1
    return s, 0.1 * (-30 * np.square(a).sum(-1) + goal_reward(s) + 10 * reached), reached


class MultiGoal(gym.Env):
    """s_0 ~ N(0, 0.1²·I), then `transition`: terminated at a goal, truncated after 30 steps."""

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


def log_density(velocity, s: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """log π(a|s) = log N(x_0; 0,I) − Σ_k log|det(I + h ∂v/∂x_k)| − Σ_j log sech² x_1: (B,N).

    Of every candidate on a `path` (K+1,B,N,d): d vector-Jacobian products for each Euler step.
    """
    x1, flow_steps, d = path[-1], len(path) - 1, path.shape[-1]
    eye = torch.eye(d)
    log_p = torch.distributions.Normal(0, 1).log_prob(path[0]).sum(-1)
    log_p = log_p - (2 * (np.log(2) - x1 - torch.nn.functional.softplus(-2 * x1))).sum(-1)
    for k in range(flow_steps):
        x = path[k].detach().requires_grad_()
        v = velocity(s.unsqueeze(1), x, torch.full((1,), k / flow_steps))
        units = eye.view(d, 1, 1, d).expand(d, *v.shape)
        (jacobian,) = torch.autograd.grad(v, x, units, is_grads_batched=True)  # (d,B,N,d)
        log_p = log_p - torch.linalg.slogdet(eye + jacobian.movedim(0, -2) / flow_steps).logabsdet
    return log_p


class SoftAdvantage(fmer.Agent):
    """w_i ∝ exp((A_i − α·log π(a_i|s)) / max(α, T)), α ≤ 1. An extension, not the paper's.

    At its fixed point π ∝ exp(Q/α), equally good modes have equal shares. `update_actor` is that
    of fmer.Agent but for α's bound, the line with `log_density`, and the larger of α and T.
    """

    def update_actor(self, s: torch.Tensor) -> dict:
        path = fmer.sample_path(self.velocity, s, self.args.num_candidates, **self.solver)
        alpha, temperature = self.log_alpha.exp().detach().clamp(max=1), self.log_temperature.exp()
        with torch.no_grad():
            q = self.critic(s.unsqueeze(1), path[-1].tanh()).amin(0)
        q = q - alpha * log_density(self.velocity, s, path)
        weights, ess = fmer.candidate_weights(q, torch.maximum(alpha, temperature.detach()))
        ess_share = ess.mean() / self.args.num_candidates
        flow_matching = fmer.flow_matching_loss(self.velocity, s, path[-1], weights)
        entropy = fmer.policy_entropy(self.velocity, s, path, self.args.exact_entropy)
        dual_alpha = self.log_alpha * (entropy.detach() - self.target_entropy)
        dual_temperature = self.log_temperature * (ess_share - self.args.ess_target)
        self.optimizer.zero_grad()
        (flow_matching - alpha * entropy + dual_alpha + dual_temperature).backward()
        self.optimizer.step()
        losses = {"flow_matching": flow_matching.detach(), "entropy": entropy.detach()}
        return losses | {"alpha": alpha, "temperature": temperature.detach(), "ess": ess_share}


VARIANTS = {"FMER": {}, "no entropy term": dict(autotune=False, alpha=0.0), "greedy": GREEDY}
VARIANTS |= {"soft advantage (extension)": dict(kind=SoftAdvantage)}


def train(total_timesteps: int, kind: type[fmer.Agent] = fmer.Agent, **changes) -> fmer.Agent:
    """The agent after so many steps. A longer run of the same seed passes through it."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(fmer, "Agent", kind):
        args = SMALL | dict(total_timesteps=total_timesteps, run_dir=f"{folder}/run") | changes
        return fmer.main(fmer.Args(**args))["agent"]


def sample(agent: fmer.Agent, num: int, s: np.ndarray) -> torch.Tensor:
    """a = tanh x_1 of the policy itself, not of the best of M: s (B,2) -> (B,num,2)."""
    s = torch.as_tensor(s, dtype=torch.float32)
    return fmer.sample_path(agent.velocity, s, num, **agent.solver)[-1].tanh()


def rollouts(act, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Episodes from the origin: states (31,num,2), the last one repeated, and the goal or −1."""
    s, goal = [np.zeros((num, 2))], np.full(num, -1)
    for _ in range(HORIZON):
        next_s, _, reached = transition(s[-1], np.asarray(act(s[-1])).reshape(num, 2))
        s.append(np.where(goal[:, None] < 0, next_s, s[-1]))
        nearest = np.square(next_s[:, None] - GOALS).sum(-1).argmin(-1)
        goal = np.where((goal < 0) & reached, nearest, goal)
    return np.stack(s), goal


def goal_shares(act, episodes: int) -> np.ndarray:
    """(4,): the share of episodes from the origin that reach each goal."""
    return (rollouts(act, episodes)[1][:, None] == np.arange(4)).mean(0)


def table(shares: dict[str, list[np.ndarray]]) -> str:
    """Means over seeds of share_g and of #{g: share_g > 5 %}; for each seed the shares (4,)."""
    text = f"| variant | seeds | {' | '.join(NAMES)} | none | goals with share > 5 % |\n|---"
    text += 7 * "|--:" + "|"
    for variant, x in ((variant, np.stack(x)) for variant, x in shares.items()):
        cells = " | ".join(f"{100 * each:.1f} %" for each in (*x.mean(0), 1 - x.sum(1).mean()))
        text += f"\n| {variant} | {len(x)} | {cells} | {(x > 0.05).sum(1).mean():.1f} |"
    return text


class Peaks(torch.nn.Module):
    """Q(s,a) = Σ_k h_k exp(−‖a − m_k‖² / (2·0.2²)): a known critic with four unequal modes."""

    m = torch.tensor([(-0.5, 0.5), (0.5, 0.5), (0.5, -0.5), (-0.5, -0.5)])
    h = torch.tensor([1.0, 0.9, 0.8, 0.7])

    def forward(self, s: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        squared = (a.unsqueeze(-2) - self.m).square().sum(-1)
        return (self.h * torch.exp(-squared / 0.08)).sum(-1).expand(2, *a.shape[:-1])


def improve(updates: int, own: bool, **changes) -> fmer.Agent:
    """`updates` policy updates under the critic `Peaks`, from the first policy, tanh N(0,I).

    own: whole updates, Eq. (10), on candidates of the current policy. Else one improvement step:
    Eq. (7) alone is descended, and all candidates are the first policy's, x_1 ~ N(0,I).
    """
    torch.manual_seed(1)
    agent = fmer.Agent(2, 2, fmer.Args(**SMALL | dict(temperature=0.2) | changes))
    agent.critic, s = Peaks(), ORIGIN.expand(64, 2)
    for _ in range(updates):
        if own:
            agent.update_actor(s)
        else:
            x1 = torch.randn(64, agent.args.num_candidates, 2)
            q = agent.critic(s, x1.tanh())[0]
            weights, _ = fmer.candidate_weights(q, agent.args.temperature)
            agent.optimizer.zero_grad()
            fmer.flow_matching_loss(agent.velocity, s, x1, weights).backward()
            agent.optimizer.step()
    return agent


def draw_critic(axis, agent: fmer.Agent) -> None:
    """Contours of min_j Q_j(s,a) at s = (0,0) over the actions: the darker, the better."""
    x = torch.linspace(-1, 1, 81)
    with torch.no_grad():
        q = agent.critic(ORIGIN, torch.cartesian_prod(x, x)).amin(0).view(81, 81).T
    axis.contourf(x, x, q, 12, cmap=BLUES)
    axis.set(aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1), xlim=(-1, 1), ylim=(-1, 1))


def draw_update(updates: int) -> Figure:
    """After the paper's Fig. 2: weights w_i ∝ exp(A_i/T) against w = 1 for the best candidate.

    The percentages are the shares of 2000 sampled actions by quadrant.
    """
    figure = Figure((7, 4.9), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    titles = "16 candidates: weights", "one improvement step", "updates on own samples"
    stages = (0, False), (updates, False), (updates, True)
    for row, name, changes in zip(axes, ("weighted", "greedy"), ({}, GREEDY), strict=True):
        row[0].set_ylabel(name, weight="bold")
        for axis, stage, title in zip(row, stages, titles, strict=True):
            agent = improve(*stage, **changes)
            a = sample(agent, 2000, ORIGIN)[0]
            draw_critic(axis, agent)
            axis.set_title(title if name == "weighted" else None, size="medium")
            if stage[0] == 0:
                q = agent.critic(ORIGIN, a[:16])[0]
                weights, _ = fmer.candidate_weights(q, agent.args.temperature)
                axis.scatter(*a[:16].T, 400 * weights, COLOURS[1], lw=0, alpha=0.8)
                axis.plot(*a[:16].T, "k.", ms=2)
                continue
            axis.plot(*a[:400].T, **DOTS, ms=2.5, alpha=0.6)
            for m in Peaks.m:
                share = (a * m > 0).all(-1).float().mean()
                side = dict(ha="left" if m[0] < 0 else "right", va="center", weight="bold")
                axis.text(1.9 * m[0], 1.76 * m[1], f"{share:.0%}", **side)
    return figure


def draw_policy(agents: dict[int, fmer.Agent]) -> Figure:
    """After its Fig. 3: the sampler's paths tanh x_k from noise to action at s = (0,0)."""
    figure = Figure((2.2 * len(agents), 2.75), layout="constrained")
    axes = figure.subplots(1, len(agents), sharey=True, squeeze=False)[0]
    for axis, (steps, agent) in zip(axes, agents.items(), strict=True):
        draw_critic(axis, agent)
        axis.set_title(f"{steps:,} learning steps")
        path = fmer.sample_path(agent.velocity, ORIGIN, 60, **agent.solver)[:, 0].tanh()
        axis.plot(*path.permute(2, 0, 1), color="0.25", lw=0.5)
        noise = axis.plot(*path[0].T, ls="", marker="o", ms=2.5, mfc="w", mec="0.25", mew=0.5)
        action = axis.plot(*path[-1].T, **DOTS, ms=4)
    labels = "noise tanh x₀", "action tanh x₁"
    figure.legend(noise + action, labels, loc="outside lower center", ncols=2, labelcolor="k")
    return figure


def draw_strategy(agent: fmer.Agent) -> Figure:
    """After its Fig. 4: the executed action, Eq. (14), by state; episodes of single samples."""
    figure = Figure((7, 3.7), layout="constrained")
    left, right = axes = figure.subplots(1, 2, sharey=True)
    x, grid = np.linspace(-7, 7, 141), np.linspace(-6.5, 6.5, 14)
    for axis in axes:
        axis.contourf(x, x, goal_reward(np.stack(np.meshgrid(x, x), -1)), 12, cmap=BLUES)
        axis.plot(*GOALS.T, "k*", ms=13)
        axis.set(aspect="equal", xticks=(-5, 0, 5), yticks=(-5, 0, 5))
    s = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    s = s[goal_reward(s) < -1]  # elsewhere the episode is over
    arrows = dict(angles="xy", scale_units="xy", scale=0.9, width=0.006)
    left.quiver(*s.T, *agent.act(s).T, color=COLOURS[1], **arrows)
    left.set_title(f"executed action, best of {agent.args.num_act_candidates}")
    states, _ = rollouts(partial(sample, agent, 1), 60)
    right.plot(*states.transpose(2, 0, 1), color=COLOURS[1], lw=0.7)
    right.set_title("60 episodes, one sample a step")
    return figure


def main(args: Args) -> None:
    """Train, write the pictures, print the table."""
    for name, value in vars(args).items():
        if name != "out" and value < 1:
            raise SystemExit(f"error: --{name.replace('_', '-')} must be positive, not {value}")
    paths = [args.out / f"{name}.png" for name in PICTURES]
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for path in paths:
            path.touch()
    except OSError as error:
        raise SystemExit(f"error: cannot write to {args.out}: {error}") from None

    def trained(learning_steps: int, **changes) -> fmer.Agent:
        steps = args.learning_starts + learning_steps
        return train(steps, learning_starts=args.learning_starts, **changes)

    agents = {n: trained(n) for n in (args.learning_steps // 4**k for k in (3, 2, 1, 0))}
    torch.manual_seed(0)
    with matplotlib.rc_context(STYLE):
        last = agents[args.learning_steps]
        figures = draw_update(args.updates), draw_policy(agents), draw_strategy(last)
        for figure, path in zip(figures, paths, strict=True):
            figure.savefig(path, dpi=160)

    shares: dict[str, list[np.ndarray]] = {variant: [] for variant in VARIANTS}
    for seed in range(1, args.num_seeds + 1):
        for variant, changes in VARIANTS.items():
            known = (seed, variant) == (1, "FMER")
            agent = last if known else trained(args.learning_steps, seed=seed, **changes)
            torch.manual_seed(seed)
            shares[variant].append(goal_shares(partial(sample, agent, 1), args.episodes))
    print(table(shares))


if __name__ == "__main__":
    main(tyro.cli(Args))
