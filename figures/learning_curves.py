"""Learning curves of recorded runs: a Markdown table, and a picture if --out names one.

    python figures/learning_curves.py --out figures/learning_curves.png
    python figures/learning_curves.py --ablations --results runs/benchmark
    python figures/learning_curves.py --runs runs/*

A score is the mean over the episodes of one evaluation. Of the seeds' scores we give the
interquartile mean (IQM) and the range; from 5 seeds on, the 95 % bootstrap interval of the
IQM instead of the range.
"""

import csv
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
import tyro
from matplotlib.figure import Figure
from scipy.stats import bootstrap, trim_mean

BASELINE = "fmer"  # what the ablations change
PAPER = {  # FMER and SAC, quoted second-hand: best evaluation, 5 seeds, 1M steps, v5
    "HalfCheetah": (12332, 10295),
    "Walker2d": (5285, 4453),
    "Humanoid": (5286, 5351),
    "FrankaKitchen-v1-1": (100, 80),
    "FrankaKitchen-v1-4": (50, 31),
    "FrankaKitchen-v1-7": (45.71, 17.43),
}
CLEANRL = {  # its SAC, v4, by docs/benchmark/sac.md of fe8d8a0: training returns, 3 seeds
    "HalfCheetah": (9635, 1424),
    "Hopper": (2310, 343),
    "Humanoid": (4996, 686),
    "Walker2d": (3591, 911),
}
iqm = partial(trim_mean, proportiontocut=0.25)  # over axis 0, the seeds


class Method(NamedTuple):
    """The runs of one method on one task."""

    steps: np.ndarray  # (S,), those that all seeds share
    scores: np.ndarray  # (seeds, S)
    seeds: dict[str, dict[int, float]]  # {step: score} of each, to its own end


Curves = dict[str, dict[str, Method]]  # by task and method


@dataclass
class Args:
    """Print a table of recorded runs, and draw them."""

    results: tuple[Path, ...] = (Path("results"),)  # <task>/<method>/seed_<k>.csv in each
    tasks: tuple[str, ...] = ()  # only these, in this order
    until: float = math.inf  # evaluations up to this step
    beyond: float = -1  # methods with a run of more steps than this
    ablations: bool = False  # those in <results>/ablations
    by_seed: bool = False  # each seed to its own end, instead of means and intervals
    paper: bool = True  # rows of what the paper and CleanRL report
    runs: tuple[Path, ...] = ()  # these run directories instead
    out: Path | None = None  # the picture to write; none: only the table


def find(args: Args) -> list[tuple[str, str, str, Path]]:
    """(task, method, seed, curve) of every run."""
    found = []
    for folder in args.runs:
        name = folder.resolve().name
        parts = name.rsplit("__", 3)  # task, method, seed, time
        key = parts[:3] if len(parts) == 4 else ["runs", name, "1"]
        found.append((*key, folder / "eval.csv"))
    if found:
        return found
    pattern = "ablations/*/*/seed_*" if args.ablations else "*/*/seed_*"
    paths = [path for folder in args.results for path in sorted(folder.glob(pattern))]
    for path in paths:
        curve = path / "eval.csv" if path.is_dir() else path
        if curve.suffix == ".csv" and curve.exists():
            found.append((path.parent.parent.name, path.parent.name, path.stem, curve))
    return found


def is_kitchen(task: str) -> bool:
    return task.startswith("FrankaKitchen")


def score_name(task: str) -> str:
    return "tasks done (%)" if is_kitchen(task) else "return"


def read_curve(path: Path, task: str) -> dict[int, float]:
    """{step: score}: a return, or the percentage of the kitchen's tasks that were done."""
    scale, column = (100, "success_rate") if is_kitchen(task) else (1, "return")
    episodes = {}
    try:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                episodes.setdefault(int(row["step"]), []).append(scale * float(row[column]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SystemExit(f"error: cannot read {path}: {error!r}") from None
    curve = {step: float(np.mean(scores)) for step, scores in episodes.items()}
    if not curve or not np.isfinite(list(curve.values())).all():
        raise SystemExit(f"error: {path} holds no evaluation, or one that is not finite")
    return curve


def load(args: Args) -> Curves:
    """The runs that `args` names, by task and method."""
    found = {}
    for task, method, seed, path in find(args):
        if args.tasks and task not in args.tasks:
            continue
        seeds = found.setdefault((is_kitchen(task), task, method), {})
        if seed in seeds:
            raise SystemExit(f"error: {path} is {task}/{method}/{seed} a second time")
        seeds[seed] = read_curve(path, task)
    if not found:
        where = " ".join(map(str, args.results)) + ("/ablations" if args.ablations else "")
        raise SystemExit(f"error: no <task>/<method>/seed_<k>.csv in {where!r}")
    curves = {}
    for (_, task, method), seeds in sorted(found.items()):  # the kitchen last
        if max(map(max, seeds.values())) <= args.beyond:
            continue
        whole = {
            seed: {step: score for step, score in curve.items() if step <= args.until}
            for seed, curve in seeds.items()
        }
        steps = sorted(set.intersection(*map(set, whole.values())))
        if not steps:
            shared = f"no evaluation up to step {args.until:g}"
            raise SystemExit(f"error: the seeds of {task}/{method} share {shared}")
        scores = [[curve[step] for step in steps] for curve in whole.values()]
        runs = Method(np.array(steps), np.array(scores), whole)
        curves.setdefault(task, {})[method] = runs
    if not curves:
        raise SystemExit(f"error: no run has more than {args.beyond:g} steps")
    order = args.tasks or curves
    return {task: curves[task] for task in order if task in curves}


def interval(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The range of the seeds; of 5 and more, the 95 % bootstrap interval of their IQM."""
    if len(scores) < 5:
        return scores.min(0), scores.max(0)
    return bootstrap((scores,), iqm, method="percentile", rng=0).confidence_interval


def count(scores: np.ndarray) -> str:
    return f"{len(scores)} seed{'s' if len(scores) > 1 else ''}"


def without_version(task: str) -> str:
    return task.removesuffix("-v4").removesuffix("-v5")


def paper(task: str) -> dict[str, float]:
    """{label: score}: what the paper reports for the task, or for its v5."""
    levels = PAPER.get(without_version(task), ())
    version = "" if is_kitchen(task) else "v5, "
    labels = [f"{method}, paper ({version}1M steps, max)" for method in ("FMER", "SAC")]
    return dict(zip(labels, levels, strict=False))


def cleanrl(task: str) -> dict[str, tuple[float, float]]:
    """{label: (mean, deviation)}: what CleanRL reports for the task, or for its v4."""
    name = without_version(task)
    label = "SAC, CleanRL (v4, 1M steps, training)"
    return {label: CLEANRL[name]} if name in CLEANRL else {}


def table(curves: Curves, with_paper: bool) -> str:
    """A row for each task and method: its last evaluation, and means over all seeds."""
    brackets = "[range; of 5 seeds and more the 95 % interval]"
    lines = [
        f"| task | method | last: IQM {brackets} | last three | all after step 0 | best |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for task, methods in curves.items():
        digits, unit = (1, " %") if is_kitchen(task) else (0, "")
        for method, (steps, scores, _) in methods.items():
            last = f"{iqm(scores[:, -1]):.{digits}f}{unit}"
            if len(scores) > 1:
                low, high = interval(scores[:, -1])
                last += f" [{low:.{digits}f}, {high:.{digits}f}]"
            last += f" ({count(scores)}, {steps[-1]:,} steps)"
            learned = scores[:, 1:] if len(steps) > 1 else scores  # not the untrained
            means = learned[:, -3:].mean(), learned.mean(), scores.max(1).mean()
            others = " | ".join(f"{mean:.{digits}f}{unit}" for mean in means)
            lines.append(f"| {task} | {method} | {last} | {others} |")
        if with_paper:
            for label, level in paper(task).items():
                lines.append(f"| {task} | {label} | | | | {level}{unit} |")
            for label, (mean, deviation) in cleanrl(task).items():
                cell = f"{mean} ± {deviation} (3 seeds)"
                lines.append(f"| {task} | {label} | {cell} | | | |")
    return "\n".join(lines)


def table_by_seed(curves: Curves) -> str:
    """A row for each task and method, in each cell a number for each seed."""
    lines = [
        "| task | method | steps | last | last three | all after step 0 |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for task, methods in curves.items():
        digits = 1 if is_kitchen(task) else 0
        for method, runs in methods.items():
            names = [seed.removeprefix("seed_") for seed in runs.seeds]
            counted = names == [str(i + 1) for i in range(len(names))]
            name = method if counted else f"{method}, seed {' '.join(names)}"
            ends = [f"{max(seed):,}" for seed in runs.seeds.values()]
            cells = [ends[0] if len(set(ends)) == 1 else " ".join(ends)]
            scores = [
                [curve[step] for step in sorted(curve)] for curve in runs.seeds.values()
            ]
            learned = [curve[1:] or curve for curve in scores]  # not the untrained
            for number in (1, 3, None):
                last = [curve[-number:] if number else curve for curve in learned]
                cells.append(" ".join(f"{np.mean(part):.{digits}f}" for part in last))
            lines.append(f"| {task} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rises(methods: dict) -> bool:
    return any(runs.scores.max() > runs.scores[:, 0].max() for runs in methods.values())


def draw(curves: Curves) -> Figure:
    """A panel for each task with curves, those that rise first. Thin lines: the seeds."""
    drawn = [
        t for t, m in curves.items() if any(len(runs.steps) > 1 for runs in m.values())
    ]
    if not drawn:
        raise SystemExit("error: nothing to draw: no run was evaluated twice")
    drawn.sort(key=lambda task: not rises(curves[task]))
    names = sorted({method for task in drawn for method in curves[task]})
    columns = min(len(drawn), 4)
    rows = math.ceil(len(drawn) / columns)
    figure = Figure((2.9 * columns, 2.7 * rows))
    for i, task in enumerate(drawn):
        panel = figure.add_subplot(rows, columns, i + 1)
        for method, runs in curves[task].items():
            draw_curve(panel, method, runs, f"C{names.index(method)}")
        beyond = draw_published(panel, task)
        bottom, top = panel.get_ylim()
        panel.set_yticks([tick for tick in panel.get_yticks() if bottom <= tick <= top])
        lines = len(curves[task]) + len(beyond.splitlines())
        panel.set_ylim(bottom, top + 0.13 * (1 + lines) * (top - bottom))  # for the legend
        legend = panel.legend(loc="upper left", alignment="left", title=beyond, fontsize=8)
        legend.get_title().set(color="0.4", size=7)
        panel.set(title=task, ylabel=score_name(task))
        panel.margins(x=0)
    figure.supxlabel("environment steps (thousands)", size="medium")
    return figure


def draw_curve(panel, method: str, runs: Method, colour: str) -> None:
    """Thick: the IQM while all seeds go on. Thin: each seed to its end."""
    steps, scores, seeds = runs
    label = f"{method} ({count(scores)})"
    if len(steps) == 1:  # a policy that does not learn
        panel.axhline(iqm(scores)[0], color=colour, lw=1.2, ls="--", label=label)
        return
    panel.fill_between(steps / 1000, *interval(scores), color=colour, alpha=0.15, lw=0)
    for curve in seeds.values():
        x, y = np.array([*curve]) / 1000, [*curve.values()]
        panel.plot(x, y, color=colour, lw=0.6, alpha=0.5)
    panel.plot(steps / 1000, iqm(scores), color=colour, lw=1.8, label=label)


def draw_published(panel, task: str) -> str:
    """Published levels as lines. Returned in words: those too high for the curves."""
    highest = 100 if is_kitchen(task) else 1.2 * panel.get_ylim()[1]
    levels = [(label, level, "bottom") for label, level in paper(task).items()]
    levels += [(label, mean, "top") for label, (mean, _) in cleanrl(task).items()]
    behind = dict(facecolor="white", edgecolor="none", alpha=0.7, pad=0.5)
    style = dict(xycoords=("axes fraction", "data"), color="0.4", size=7, bbox=behind)
    beyond = []
    for label, level, edge in levels:  # above or below its line: levels may be close
        text = f"{label.split(' (')[0]}: {level}"
        if level > highest:
            beyond.append(f"↑ {text}")
        else:
            panel.axhline(level, color="0.5", lw=0.9, ls=":")
            panel.annotate(text, (0.01, level), va=edge, **style)
    return "\n".join(beyond)


def draw_ablations(curves: Curves) -> Figure:
    """A panel for each task: the last score of each seed (dots), their IQM (bar)."""
    most = max(len(methods) for methods in curves.values())
    figure = Figure((5 * len(curves), 0.9 + 0.23 * most))
    for i, (task, methods) in enumerate(curves.items()):
        last = {method: runs.scores[:, -1] for method, runs in methods.items()}
        ranked = sorted(last, key=lambda method, last=last: iqm(last[method]))
        panel = figure.add_subplot(1, len(curves), i + 1)
        for y, method in enumerate(ranked):
            x = last[method]
            panel.plot(x, np.full(len(x), y), "o", color="C0", ms=4, alpha=0.5)
            panel.plot(iqm(x), y, "|", color="C1", ms=11, mew=2)
        if BASELINE in last:
            panel.axvspan(*interval(last[BASELINE]), color="0.93")
        panel.set(title=task, yticks=range(len(ranked)), yticklabels=ranked)
        panel.set_xlabel(f"last {score_name(task)}, shaded: {BASELINE}")
        panel.grid(axis="x")
    return figure


def main(args: Args) -> None:
    """Print the table; write the picture, if it has a name."""
    curves = load(args)
    if args.by_seed:
        print(table_by_seed(curves))
    else:
        print(table(curves, args.paper and not args.ablations and args.until == math.inf))
    if args.out:
        with matplotlib.style.context(Path(__file__).with_name("style.mplstyle")):
            figure = draw_ablations(curves) if args.ablations else draw(curves)
            figure.savefig(args.out)


if __name__ == "__main__":
    main(tyro.cli(Args))
