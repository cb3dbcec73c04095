"""What runs logged to TensorBoard, as a Markdown table of means and quantiles.

    python figures/metrics.py --start 30000 --runs runs/benchmark/Hopper-v4/fmer/*/

The seeds of a method, folders seed_<k> side by side, share their rows.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@dataclass
class Args:
    """Print means and quantiles of TensorBoard's scalars."""

    runs: tuple[Path, ...]  # run directories
    keys: tuple[str, ...] = ()  # scalars to print; none: all of losses/
    start: int = 0  # first step that counts


def read(args: Args) -> dict[tuple[str, str], list[list[float]]]:
    """{(method, key): the values of each of its runs, from --start on}."""
    values = {}
    for folder in args.runs:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        logged = events.Tags()["scalars"]
        if not logged:
            raise SystemExit(f"error: {folder} holds no TensorBoard scalars")
        seeds = folder.name.startswith("seed_")
        method = folder.parent.name if seeds else folder.name
        for key in args.keys or [key for key in logged if key.startswith("losses/")]:
            points = events.Scalars(key) if key in logged else []
            run = [point.value for point in points if point.step >= args.start]
            if run:
                values.setdefault((method, key), []).append(run)
    return values


def main(args: Args) -> None:
    print("| run | metric | 5 % | mean | 95 % | last |")
    print("|---|---|--:|--:|--:|--:|")
    for (method, key), runs in read(args).items():
        pooled = np.concatenate(runs)
        low, high = np.quantile(pooled, [0.05, 0.95])
        last = np.mean([run[-1] for run in runs])
        cells = [f"{x:.3g}" for x in (low, pooled.mean(), high, last)]
        print(f"| {method} | `{key}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(tyro.cli(Args))
