"""figures/learning_curves.py: statistics by hand, the table, the figure, refusals."""

import gzip
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import tyro

from figures import learning_curves as lc

SCRIPT = Path(lc.__file__)


def write(path, curve, column="return", episodes=2):
    """An eval.csv of unequal episodes whose mean is `curve`, {step: mean}."""
    lines = [f"step,episode,{column},length,seconds"]
    for step, mean in curve.items():
        offsets = np.arange(episodes) - (episodes - 1) / 2
        lines += [f"{step},{i},{mean + offset},7,0.5" for i, offset in enumerate(offsets)]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def results(tmp_path):
    """Two tasks; the four seeds of the first end at 30, 20, 20 and 20 thousand steps."""
    for seed, (a, b) in enumerate([(4, 1), (6, 3), (8, 5), (900, 7)], start=1):
        curve = {0: 0, 10_000: a, 20_000: b} | ({30_000: 99} if seed == 1 else {})
        write(tmp_path / f"HalfCheetah-v5/fmer/seed_{seed}.csv", curve)
    write(tmp_path / "HalfCheetah-v5/sac/seed_1.csv.gz", {0: -2, 10_000: 1, 20_000: 0.25})
    for seed, rate in enumerate([0.25, 0.75], start=1):
        kitchen = tmp_path / f"FrankaKitchen-v1-4/fmer/seed_{seed}.csv"
        write(kitchen, {0: 0, 10_000: rate, 20_000: rate / 2}, "success_rate")
    return tmp_path


def refusal(**args):
    with pytest.raises(SystemExit) as stop:
        lc.main(lc.Args(**args))
    message = str(stop.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    "x, expected",
    [([3], 3), ([1, 2, 6], 3), ([-100, 2, 4, 999], 3), ([5, 4, 3, 2, 1], 3),
     ([9, 8, 7, 6, 5, 4, 3, 2], 5.5)],
)  # fmt: skip
def test_interquartile_mean_drops_a_quarter_from_each_end(x, expected):
    assert lc.interquartile_mean(np.array(x)) == expected


def test_interquartile_mean_along_an_axis():
    x = np.array([[0, 50], [1, 10], [3, 20], [70, -9]])
    np.testing.assert_array_equal(lc.interquartile_mean(x), [2, 15])
    np.testing.assert_array_equal(lc.interquartile_mean(x.T, axis=1), [2, 15])


def test_bootstrap_of_two_seeds_is_binomial():
    """The mean of two draws from {0, 1} is 0, ½ or 1 with probabilities ¼, ½, ¼."""
    scores = [np.array([0.0, 1.0])]
    np.testing.assert_array_equal(lc.bootstrap_interval(scores, np.mean), [0, 1])
    np.testing.assert_array_equal(lc.bootstrap_interval(scores, np.mean, level=0.4), [0.5, 0.5])


def test_bootstrap_approaches_the_normal_interval():
    scores = np.random.default_rng(1).normal(3, 2, 101)
    low, high = lc.bootstrap_interval([scores], np.mean)
    half = 1.96 * scores.std() / np.sqrt(101)
    assert low == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(scores.mean() + half, abs=0.1 * half)


def test_bootstrap_is_stratified_by_task():
    """Seeds are never moved between tasks: if each task is constant, so is the statistic."""
    tasks = [np.full((3, 2), 1.0), np.full((5, 2), 9.0)]
    np.testing.assert_array_equal(lc.bootstrap_interval(tasks, np.mean), np.full((2, 2), 6.0))
    pooled = lc.bootstrap_interval([np.concatenate(tasks)], np.mean)
    assert (pooled[0] < 6).all() and (pooled[1] > 6).all()


def test_read_curve_averages_the_episodes_of_a_step(tmp_path):
    path = tmp_path / "eval.csv"
    path.write_text("step,episode,return\n10,0,4\n0,0,1\n10,1,8\n0,1,2\n10,2,9\n")
    steps, means = lc.read_curve(path)
    np.testing.assert_array_equal(steps, [0, 10])
    np.testing.assert_array_equal(means, [1.5, 7])
    zipped = write(tmp_path / "eval.csv.gz", {0: 3, 5: -4}, "length_", episodes=7)
    np.testing.assert_array_equal(lc.read_curve(zipped, "length_")[1], [3, -4])


def test_seeds_are_truncated_to_the_steps_they_share():
    first = np.array([0, 5, 10, 15]), np.array([1, 2, 3, 4])
    second = np.array([0, 10, 20]), np.array([5, 6, 7])
    steps, scores = lc.common_steps([first, second])
    np.testing.assert_array_equal(steps, [0, 10])
    np.testing.assert_array_equal(scores, [[1, 3], [5, 6]])


def test_table(results):
    """Final: IQM of 1, 3, 5, 7. Maximum: mean of 4, 6, 8, 900. Seed 1's step 30,000 is unshared."""
    head, rule, *rows = lc.table(lc.load(lc.Args(results))).splitlines()
    assert head == (
        "| task | method | seeds | steps | final return: IQM [95 % interval] | maximum of the mean "
        "return over evaluations: mean over seeds | FMER, paper (1M steps, max) |"
    )
    assert {line.count("|") for line in (head, rule, *rows)} == {8}
    assert rows == [
        "| FrankaKitchen-v1-4 | fmer | 2 | 20,000 | 25.0 % [12.5, 37.5] | 50.0 % | 50 % |",
        "| HalfCheetah-v5 | fmer | 4 | 20,000 | 4.0 [1.0, 7.0] | 229.5 | 12332 |",
        "| HalfCheetah-v5 | sac | 1 | 20,000 | 0.2 | 1.0 | 12332 |",
    ]


def test_the_paper_is_quoted_for_its_own_tasks_and_metric_only(tmp_path):
    for task in ("Walker2d-v4", "Walker2d-v5"):
        write(tmp_path / task / "fmer" / "seed_1.csv", {0: 1, 10: 2})
    old, new = lc.table(lc.load(lc.Args(tmp_path))).splitlines()[2:]
    assert old.endswith("| 2.0 |  |") and new.endswith("| 2.0 | 5285 |")
    length = lc.table(lc.load(lc.Args(tmp_path, metric="length")), "length")
    assert "final length" in length and "5285" not in length and length.endswith("| 7.0 |  |")


def test_names_of_run_directories(tmp_path):
    names = ["Hopper-v4__no_exact__entropy__3__1795", "Hopper-v4__no_exact__entropy__12__1801"]
    names += ["B_s1", "B_s2", "C_7", "D"]
    for name in names:
        write(tmp_path / "mine" / name / "eval.csv", {0: 1, 10: 2})
    runs = [str(tmp_path / "mine" / name) for name in names]
    curves = lc.load(tyro.cli(lc.Args, args=["--runs", *runs]))
    assert {key[:2]: len(scores) for key, (_, scores) in curves.items()} == {
        ("Hopper-v4", "no_exact__entropy"): 2,
        ("mine", "B"): 2, ("mine", "C"): 1, ("mine", "D"): 1,
    }  # fmt: skip


def test_panels_show_the_interquartile_mean_the_seeds_and_the_interval(results):
    figure = lc.draw(lc.load(lc.Args(results)))
    kitchen, cheetah = figure.axes
    assert [panel.get_title() for panel in figure.axes] == ["FrankaKitchen-v1-4", "HalfCheetah-v5"]
    assert [panel.get_ylabel() for panel in figure.axes] == ["success rate (%)", "return"]
    lines = {line.get_label(): line for line in cheetah.lines if line.get_label()[0] != "_"}
    assert list(lines) == ["fmer (4 seeds)", "sac (1 seed)"]
    np.testing.assert_array_equal(lines["fmer (4 seeds)"].get_xydata(), [[0, 0], [10, 7], [20, 4]])
    assert len(cheetah.lines) == (4 + 1) + (1 + 1)
    assert len({line.get_color() for line in lines.values()}) == 2
    assert kitchen.lines[0].get_color() == lines["fmer (4 seeds)"].get_color()
    band = cheetah.collections[0].get_paths()[0].vertices
    assert [band[band[:, 0] == 20, 1].min(), band[band[:, 0] == 20, 1].max()] == [1, 7]


def test_the_figure_is_written_and_not_blank(results, tmp_path, capsys):
    out = tmp_path / "new" / "curves.png"
    lc.main(lc.Args(results, out=out))
    pixels = matplotlib.image.imread(out)[..., :3]
    assert min(pixels.shape[:2]) > 300
    blue = np.abs(pixels - np.array([0, 0x72, 0xB2]) / 255).max(-1) < 0.01
    assert 500 < blue.sum() < 0.1 * blue.size and (pixels == 1).all(-1).mean() > 0.5
    assert capsys.readouterr().out.count("\n") == 5
    before = out.read_bytes()
    lc.main(lc.Args(results, out=out))
    assert out.read_bytes() == before


BROKEN = {
    "": "no evaluations",
    "step,episode,return\n": "no evaluations",
    "step,episode,length\n0,0,1\n": "no column 'return'",
    "episode,return\n0,1\n": "no column 'step'",
    "step,episode,return\n0,0,high\n": "could not convert",
    "step,episode,return\n0,0\n": "cannot read",
    "step,episode,return\n0,0,nan\n": "NaN",
    "\xff\xfe\x00": "cannot read",
}


@pytest.mark.parametrize("text", BROKEN)
def test_refuses_a_broken_curve(tmp_path, text):
    path = write(tmp_path / "Hopper-v4/fmer/seed_1.csv", {0: 1})
    path.write_bytes(text.encode("latin-1"))
    message = refusal(results=tmp_path)
    assert BROKEN[text] in message and str(path) in message


def test_refuses_a_truncated_archive(tmp_path):
    path = write(tmp_path / "Hopper-v4/fmer/seed_1.csv.gz", {0: 1, 10: 2})
    path.write_bytes(path.read_bytes()[:-12])
    assert "cannot read" in refusal(results=tmp_path)


def test_refuses_what_cannot_be_compared_or_written(results, tmp_path):
    assert "no <task>/<method>/seed_<k>.csv" in refusal(results=tmp_path / "missing")
    assert "No such file" in refusal(runs=(tmp_path / "missing",))
    assert "cannot read /eval.csv" in refusal(runs=(Path("/"),))
    assert "no column 'height'" in refusal(results=results, metric="height")
    assert "cannot write" in refusal(results=results, out=tmp_path / "curves.xyz")
    assert "cannot write" in refusal(results=results, out=SCRIPT / "curves.png")
    write(results / "HalfCheetah-v5/fmer/seed_1.csv.gz", {0: 1})
    assert "the same seed twice" in refusal(results=results)
    for name, step in (("E_1", 3), ("E_2", 4)):
        write(tmp_path / name / "eval.csv", {step: 1})
    message = refusal(runs=(tmp_path / "E_1", tmp_path / "E_2"))
    assert f"the seeds of {tmp_path.name}/E share no evaluation step" in message


def test_the_command_line_fails_in_one_line(tmp_path):
    command = [sys.executable, str(SCRIPT), "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"error: no <task>/<method>/seed_<k>.csv in {str(tmp_path)!r}\n"
    assert not list(tmp_path.iterdir())


def test_final_scores_of_each_seed_and_their_interquartile_mean(results, tmp_path, capsys):
    curves = lc.load(lc.Args(results=results))
    kitchen, cheetah = lc.draw_final(curves).axes
    assert [text.get_text() for text in kitchen.get_yticklabels()] == ["sac", "fmer"]
    assert cheetah.get_xlabel() == "return after 20,000 steps"
    dots, mean = (line.get_xdata() for line in cheetah.get_lines()[:2])
    assert list(dots) == [1, 3, 5, 7] and list(mean) == [4]
    assert list(kitchen.get_lines()[0].get_xdata()) == [12.5, 37.5]
    lc.main(lc.Args(results=results, final=True, out=tmp_path / "final.png"))
    assert (tmp_path / "final.png").stat().st_size > 5_000
    assert "| fmer | 4 |" in capsys.readouterr().out
