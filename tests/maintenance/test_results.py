"""results/: what the pages there say is what their commands print; nothing stored twice."""

import glob
import json
import re
import shlex
import subprocess
from pathlib import Path

import kills
import numpy as np
import pytest
import tyro
from scipy.stats import f as f_distribution
from scipy.stats import f_oneway, nct, t

import fmer_continuous
import fmer_kitchen
from figures import (
    advantages,
    diagnose,
    kitchen_filmstrip,
    kitchen_progress,
    kitchen_random,
    learning_curves,
    metrics,
    multigoal,
    sac_cleanrl,
    second_task,
    speed,
)

ROOT = Path(__file__).parent.parent.parent
PAGES = {path.name: path.read_text() for path in (ROOT / "results").glob("*.md")}
TEXT = "".join(PAGES.values())
MODULES = {
    "fmer_continuous.py": fmer_continuous,
    "fmer_kitchen.py": fmer_kitchen,
    "figures/advantages.py": advantages,
    "figures/cuda_graphs.py": fmer_continuous,  # its flags
    "figures/diagnose.py": diagnose,
    "figures/kitchen_filmstrip.py": kitchen_filmstrip,
    "figures/kitchen_progress.py": kitchen_progress,
    "figures/kitchen_random.py": kitchen_random,
    "figures/learning_curves.py": learning_curves,
    "figures/metrics.py": metrics,
    "figures/multigoal.py": multigoal,
    "figures/sac_cleanrl.py": sac_cleanrl,
    "figures/second_task.py": second_task,
    "figures/speed.py": speed,
    "tests/maintenance/kills.py": kills,
}


def commands():
    found = re.findall(r"^    (.+)$", TEXT, re.M) + re.findall(r"`([^`]+)`", TEXT)
    return [
        line for line in found if line.startswith("python ") or "./benchmark.sh" in line
    ]


def test_tables_are_the_output_of_their_command(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = [line for line in commands() if "learning_curves.py" in line]
    lines = [line for line in lines if "--out" not in line and "runs/" not in line]
    assert len(lines) == 9
    for line in lines:
        learning_curves.main(tyro.cli(learning_curves.Args, args=shlex.split(line)[2:]))
        assert capsys.readouterr().out in TEXT, line


@pytest.mark.parametrize("task", ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"])
def test_the_first_page_has_the_recorded_results(task):
    curves = learning_curves.load(learning_curves.Args((ROOT / "results",), tasks=(task,)))
    cells = [task]
    for method in ("fmer", "sac-cleanrl"):
        steps, scores, _ = curves[task][method]
        last = scores[:, -1]
        low, high = learning_curves.interval(last)
        mean = f"{learning_curves.iqm(last):.0f} [{low:.0f}, {high:.0f}]"
        cells += [f"{steps[-1]:,}"] if len(cells) == 1 else []
        assert f"{steps[-1]:,}" == cells[1], "both methods after as many steps"
        cells.append(f"{mean}, {learning_curves.count(scores)}")
    assert "| " + " | ".join(cells) + " |" in (ROOT / "README.md").read_text()


def test_the_tables_of_the_kitchens_training_are_the_output_of_their_command(
    capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    lines = [line for line in commands() if "kitchen_progress.py" in line]
    assert len(lines) == 8
    for line in lines:
        words = [sorted(glob.glob(word)) or [word] for word in shlex.split(line)[2:]]
        args = tyro.cli(kitchen_progress.Args, args=sum(words, []))
        kitchen_progress.main(args)
        assert len(args.runs) > (1 if args.single_tasks else 5)
        assert capsys.readouterr().out in TEXT, line


def after_warm_up(path):
    """(did a task, q_bias) of each training episode from 20,000 to 40,000 steps."""
    table = kitchen_progress.episodes(path)
    part = (20_000 < table["step"]) & (table["step"] <= 40_000)
    assert part.sum() == 71
    return table["tasks_completed"][part] > 0, table["q_bias"][part]


def test_changes_with_three_seeds_are_compared_by_their_episodes():
    section = PAGES["kitchen.md"].split("### One change, three seeds")[1].split("\n\n")
    rows = [line.strip("| ").split(" | ") for line in section[2].splitlines()[2:]]
    done, bias = [], []
    for name, *_, counts, biases in rows:
        parent = "FrankaKitchen-v1-7" if name == "`fmer`" else "levers/FrankaKitchen-v1-7"
        folder = ROOT / "results" / parent / name.strip("`")
        seeds = [after_warm_up(folder / f"train_{seed}.csv") for seed in (1, 2, 3)]
        done.append([did_a_task.sum() for did_a_task, _ in seeds])
        bias.append([q_bias.mean() for _, q_bias in seeds])
        assert counts == " ".join(map(str, done[-1])), name
        assert biases == " ".join(f"{value:.2f}" for value in bias[-1]), name
    claims = re.sub(r"\s+", " ", section[3])
    within = np.sqrt(np.var(done, axis=1, ddof=1).mean())
    between = np.std(np.mean(done, axis=1), ddof=1)
    assert f"deviate by {within:.1f} episodes" in claims
    assert f"would by {within / np.sqrt(3):.1f}; the means of the {len(rows)} " in claims
    assert f"rows deviate by {between:.1f}" in claims
    for values in (done, bias):
        statistic, p = f_oneway(*values)
        assert f"F = {statistic:.1f}, p = {p:.2g})" in claims
    cells = np.array(done)  # two-way: settings and seeds
    rest = cells - cells.mean(1, keepdims=True) - cells.mean(0) + cells.mean()
    freedom = len(rows) - 1, 2 * (len(rows) - 1)
    statistic = 3 * between**2 / (np.sum(rest**2) / freedom[1])
    p = f_distribution.sf(statistic, *freedom)
    assert f"blocks (F = {statistic:.1f}, p = {p:.2g})" in claims
    correlation = np.corrcoef(np.mean(done, axis=1), np.mean(bias, axis=1))[0, 1]
    assert f"correlation of the means is {correlation:.2f}" in claims
    assert f"the mean of all, {np.mean(done):.1f}," in claims
    assert "takes 6 seeds, half as much again 18 (a two-sided t-test at p = 0.05" in claims
    for share, seeds in ((1, 6), (0.5, 18)):
        n = np.array([seeds - 1, seeds])
        shift = share * np.mean(done) / (within * np.sqrt(2 / n))
        power = nct.sf(t.ppf(0.975, 2 * n - 2), 2 * n - 2, shift)
        assert power[0] < 0.8 <= power[1]
    for page in (PAGES["kitchen.md"], (ROOT / "README.md").read_text()):
        assert f"[{len(rows) - 2} settings](" in page, "all rows but the two of `fmer`"


def test_every_command_parses_and_every_table_has_one():
    suites, used = set(), set()
    for command in commands():
        words = shlex.split(command)
        if "./benchmark.sh" in words:
            suites |= set(words[words.index("./benchmark.sh") + 1 :]) - {"--dry-run"}
        else:
            tyro.cli(MODULES[words[1]].Args, args=words[2:])
            used.add(words[1])
    assert used == set(MODULES)
    listed = subprocess.run([ROOT / "benchmark.sh"], capture_output=True, text=True).stdout
    names = re.findall(r"^(\w+) +\d+ +[\d.-]+  ", listed, re.M)
    assert suites == set(names) and len(names) == 7
    sections = sum([page.split("\n## ")[1:] for page in PAGES.values()], [])
    assert len(sections) > 20
    for section in sections:
        tables = section.count("|--")
        made = "./benchmark.sh " in section or "python tests/" in section
        assert not tables or made, section.splitlines()[0]


def test_published_numbers_are_those_of_the_picture():
    tasks = ["HalfCheetah", "Walker2d", "Humanoid", "Hopper"]
    tasks += [f"FrankaKitchen-v1-{number}" for number in (1, 4, 7)]
    for i, method in enumerate(("FMER", "SAC")):
        levels = [learning_curves.PAPER.get(task, ("", ""))[i] for task in tasks]
        row = " | ".join([f"{method}, paper", *map(str, levels)])
        assert f"| {row} |".replace("|  |", "| |") in PAGES["README.md"]
    levels = ["{} ± {}".format(*learning_curves.CLEANRL[task]) for task in tasks[:4]]
    row = " | ".join(["SAC, CleanRL (v4)", *levels])
    assert f"| {row} | | | |" in PAGES["README.md"]


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", page, re.M)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


def test_pictures_and_links_lead_somewhere():
    for name, page in PAGES.items():
        for target in re.findall(r"\]\(([^)]+)\)", page):
            file, _, anchor = target.partition("#")
            path = (ROOT / "results" / (file or name)).resolve()
            assert path.exists(), (name, target)
            assert not anchor or anchor in anchors(path.read_text()), (name, target)


def test_no_curve_is_stored_twice_and_each_says_how_it_was_made():
    curves = list((ROOT / "results").rglob("seed_*"))
    assert curves and {path.suffix for path in curves} == {".csv"}
    trained = [path.read_text() for path in curves if path.parent.name != "random"]
    assert len(set(trained)) == len(trained)
    for folder in {path.parent for path in curves}:
        assert shlex.quote(str(folder)) == str(folder) and "=" not in folder.name
        about = json.loads((folder / "about.json").read_text())
        assert {"command", "commit", "hardware"} <= about.keys()


def test_ablations_are_recorded_under_the_names_of_the_suite():
    command = [ROOT / "benchmark.sh", "--dry-run", "ablations"]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    suite = set(re.findall(r"/ablations/HalfCheetah-v4/(\S+)/seed_1 ", listed))
    folder = ROOT / "results/former/ablations/HalfCheetah-v4"
    recorded = {path.name for path in folder.iterdir()}
    assert recorded - suite == {"Mtarget1", "entropy_off_10k", "fmer_again"}
    for name in suite - recorded:
        assert f"`{name}`" in TEXT, "the pages say what has no row yet"
