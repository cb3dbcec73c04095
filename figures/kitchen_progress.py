"""What training in the kitchen went through, from TensorBoard, as a Markdown table:

    python figures/kitchen_progress.py --runs runs/benchmark/FrankaKitchen-v1-*/*/seed_*/

Steps to the first and to the fifth completed task tell how long finding it took; the tasks
per training episode, by parts of `--every` steps, how well it was then learned and kept;
the mean of `charts/q_bias`, how true the critics were. `--single-tasks` prints the share
of the episodes in which each task was done instead. `--out` keeps the episodes as CSV.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

KEYS = {"tasks_completed": "charts/episodic_tasks_completed"}
KEYS |= {"length": "charts/episodic_length", "q_bias": "charts/q_bias"}
SINGLE = "charts/episodic_task/"


@dataclass
class Args:
    """Print what training in the kitchen went through."""

    runs: tuple[Path, ...]  # run directories, or CSV files that --out has written
    every: int = 10_000  # steps of a part
    single_tasks: bool = False  # a row for each task that was ever done
    out: Path | None = None  # folder for <task>/<method>/train_<seed>.csv


def episodes(run: Path) -> dict[str, np.ndarray]:
    """Of all training episodes: last step, each of KEYS, and each task by its name."""
    if run.suffix == ".csv":
        with open(run) as file:
            columns = file.readline().strip().split(",")
            table = np.loadtxt(file, delimiter=",", ndmin=2)
        return dict(zip(columns, table.T, strict=True))
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    if missing := [key for key in KEYS.values() if key not in tags]:
        raise SystemExit(f"error: {run} has not logged {missing[0]}")
    keys = KEYS | {tag.removeprefix(SINGLE): tag for tag in tags if tag.startswith(SINGLE)}
    values = {name: {e.step: e.value for e in events.Scalars(keys[name])} for name in keys}
    steps = list(values["tasks_completed"])
    table = {"step": np.array(steps)}
    for name, value in values.items():  # runs of an early commit have no bias in warm-up
        table[name] = np.array([value.get(step, np.nan) for step in steps])
    return table


def parts(table: dict, column: str, every: int) -> str:
    """The column's means over parts of so many steps."""
    part = (table["step"].astype(int) - 1) // every
    values = table[column]
    groups = [values[(part == i) & ~np.isnan(values)] for i in range(part[-1] + 1)]
    return " ".join(f"{group.mean():.2f}" if len(group) else "-" for group in groups)


def rows(run: Path, args: Args) -> list[str]:
    table = episodes(run)
    task, method = run.absolute().parts[-3:-1]
    seed = run.stem.split("_")[-1]
    if args.out:
        path = args.out / task / method / f"train_{seed}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = np.stack(list(table.values()), axis=1)
        np.savetxt(path, content, "%.6g", ",", header=",".join(table), comments="")
    name = f"{task.removeprefix('FrankaKitchen-v1-')}, `{method}`, {seed}"
    if args.single_tasks:
        single = [x for x in table if x not in ["step", *KEYS]]
        if not single:
            raise SystemExit(f"error: {run} does not tell the tasks apart")
        done = [x for x in single if table[x].any()]
        return [f"| {name} | {x} | {parts(table, x, args.every)} |" for x in done]
    steps = table["step"]
    done = np.repeat(steps, table["tasks_completed"].astype(int))
    first, fifth = [f"{done[n]:,.0f}" if len(done) > n else "-" for n in (0, 4)]
    tasks = parts(table, "tasks_completed", args.every)
    bias = parts(table, "q_bias", args.every)
    return [f"| {name} | {steps[-1]:,.0f} | {first} | {fifth} | {tasks} | {bias} |"]


def main(args: Args) -> None:
    if args.single_tasks:
        print("| tasks, run, seed | task | done in so many of the episodes |")
        print("|---|---|---|")
    else:
        print("| tasks, run, seed | steps | first | fifth | tasks per episode | q_bias |")
        print("|---|--:|--:|--:|---|---|")
    for run in args.runs:
        for row in rows(run, args):
            print(row)


if __name__ == "__main__":
    main(tyro.cli(Args))
