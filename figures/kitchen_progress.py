"""What training in the kitchen went through, from TensorBoard, as a Markdown table:

    python figures/kitchen_progress.py --runs runs/benchmark/FrankaKitchen-v1-*/*/seed_*/

Steps to the first and to the fifth completed task tell how long finding it took; the tasks
per training episode, by parts of `--every` steps, how well it was then learned and kept;
the mean of `charts/q_bias`, how true the critics were. `--out` keeps the episodes as CSV.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COLUMNS = ["step", "tasks_completed", "length", "q_bias"]


@dataclass
class Args:
    """Print what training in the kitchen went through."""

    runs: tuple[Path, ...]  # run directories, or CSV files that --out has written
    every: int = 10_000  # steps of a part
    out: Path | None = None  # folder for <task>/<method>/train_<seed>.csv


def episodes(run: Path) -> np.ndarray:
    """A row of COLUMNS for each training episode."""
    if run.suffix == ".csv":
        return np.atleast_2d(np.loadtxt(run, delimiter=",", skiprows=1))
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    keys = ["charts/episodic_tasks_completed", "charts/episodic_length", "charts/q_bias"]
    if missing := [key for key in keys if key not in events.Tags()["scalars"]]:
        raise SystemExit(f"error: {run} has not logged {missing[0]}")
    done, length, bias = [{e.step: e.value for e in events.Scalars(key)} for key in keys]
    rows = [[step, done[step], length[step], bias.get(step, np.nan)] for step in done]
    return np.array(rows)  # runs of an early commit have no bias in warm-up


def parts(table: np.ndarray, column: str, every: int) -> str:
    """The column's means over parts of so many steps."""
    part = (table[:, 0].astype(int) - 1) // every
    values = table[:, COLUMNS.index(column)]
    groups = [values[(part == i) & ~np.isnan(values)] for i in range(part[-1] + 1)]
    return " ".join(f"{group.mean():.2f}" if len(group) else "-" for group in groups)


def row(run: Path, args: Args) -> str:
    table = episodes(run)
    task, method = run.absolute().parts[-3:-1]
    seed = run.stem.split("_")[-1]
    if args.out:
        path = args.out / task / method / f"train_{seed}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        header = ",".join(COLUMNS)
        np.savetxt(path, table, "%.6g", ",", header=header, comments="")
    done = np.repeat(table[:, 0], table[:, 1].astype(int))
    first, fifth = [f"{done[n]:,.0f}" if len(done) > n else "-" for n in (0, 4)]
    tasks = parts(table, "tasks_completed", args.every)
    bias = parts(table, "q_bias", args.every)
    name = f"{task.removeprefix('FrankaKitchen-v1-')}, `{method}`, {seed}"
    return f"| {name} | {table[-1, 0]:,.0f} | {first} | {fifth} | {tasks} | {bias} |"


def main(args: Args) -> None:
    print("| tasks, run, seed | steps | first | fifth | tasks per episode | q_bias |")
    print("|---|--:|--:|--:|---|---|")
    for run in args.runs:
        print(row(run, args))


if __name__ == "__main__":
    main(tyro.cli(Args))
