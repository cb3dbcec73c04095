"""Uniform random actions on FrankaKitchen, measured by the evaluation that policies get.

    python figures/kitchen_random.py

writes results/FrankaKitchen-v1-<n>/random/seed_<k>.csv for 1, 4 and 7 tasks, as a run's eval.csv.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import fmer_kitchen


@dataclass
class Args:
    """Evaluate random actions for 1, 4 and 7 tasks."""

    seeds: int = 3  # generators of actions; each is evaluated once per number of tasks
    eval_episodes: int = 10  # episodes of an evaluation, on the evaluation's own seeds
    results: Path = Path("results")  # where to write


class RandomAgent(fmer_kitchen.Agent):
    """a ~ U[-1,1]^9, in place of Eq. (14)."""

    def __init__(self, seed: int):
        super().__init__(59, 9, fmer_kitchen.Args(hidden_dim=1))
        self.rng = np.random.default_rng(seed)

    def act(self, obs, generator=None):
        return self.rng.uniform(-1, 1, (len(obs), 9)).astype(np.float32)


def main(args: Args) -> None:
    for number in (1, 4, 7):
        envs = [
            fmer_kitchen.make_env(fmer_kitchen.TASKS[:number]) for _ in range(args.eval_episodes)
        ]
        folder = args.results / f"FrankaKitchen-v1-{number}" / "random"
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(1, args.seeds + 1):
            episodes = fmer_kitchen.evaluate(RandomAgent(seed), envs)
            with open(folder / f"seed_{seed}.csv", "w", newline="") as file:
                table = csv.DictWriter(file, ["step", "episode", *episodes[0]], lineterminator="\n")
                table.writeheader()
                table.writerows({"step": 0, "episode": i} | each for i, each in enumerate(episodes))


if __name__ == "__main__":
    main(tyro.cli(Args))
