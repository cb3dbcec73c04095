"""Do the critics rank candidate actions as these turn out? A Markdown table.

    python figures/advantages.py --run-dirs runs/hopper

At states of the policy's own episodes (MuJoCo tasks only) each of some candidates of the
policy is executed, and then one sample of the policy in every step, which is what Eq.
(12) evaluates. Its value is the mean of many such rollouts, discounted and cut off after
some steps, where the target critics take over. The advantages of the candidates of a
state, in the table's columns: their deviation in truth (from the covariance of the means
over the even and the odd rollouts, in which noise has no part); their deviation by Q, the
mean of the twins; the correlation of the two (nan: the rollouts are too few to tell);
what the candidate of largest Q gains in truth; and what Q promises of it. Behind ± are
standard errors over the states, that of the correlation for given deviations.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from figures.diagnose import load


@dataclass
class Args:
    """Compare Q with rollouts."""

    run_dirs: tuple[Path, ...]  # with policy.pt
    states: int = 160
    candidates: int = 8  # at each state
    rollouts: int = 6  # of each candidate
    horizon: int = 100  # steps of a rollout
    every: int = 7  # steps of an episode between two states
    seed: int = 0


def snapshot(env) -> list[np.ndarray]:
    """The physical state; the solver's first guess belongs to it."""
    data = env.unwrapped.data
    return [data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy()]


def restore(env, state: list[np.ndarray]) -> None:
    env.unwrapped.set_state(*state[:2])
    env.unwrapped.data.qacc_warmstart[:] = state[2]


def visited(agent, env, number: int, every: int):
    """Snapshots and observations (number,S) of episodes that act by Eq. (14)."""
    states, observations = [], []
    obs, over, step = None, True, 0
    while len(states) < number:
        if over:
            obs, _ = env.reset(seed=20_000 + step)
        step += 1
        if step % every == 0:
            states.append(snapshot(env))
            observations.append(obs)
        (action,), _ = agent.act(obs[None], agent.args.num_act_candidates)
        obs, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    return states, np.stack(observations)


@torch.no_grad()
def rollouts(agent, env, states, action: np.ndarray, horizon: int) -> np.ndarray:
    """Σ_{h<H} γ^h r_h + γ^H min_j Q̄_j from each state, the first step by the action."""
    simulator, box = env.unwrapped, env.unwrapped.action_space
    states, going = list(states), list(range(len(states)))
    total, discount = np.zeros(len(states)), 1.0
    for _ in range(horizon):
        goes_on, observations = [], []
        for i, a in zip(going, action, strict=True):
            restore(env, states[i])
            scaled = box.low + (a + 1) / 2 * (box.high - box.low)
            obs, reward, terminated, *_ = simulator.step(scaled)
            total[i] += discount * reward
            if not terminated:
                states[i] = snapshot(env)
                goes_on.append(i)
                observations.append(obs)
        going, discount = goes_on, discount * agent.args.gamma
        if not going:
            return total
        s = agent.normalize(torch.as_tensor(np.stack(observations), dtype=torch.float32))
        a = agent.sample(s, 1)[-1].squeeze(1).tanh()
        action = a.numpy()
    total[going] += discount * agent.target_critic(s, a).amin(0).numpy()
    return total


def compare(q: np.ndarray, returns: np.ndarray) -> list[float]:
    """q (states, candidates), returns (states, candidates, rollouts) -> the columns."""

    def advantage(value):
        return value - value.mean(1, keepdims=True)

    true, promised = advantage(returns.mean(-1)), advantage(q)
    halves = advantage(returns[..., ::2].mean(-1)) * advantage(returns[..., 1::2].mean(-1))
    deviation = np.sqrt(max(halves.mean(), 0))
    scale = promised.std() * deviation if deviation else np.nan
    best = np.arange(len(q)), q.argmax(1)
    columns = [deviation, promised.std()]
    for of_a_state in ((promised * true).mean(1) / scale, true[best]):
        columns += [of_a_state.mean(), of_a_state.std() / np.sqrt(len(q))]
    return [*columns, promised[best].mean()]


def measure(run_dir: Path, args: Args) -> list[float]:
    torch.manual_seed(args.seed)
    _, agent, env = load(run_dir)
    states, obs = visited(agent, env, args.states, args.every)
    s = agent.normalize(torch.as_tensor(obs, dtype=torch.float32))
    a = agent.sample(s, args.candidates)[-1].tanh()
    with torch.no_grad():
        q = agent.critic(s.unsqueeze(1), a).mean(0).numpy()
    shape = (args.states, args.candidates, args.rollouts)
    repeats = args.candidates * args.rollouts
    starts = [state for state in states for _ in range(repeats)]
    first = a.flatten(0, 1).repeat_interleave(args.rollouts, 0).numpy()
    returns = rollouts(agent, env, starts, first, args.horizon).reshape(shape)
    return compare(q, returns)


def main(args: Args) -> None:
    torch.set_num_threads(1)
    print("| run | deviation | by Q | correlation | gain of the largest Q | promised |")
    print("|---|--:|--:|--:|--:|--:|")
    for run_dir in args.run_dirs:
        row = "| {:.2f} | {:.2f} | {:.2f} ± {:.2f} | {:.2f} ± {:.2f} | {:.2f} |"
        print(f"| {run_dir.name} {row.format(*measure(run_dir, args))}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
