"""What the critics of a trained run know of its policy: two Markdown tables.

    python figures/diagnose.py --run-dirs runs/hopper

The first has the return of the best of M samples, and how far the critics are from the
discounted return that followed (mean over the steps of Q(s, a) minus it; of an episode
cut by its time limit the last 500 steps do not count); then the same of the action of
Eq. (14), moved uphill on Q in steps of length 0.02: if that returns much more, the
policy lags behind its critics; if not, it may be at their maximum, or they mislead. The
second has, at the states of these episodes: the correlation of Q_1 and Q_2 over the
candidates (near 0 also where their mean is largest), the deviation over the states of
Q_1 − Q_2, that of Q over the candidates (if it is far below the former, one twin is the
smaller for most candidates of a state), that of an action, the entropy of Eq. (8); and
the entropy at replayed states.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

import fmer_continuous
import fmer_kitchen

CUT = 500  # last steps of an episode whose time ran out: too little of the return is seen


@dataclass
class Args:
    """Print what the critics of trained runs know."""

    run_dirs: tuple[Path, ...]  # with policy.pt and checkpoint.pt
    best_of: tuple[int, ...] = (1, 4, 16, 64)  # M
    uphill: int = 20  # steps along the gradient of Q, in the last row
    episodes: int = 10  # for each M
    num_candidates: int = 64  # at each state, for the second table
    seed: int = 0  # of the noise; the episodes' seeds are 10,000 and following


def load(run_dir: Path):
    """The module that made the run, its agent, its environment. Flags that are gone are
    left out: such a run acts by today's rules here."""
    saved = torch.load(run_dir / "policy.pt", map_location="cpu", weights_only=True)
    fmer = fmer_kitchen if "tasks" in saved["args"] else fmer_continuous
    known = fmer.Args.__dataclass_fields__
    flags = {"normalize_observations": False} | saved["args"]  # older runs lack it
    args = fmer.Args(**{flag: value for flag, value in flags.items() if flag in known})
    agent = fmer.Agent(*saved["dims"], args)
    moments = {name: agent.state_dict()[name] for name in ("count", "mean", "variance")}
    agent.load_state_dict(moments | saved["agent"])
    task = fmer.chosen_tasks(args) if fmer is fmer_kitchen else args.env_id
    return fmer, agent, fmer.make_env(task)


def discounted_returns(rewards: list[float], gamma: float) -> np.ndarray:
    """Σ_k γ^k r_{t+k} for every t of an episode."""
    returns, total = np.zeros(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        total = rewards[t] + gamma * total
        returns[t] = total
    return returns


def move_uphill(agent, s, a, steps: int):
    """a (1,d) after steps of length 0.02 along the gradient of Q, and its Q (1,)."""
    for _ in range(steps):
        a = a.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(agent.critic(s, a).mean(0).sum(), a)
        a = (a + 0.02 * F.normalize(gradient, dim=-1)).clamp(-1, 1)
    return a.detach(), agent.critic(s, a).mean(0).detach()


def episode(agent, env, seed: int, best_of: int, uphill=0):
    """Its return, its states, Q minus the discounted return at the steps that count."""
    obs, _ = env.reset(seed=seed)
    states, rewards, values = [], [], []
    over = False
    while not over:
        s = agent.normalize(torch.as_tensor(obs[None], dtype=torch.float32))
        (action,), (value,) = agent.act(obs[None], best_of)
        if uphill:
            moved, q = move_uphill(agent, s, torch.as_tensor(action[None]), uphill)
            action, value = moved[0].numpy(), q.item()
        states.append(s)
        values.append(value)
        obs, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        over = terminated or truncated
    counted = len(rewards) if terminated else max(1, len(rewards) - CUT)
    error = np.array(values) - discounted_returns(rewards, agent.args.gamma)
    return sum(rewards), torch.cat(states), error[:counted]


def entropy(fmer, agent, s, draws=16) -> float:
    """Eq. (8) at these states."""
    values = []
    for _ in range(draws):
        path = agent.sample(s, 1)[:, :, 0]
        k = torch.randint(agent.args.flow_steps, (len(s),))
        values.append(fmer.sampler_entropy(agent.velocity, s, path, k).item())
    return float(np.mean(values))


@torch.no_grad()
def twins(agent, s, num_candidates: int) -> tuple[float, float, float, float]:
    """Correlation of the twins, deviations of their difference, their mean, an action."""
    a = agent.sample(s, num_candidates)[-1].tanh()
    q = agent.critic(s.unsqueeze(1), a)
    centred = q - q.mean(-1, keepdim=True)
    covariance = (centred[0] * centred[1]).sum(-1)
    norms = centred[0].norm(dim=-1) * centred[1].norm(dim=-1)
    correlation = (covariance / norms.clamp_min(1e-12)).mean()
    apart = (q[0] - q[1]).mean(-1).std()  # over the states
    spreads = q.mean(0).std(-1).mean(), a.std(1).mean()  # over the candidates
    return correlation.item(), apart.item(), *(spread.item() for spread in spreads)


def diagnose(run_dir: Path, args: Args) -> tuple[list[list], list]:
    """The rows of the first table and the row of the second."""
    torch.manual_seed(args.seed)
    fmer, agent, env = load(run_dir)
    first = []
    trials = [(m, 0) for m in args.best_of] + [(agent.args.num_act_candidates, args.uphill)]
    for m, uphill in trials:
        episodes = [
            episode(agent, env, 10_000 + i, m, uphill) for i in range(args.episodes)
        ]
        returns, states, errors = zip(*episodes, strict=True)
        bias = np.mean(np.concatenate(errors))
        lengths = np.mean([len(s) for s in states])
        mean, deviation = np.mean(returns), np.std(returns)
        first.append([run_dir.name, m, uphill, mean, deviation, lengths, bias])
        if not uphill:
            s = torch.cat(states)[:1000]
    checkpoint = torch.load(
        run_dir / "checkpoint.pt", map_location="cpu", weights_only=True
    )
    rows = checkpoint["rows"][:, : s.shape[1]]  # in a full buffer not in order
    replayed = agent.normalize(rows)
    number = min(512, len(replayed))
    old, new = replayed[:5000][:number], replayed[-5000:][-number:]
    target = agent.target_entropy
    entropies = [entropy(fmer, agent, each) for each in (old, new, s)]
    return first, [run_dir.name, *twins(agent, s, args.num_candidates), target, *entropies]


def table(header: str, rows: list[list]) -> str:
    columns = header.count("|") - 1
    lines = [header, "|---|" + "--:|" * (columns - 1)]
    for name, *values in rows:
        cells = [f"{x:.0f}" if x == int(x) or abs(x) > 100 else f"{x:.2f}" for x in values]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(args: Args) -> None:
    torch.set_num_threads(1)
    found = [diagnose(run_dir, args) for run_dir in args.run_dirs]
    header = "| run | M | uphill | return | deviation | steps | Q minus what followed |"
    print(table(header, [row for rows, _ in found for row in rows]), end="\n\n")
    header = "| run | correlation of the twins | Q_1 − Q_2 over states | deviation of Q "
    header += "| of an action | entropy target | at the oldest states | newest | visited |"
    print(table(header, [row for _, row in found]))


if __name__ == "__main__":
    main(tyro.cli(Args))
