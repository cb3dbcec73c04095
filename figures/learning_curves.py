"""Learning curves of recorded runs: a figure with one panel per task, and a Markdown table.

Line: interquartile mean over seeds of the mean over evaluation episodes. Band: its 95 % bootstrap
interval. Thin lines: the seeds. A curve is the `eval.csv` of a run.
"""

import csv
import gzip
import math
import re
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # Okabe and Ito
STYLE = {"font.size": 9, "axes.titleweight": "bold", "axes.titlelocation": "left"}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "0.6"}
STYLE |= {"axes.grid": True, "axes.grid.axis": "y", "grid.color": "0.9", "axes.xmargin": 0}
STYLE |= {"xtick.color": "0.3", "ytick.color": "0.3"}
STYLE |= {"legend.frameon": False, "legend.labelcolor": "linecolor", "legend.handlelength": 1}
PAPER = {"HalfCheetah-v5": "12332", "Walker2d-v5": "5285", "Humanoid-v5": "5286"}  # v4 differs
PAPER |= {f"FrankaKitchen-v1-{n}": f"{x} %" for n, x in ((1, "100"), (4, "50"), (7, "45.71"))}


@dataclass
class Args:
    """Draw the learning curves of recorded runs, and print a Markdown table of them."""

    results: Path = Path("results")  # holds <task>/<method>/seed_<k>.csv, or .csv.gz
    runs: tuple[Path, ...] = ()  # draw these run directories instead
    out: Path = Path("figures/learning_curves.png")  # the figure to write
    metric: str = "return"  # column to draw; on FrankaKitchen, return means success_rate
    final: bool = False  # draw the last score of each seed instead of the curves


def interquartile_mean(x: np.ndarray, axis: int = 0) -> np.ndarray:
    """IQM(x) = mean of x_(k+1) ≤ … ≤ x_(n-k), k = floor(n/4): the mean, if n < 4."""
    n = x.shape[axis]
    return np.sort(x, axis).take(range(n // 4, n - n // 4), axis).mean(axis)


def bootstrap_interval(scores: list[np.ndarray], statistic, level=0.95, resamples=2000, seed=0):
    """Quantiles (1 ∓ level)/2 of statistic(scores*), where scores* redraws the seeds of each task.

    One array (seeds, …) per task: redrawn with replacement, as many seeds as it has, then all put
    together for statistic(x, axis). With few seeds the interval is too narrow.
    """
    rng = np.random.default_rng(seed)
    redrawn = [x[rng.integers(len(x), size=(resamples, len(x)))] for x in scores]
    estimates = statistic(np.concatenate(redrawn, axis=1), axis=1)
    return np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2], axis=0)


def read_curve(path: Path, metric: str = "return") -> tuple[np.ndarray, np.ndarray]:
    """m(step) = mean of the metric over the episodes evaluated at step: (steps, mean_per_step)."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
            rows = np.array([(int(r["step"]), float(r[metric])) for r in csv.DictReader(file)])
    except KeyError as error:
        raise SystemExit(f"error: {path}: no column {error}") from None
    except Exception as error:  # a broken archive, not a number, …
        raise SystemExit(f"error: cannot read {path}: {error}") from None
    if not len(rows) or not np.isfinite(rows).all():
        raise SystemExit(f"error: {path}: {'NaN or infinite' if len(rows) else 'no'} evaluations")
    steps, index, counts = np.unique(rows[:, 0], return_inverse=True, return_counts=True)
    return steps, np.bincount(index, rows[:, 1]) / counts


def common_steps(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """steps = ∩ steps_i, scores[i, j] = m_i(steps[j]): the evaluations that all seeds share."""
    steps = reduce(np.intersect1d, [own for own, _ in curves])
    return steps, np.stack([mean[np.isin(own, steps)] for own, mean in curves])


def load(args: Args) -> dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]]:
    """{(task, method, metric): (steps, scores[seed, step])}, success rates in percent.

    A run directory is <task>__<method>__<seed>__<time>, otherwise read as <task>/<method>_<seed>.
    """
    found: dict[tuple[str, str, str], dict[str, Path]] = {}
    recorded = [] if args.runs else sorted(args.results.glob("*/*/seed_*.csv*"))
    for path in recorded + [folder.resolve() / "eval.csv" for folder in args.runs]:
        task, name = path.parent.parent.name, path.parent.name
        run = re.fullmatch(r"(.+?)__(.+)__(\d+)__\d+", name)
        if recorded:
            method, seed = name, path.name.removeprefix("seed_").split(".")[0]
        elif run:
            task, method, seed = run.groups()
        else:
            method, seed = re.fullmatch(r"(.*?)(?:_s?(\d+))?", name).groups("")
        rate = task.startswith("FrankaKitchen") and args.metric == "return"
        key = task, method, "success_rate" if rate else args.metric
        other = found.setdefault(key, {}).setdefault(seed, path)
        if other != path:
            raise SystemExit(f"error: the same seed twice: {other} and {path}")
    if not found:
        raise SystemExit(f"error: no <task>/<method>/seed_<k>.csv in {str(args.results)!r}")
    curves = {}
    for key, paths in sorted(found.items()):
        steps, scores = common_steps([read_curve(path, key[2]) for path in paths.values()])
        if not len(steps):
            raise SystemExit(f"error: the seeds of {'/'.join(key[:2])} share no evaluation step")
        curves[key] = steps, scores * (100 if key[2] == "success_rate" else 1)
    return curves


def table(curves: dict, metric: str = "return") -> str:
    """A row per task and method: scores at the last step its seeds share, best scores up to it."""
    best = f"maximum of the mean {metric} over evaluations: mean over seeds"
    text = f"| task | method | seeds | steps | final {metric}: IQM [95 % interval] | {best} "
    text += "| FMER, paper (1M steps, max) |\n|---|---|--:|--:|--:|--:|--:|"
    for (task, method, shown), (steps, scores) in curves.items():
        unit, final = " %" if shown == "success_rate" else "", scores[:, -1]
        low, high = bootstrap_interval([final], interquartile_mean)
        interval = f" [{low:.1f}, {high:.1f}]" if len(scores) > 1 else ""
        text += f"\n| {task} | {method} | {len(scores)} | {steps[-1]:,.0f} "
        text += f"| {interquartile_mean(final):.1f}{unit}{interval} "
        text += f"| {scores.max(axis=1).mean():.1f}{unit} "
        text += f"| {PAPER.get(task, '') if metric == 'return' else ''} |"
    return text


def draw(curves: dict) -> Figure:
    """One panel per task; a method has one colour in all of them."""
    tasks, methods = (sorted({key[i] for key in curves}) for i in (0, 1))
    columns = 2 if len(tasks) == 4 else min(len(tasks), 3)
    rows = math.ceil(len(tasks) / columns)
    figure = Figure((3.5 * columns, 2.7 * rows), layout="constrained")
    panels = {task: figure.add_subplot(rows, columns, i + 1) for i, task in enumerate(tasks)}
    for (task, method, _), (steps, scores) in curves.items():
        panel, x, mean = panels[task], steps / 1000, interquartile_mean(scores)
        colour = COLOURS[methods.index(method) % len(COLOURS)]
        label = f"{method} ({len(scores)} seed{'s' if len(scores) > 1 else ''})"
        if len(steps) == 1:  # a policy that does not learn
            panel.axhline(mean[0], color=colour, lw=1.2, ls="--", label=label)
            continue
        low, high = bootstrap_interval([scores], interquartile_mean)
        panel.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        panel.plot(x, scores.T, color=colour, lw=0.6, alpha=0.35)
        panel.plot(x, mean, color=colour, lw=1.8, label=label, zorder=3)
    for task, _, metric in curves:
        panels[task].set(title=task, ylabel=metric.replace("_", " "))
        if metric == "success_rate":
            panels[task].set(ylim=(-3, 103), ylabel="success rate (%)")
        panels[task].legend()
    figure.align_ylabels()
    figure.supxlabel("environment steps (thousands)", size="medium")
    return figure


def draw_final(curves: dict) -> Figure:
    """One panel per task, one line per method: the last score of each seed, and their IQM."""
    tasks = sorted({key[0] for key in curves})
    methods = [key[1] for key in sorted(curves, key=lambda k: curves[k][1][:, -1].mean())]
    methods = sorted(set(methods), key=methods.index)
    figure = Figure((5 * len(tasks), 0.8 + 0.22 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        own = {key[1:]: curve for key, curve in curves.items() if key[0] == task}
        for (method, _), (_, scores) in own.items():
            y, final = methods.index(method), scores[:, -1]
            panel.plot(final, np.full(len(final), y), "o", color=COLOURS[0], ms=4, alpha=0.5)
            panel.plot(interquartile_mean(final), y, "|", color=COLOURS[1], ms=11, mew=2)
        last = max(steps[-1] for steps, _ in own.values())
        unit = "success rate (%)" if task.startswith("FrankaKitchen") else next(iter(own))[1]
        panel.set(xlabel=f"{unit.replace('_', ' ')} after {last:,.0f} steps")
        panel.set(title=task, yticks=range(len(methods)), yticklabels=methods)
        panel.grid(axis="x", color="0.9")
        panel.margins(x=0.04)
    return figure


def main(args: Args) -> None:
    """Write the figure, then print the table."""
    curves = load(args)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            (draw_final if args.final else draw)(curves).savefig(args.out, dpi=160)
    except (OSError, ValueError) as error:  # no permission, an unknown file format, …
        raise SystemExit(f"error: cannot write {args.out}: {error}") from None
    print(table(curves, args.metric))


if __name__ == "__main__":
    main(tyro.cli(Args))
