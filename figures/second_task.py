"""What a kitchen run knows of the second task in an episode: a Markdown table.

    python figures/second_task.py --run-dirs runs/kitchen
    python figures/second_task.py --run-dirs runs/kitchen --updates 20000 --hidden-dim 256

Of all replayed episodes after warm-up in which a second task was done, at so many steps
before: the return that followed, discounted; Q of the policy's candidates, its deviation
over them; Q of the action taken there, the difference of the twins at it; and the cosine
between what weights do to the candidates' mean and the way from this to the action taken.
Where it is near 0 the critics do not tell that action from others. The second command
asks critics that are new, and have learned from the same replay while the policy stayed.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import fmer_kitchen as fmer
from figures import diagnose

HEAD = (
    "| run | steps before | episodes | return | Q | its deviation | of the action taken "
    "| twins' difference | cosine |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|"
)


@dataclass
class Args:
    """Print what critics and policy know of the steps before a second task."""

    run_dirs: tuple[Path, ...]  # with policy.pt and checkpoint.pt
    lags: tuple[int, ...] = (0, 1, 2, 5, 10, 20)  # steps before
    episode_length: int = 280  # steps, unless all tasks are done
    num_candidates: int = 64  # at each state
    updates: int = 0  # of new critics; 0: the run's own
    hidden_dim: int = 128  # their width
    batch_size: int = 256  # their batch
    seed: int = 0  # of the noise, and of new critics


def load(run_dir: Path):
    """The checkpoint's agent and replay."""
    _, agent, _ = diagnose.load(run_dir)
    saved = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True)
    agent.load_state_dict(saved["agent"])
    buffer = fmer.ReplayBuffer(len(saved["rows"]), *agent.dims, "cpu")
    buffer.rows, buffer.num_added = saved["rows"], len(saved["rows"])
    return agent, buffer


def learn_anew(agent, buffer, args: Args) -> None:
    """Gives the agent new critics, which learn by Eq. (12), (13) and the Polyak step."""
    new = fmer.Agent(*agent.dims, replace(agent.args, hidden_dim=args.hidden_dim))
    agent.critic, agent.target_critic = new.critic, new.target_critic
    agent.q_optimizer = new.q_optimizer
    for _ in range(args.updates):
        agent.update(buffer.sample(args.batch_size), with_actor=False)


def second_tasks(r: torch.Tensor, episode_length: int) -> list[tuple[int, int]]:
    """Indices of an episode's first two rewarded steps, of each that has two."""
    found = []
    for start in range(0, len(r), episode_length):
        rewarded = r[start : start + episode_length].nonzero().squeeze(1) + start
        if len(rewarded) > 1:
            found.append((int(rewarded[0]), int(rewarded[1])))
    return found


@torch.no_grad()
def look(agent, s, a, num_candidates: int) -> list[float]:
    """Q, its deviation, Q of a, |Q_1 − Q_2|, cosine: means over s (n,S), a (n,d)."""
    s = agent.normalize(s)
    candidates = agent.sample(s, num_candidates)[-1].tanh()  # (n,N,d)
    q = agent.critic(s.unsqueeze(1), candidates).mean(0)  # (n,N)
    twins = agent.critic(s, a)  # (2,n)
    weights, _ = fmer.candidate_weights(q, agent.log_temperature.exp())
    before = candidates.mean(1)
    after = (weights.unsqueeze(-1) * candidates).sum(1)
    cosine = F.cosine_similarity(after - before, a - before, dim=-1)
    values = q.mean(1), q.std(1), twins.mean(0), (twins[0] - twins[1]).abs(), cosine
    return [value.mean().item() for value in values]


def main(args: Args) -> None:
    """Print the table."""
    print(HEAD)
    for run_dir in args.run_dirs:
        torch.manual_seed(args.seed)
        agent, buffer = load(run_dir)
        if args.updates:
            learn_anew(agent, buffer, args)
        in_warm_up = -(-agent.args.learning_starts // args.episode_length)  # episodes
        start = in_warm_up * args.episode_length
        s, a, r, _, _ = buffer.rows[start:].split(buffer.widths, dim=1)
        found = second_tasks(r.squeeze(1), args.episode_length)
        for lag in args.lags:
            at = [second - lag for first, second in found if second - lag > first]
            if at:
                q, deviation, taken, twins, cosine = look(
                    agent, s[at], a[at], args.num_candidates
                )
                print(
                    f"| {run_dir.name} | {lag} | {len(at)} | {agent.args.gamma**lag:.2f} "
                    f"| {q:.2f} | {deviation:.3f} | {taken:.2f} | {twins:.3f} "
                    f"| {cosine:.2f} |"
                )


if __name__ == "__main__":
    main(tyro.cli(Args))
