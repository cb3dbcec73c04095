"""Uniform random actions on FrankaKitchen, evaluated as policies are: a Markdown table.

    python figures/kitchen_random.py --out results
    python figures/kitchen_random.py --num-tasks 7 --repeat 40 --seeds 10

The first also writes <out>/FrankaKitchen-v1-<n>/random/seed_<k>.csv for n = 1, 4 and 7
tasks, as a run writes its eval.csv. The second says what warm-up finds (--warmup-repeat).
"""

import csv
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import fmer_kitchen


@dataclass
class Args:
    """Evaluate random actions."""

    num_tasks: list[int] = field(default_factory=lambda: [1, 4, 7])  # a row for each
    repeat: int = 1  # steps for which an action is repeated
    seeds: int = 3  # generators of actions, each evaluated once for a number of tasks
    eval_episodes: int = 10  # episodes of an evaluation, on the evaluation's own seeds
    out: Path | None = None  # folder to write to; none: only the table


class RandomAgent(fmer_kitchen.Agent):
    """a ~ U[-1,1]^9 every `repeat` steps, in place of Eq. (14)."""

    def __init__(self, seed: int, repeat: int = 1):
        super().__init__(59, 9, fmer_kitchen.Args(hidden_dim=1))
        self.rng = np.random.default_rng(seed)
        self.repeat = repeat
        self.calls = 0

    def act(self, obs, num_samples, generator=None):
        if self.calls % self.repeat == 0:
            self.actions = self.rng.uniform(-1, 1, (len(obs), 9)).astype(np.float32)
        self.calls += 1
        return self.actions, np.zeros(len(obs))


def write(path: Path, episodes: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        columns = ["step", "episode", *episodes[0]]
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        for i, episode in enumerate(episodes):
            table.writerow({"step": 0, "episode": i} | episode)


def main(args: Args) -> None:
    print("| tasks | episodes | tasks done, % | episodes in which each was done |")
    print("|--:|--:|--:|---|")
    for number in args.num_tasks:
        tasks = fmer_kitchen.TASKS[:number]
        envs = [fmer_kitchen.make_env(tasks) for _ in range(args.eval_episodes)]
        episodes = []
        for seed in range(1, args.seeds + 1):
            evaluation = fmer_kitchen.evaluate(RandomAgent(seed, args.repeat), envs)
            episodes += evaluation
            if args.out:
                name = "random" if args.repeat == 1 else f"random_repeat{args.repeat}"
                folder = args.out / f"FrankaKitchen-v1-{number}" / name
                write(folder / f"seed_{seed}.csv", evaluation)
        rate = 100 * np.mean([episode["success_rate"] for episode in episodes])
        done = []
        for task in tasks:
            times = sum(episode[f"task/{task}"] for episode in episodes)
            if times:
                done.append(f"{task} {times}")
        names = ", ".join(done) or "none"
        print(f"| {number} | {len(episodes)} | {rate:.1f} | {names} |")


if __name__ == "__main__":
    main(tyro.cli(Args))
