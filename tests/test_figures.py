"""The tables and pictures of figures/; those of multigoal.py have tests of their own."""

import csv
import sys

import gymnasium as gym
import matplotlib.image
import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

import fmer_kitchen
from figures import kitchen_filmstrip, kitchen_progress, kitchen_random, metrics, speed
from figures import learning_curves as lc


def write(path, curve, column="return"):
    """An eval.csv of two unequal episodes at each step, whose mean is `curve`."""
    lines = [f"step,episode,{column},length,seconds"]
    for step, mean in curve.items():
        lines += [f"{step},0,{mean - 0.5},7,0", f"{step},1,{mean + 0.5},7,0"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def results(tmp_path):
    """Five seeds of one method, one of another as a run directory, and random actions."""
    root = tmp_path / "results"
    for seed, last in enumerate([1, 3, 5, 7, 100], start=1):
        curve = {0: 0, 10_000: 9, 20_000: last} | ({30_000: 8} if seed == 1 else {})
        write(root / f"HalfCheetah-v4/fmer/seed_{seed}.csv", curve)
    write(root / "HalfCheetah-v4/sac/seed_1/eval.csv", {0: -2, 10_000: 1, 20_000: 0.4})
    (root / "HalfCheetah-v4/sac/seed_1.log").write_text("no curve")
    write(root / "Idle-v5/random/seed_1.csv", {0: 1})
    for seed, rate in enumerate([0.25, 0.75], start=1):
        path = root / f"FrankaKitchen-v1-4/fmer/seed_{seed}.csv"
        write(path, {0: 0, 10_000: rate, 20_000: rate / 2}, "success_rate")
    write(root / "ablations/HalfCheetah-v4/K1/seed_1.csv", {0: 0, 20_000: 2})
    for seed, last in enumerate([1, 3, 5, 7, 100], start=1):
        path = root / f"ablations/HalfCheetah-v4/fmer/seed_{seed}.csv"
        write(path, {0: 0, 20_000: last})
    return root


def test_range_of_few_seeds_and_bootstrap_interval_of_five():
    """The IQM of 0,0,0,0,1 is the mean of the middle three. Redrawn, it is 0 in 74 % of
    the cases (at most one 1), 2/3 or less in 99.3 % (at most three)."""
    assert lc.interval(np.array([4.0, 1.0, 2.0, 9.0])) == (1, 9)
    low, high = lc.interval(np.array([0.0, 0.0, 0.0, 0.0, 1.0]))
    assert low == 0 and high == pytest.approx(2 / 3)
    low, high = lc.interval(np.array([[0.0, 3.0]] * 5))
    assert list(low) == list(high) == [0, 3], "each step has its own interval"


def test_table(results):
    """The last shared step is 20,000: the IQM of 1, 3, 5, 7, 100 is 5, their mean 23.2.
    Before it all had 9. Best: 9 and 100."""
    curves = lc.load(lc.Args((results,)))
    assert {task: list(methods) for task, methods in curves.items()} == {
        "HalfCheetah-v4": ["fmer", "sac"],
        "Idle-v5": ["random"],
        "FrankaKitchen-v1-4": ["fmer"],
    }
    low, high = lc.interval(curves["HalfCheetah-v4"]["fmer"].scores[:, -1])
    assert lc.table(curves, with_paper=True).splitlines()[2:] == [
        f"| HalfCheetah-v4 | fmer | 5 [{low:.0f}, {high:.0f}] "
        "(5 seeds, 20,000 steps) | 16 | 16 | 27 |",
        "| HalfCheetah-v4 | sac | 0 (1 seed, 20,000 steps) | 1 | 1 | 1 |",
        "| HalfCheetah-v4 | FMER, paper (v5, 1M steps, max) | | | | 12332 |",
        "| HalfCheetah-v4 | SAC, paper (v5, 1M steps, max) | | | | 10295 |",
        "| HalfCheetah-v4 | SAC, CleanRL (v4, 1M steps, training) "
        "| 9635 ± 1424 (3 seeds) | | | |",
        "| Idle-v5 | random | 1 (1 seed, 0 steps) | 1 | 1 | 1 |",
        "| FrankaKitchen-v1-4 | fmer | 25.0 % [12.5, 37.5] "
        "(2 seeds, 20,000 steps) | 37.5 % | 37.5 % | 50.0 % |",
        "| FrankaKitchen-v1-4 | FMER, paper (1M steps, max) | | | | 50 % |",
        "| FrankaKitchen-v1-4 | SAC, paper (1M steps, max) | | | | 31 % |",
    ]


def test_table_by_seed_follows_each_seed_to_its_end(results):
    """Seed 1 has 9, 1, 8; the others end with 9 and 3, 5, 7 or 100."""
    curves = lc.load(lc.Args((results,), tasks=("HalfCheetah-v4", "Idle-v5")))
    assert lc.table_by_seed(curves).splitlines()[2:] == [
        "| HalfCheetah-v4 | fmer | 30,000 20,000 20,000 20,000 20,000 "
        "| 8 3 5 7 100 | 6 6 7 8 54 | 6 6 7 8 54 |",
        "| HalfCheetah-v4 | sac | 20,000 | 0 | 1 | 1 |",
        "| Idle-v5 | random | 0 | 1 | 1 | 1 |",
    ]
    order = ("FrankaKitchen-v1-4", "Idle-v5", "HalfCheetah-v4")
    assert tuple(lc.load(lc.Args((results,), tasks=order))) == order
    longer = lc.load(lc.Args((results,), tasks=("HalfCheetah-v4",), beyond=20_000))
    assert list(longer["HalfCheetah-v4"]) == ["fmer"], "the other has no more steps"
    one = curves["HalfCheetah-v4"]["fmer"].seeds["seed_3"]
    only = lc.Method(np.array([0]), np.array([[0.0]]), {"seed_3": one})
    (row,) = lc.table_by_seed({"Ant-v5": {"fmer": only}}).splitlines()[2:]
    assert row == "| Ant-v5 | fmer, seed 3 | 20,000 | 5 | 7 | 7 |"


def test_run_directories_are_read_by_their_names(tmp_path):
    names = ["Hopper-v4__no_exact__3__1795", "Hopper-v4__no_exact__12__1801", "mine"]
    folders = tuple(tmp_path / name for name in names)
    for folder in folders:
        write(folder / "eval.csv", {0: 1, 10: 2})
    curves = lc.load(lc.Args(runs=folders))
    assert curves["Hopper-v4"]["no_exact"].scores.shape == (2, 2)
    assert curves["runs"]["mine"].scores.shape == (1, 2)


def test_panels_show_curves_seeds_interval_and_published_levels(results):
    """No panel for what was evaluated once. 50 % is a line; 12332 would squash 9."""
    cheetah, kitchen = lc.draw(lc.load(lc.Args((results,)))).axes
    assert [cheetah.get_title(), kitchen.get_title()] == [
        "HalfCheetah-v4",
        "FrankaKitchen-v1-4",
    ]
    lines = {line.get_label(): line for line in cheetah.lines}
    curve = lines["fmer (5 seeds)"].get_xydata()
    np.testing.assert_array_equal(curve, [[0, 0], [10, 9], [20, 5]])
    assert len(cheetah.lines) == (5 + 1) + (1 + 1), "thin lines and a thick one each"
    longest = cheetah.lines[0].get_xydata()
    np.testing.assert_array_equal(longest, [[0, 0], [10, 9], [20, 1], [30, 8]])
    band = cheetah.collections[0].get_paths()[0].vertices
    assert band[band[:, 0] == 20, 1].max() < 100, "an interval of the mean, not the range"
    assert cheetah.get_ylim()[1] < 200
    beyond = cheetah.get_legend().get_title().get_text()
    levels = ["FMER, paper: 12332", "SAC, paper: 10295", "SAC, CleanRL: 9635"]
    assert beyond.split("\n") == [f"↑ {level}" for level in levels]
    assert {line.get_ydata()[0] for line in kitchen.lines[-2:]} == {50, 31}
    assert [text.get_text() for text in kitchen.texts] == [
        "FMER, paper: 50",
        "SAC, paper: 31",
    ]


def test_ablations_stand_beside_what_they_change(results):
    curves = lc.load(lc.Args((results,), ablations=True))
    assert {task: list(methods) for task, methods in curves.items()} == {
        "HalfCheetah-v4": ["K1", "fmer"]
    }
    (panel,) = lc.draw_ablations(curves).axes
    assert [text.get_text() for text in panel.get_yticklabels()] == ["K1", "fmer"]
    dots, mean = (line.get_xdata() for line in panel.lines[2:])
    assert list(dots) == [1, 3, 5, 7, 100] and list(mean) == [5]


def test_several_folders_some_tasks_and_the_first_steps(results, tmp_path):
    write(tmp_path / "more/HalfCheetah-v4/slow/seed_1.csv", {0: 3, 10_000: 4})
    folders = (results, tmp_path / "more")
    args = lc.Args(folders, tasks=("HalfCheetah-v4", "Walker2d-v4"), until=10_000)
    curves = lc.load(args)
    assert list(curves) == ["HalfCheetah-v4"]
    assert list(curves["HalfCheetah-v4"]) == ["fmer", "sac", "slow"]
    assert all(
        list(runs.steps) == [0, 10_000] for runs in curves["HalfCheetah-v4"].values()
    )


def test_means_are_over_seeds_and_evaluations_but_not_that_of_step_0():
    scores = np.array([[100.0, 1.0, 2.0, 6.0, 7.0], [100.0, 3.0, 2.0, 8.0, 7.0]])
    curves = {"Hopper-v4": {"fmer": lc.Method(np.arange(0, 50_000, 10_000), scores, {})}}
    (line,) = lc.table(curves, with_paper=False).splitlines()[2:]
    assert line.endswith("| 7 [7, 7] (2 seeds, 40,000 steps) | 5 | 4 | 100 |")


def test_a_picture_is_written_only_when_named(results, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    lc.main(lc.Args())
    lc.main(lc.Args(ablations=True))
    assert set(tmp_path.rglob("*")) == before
    assert capsys.readouterr().out.count("| fmer | 5 [") == 2
    lc.main(lc.Args((results,), out=tmp_path / "curves.png"))
    pixels = matplotlib.image.imread(tmp_path / "curves.png")[..., :3]
    blue = np.abs(pixels - np.array([0, 0x72, 0xB2]) / 255).max(-1) < 0.01
    assert 500 < blue.sum() < 0.1 * blue.size and (pixels == 1).all(-1).mean() > 0.5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "step,episode,return\n",
        "step,episode,length\n0,0,1\n",
        "step,episode,return\n0,0,high\n",
        "step,episode,return\n0,0\n",
        "step,episode,return\n0,0,nan\n",
    ],
)
def test_a_broken_curve_is_named_in_one_line(tmp_path, text):
    path = tmp_path / "Hopper-v4/fmer/seed_1.csv"
    write(path, {0: 1})
    path.write_text(text)
    with pytest.raises(SystemExit, match=rf"^error: .*{path}[^\n]*$"):
        lc.load(lc.Args((tmp_path,)))


def test_what_cannot_be_compared_is_refused(results, tmp_path):
    with pytest.raises(SystemExit, match="^error: no <task>/<method>/seed_<k>.csv in"):
        lc.load(lc.Args((tmp_path / "missing",)))
    with pytest.raises(SystemExit, match="nothing to draw"):
        lc.draw({"Idle-v5": lc.load(lc.Args((results,)))["Idle-v5"]})
    with pytest.raises(SystemExit, match="^error: no run has more than 1e[+]09 steps$"):
        lc.load(lc.Args((results,), beyond=1e9))
    folders = tmp_path / "a/H__x__1__2", tmp_path / "b/H__x__1__3", tmp_path / "H__x__2__4"
    for folder, step in zip(folders, (0, 0, 5), strict=True):
        write(folder / "eval.csv", {step: 1})
    with pytest.raises(SystemExit, match="H/x/1 a second time"):
        lc.load(lc.Args(runs=folders))
    with pytest.raises(SystemExit, match="the seeds of H/x share no evaluation"):
        lc.load(lc.Args(runs=folders[1:]))


class Scripted(gym.Env):
    """A kitchen that does what the script says: {step: tasks completed at it}."""

    def __init__(self, script, last=8):
        self.observation_space = gym.spaces.Box(-1, 1, (3,))
        self.action_space = gym.spaces.Box(-1, 1, (2,))
        self.script = script
        self.last = last

    def reset(self, seed=None, options=None):
        self.steps = 0
        self.done = []
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.done += self.script.get(self.steps, [])
        info = {"episode_task_completions": self.done, "tasks_to_complete": ["top burner"]}
        info["episode"] = {"r": len(self.done), "l": self.steps}
        return np.zeros(3, np.float32), 0.0, False, self.steps == self.last, info

    def render(self):
        return np.full((8, 8, 3), 30 * self.steps, np.uint8)


def test_filmstrip_of_the_best_episode(tmp_path, monkeypatch, capsys):
    """Even times and every completion; the episode with the most tasks done."""
    scripts = [{}, {2: ["kettle"], 5: ["microwave"]}, {3: ["kettle"]}]
    envs = iter([Scripted(script) for script in scripts])
    flags = dict(hidden_dim=8, tasks=["kettle", "microwave", "kettle"])
    agent = fmer_kitchen.Agent(3, 2, fmer_kitchen.Args(**flags))
    saved = {"args": flags, "dims": (3, 2), "agent": agent.state_dict()}
    torch.save(saved, tmp_path / "policy.pt")
    monkeypatch.setattr(fmer_kitchen, "make_env", lambda *a, **options: next(envs))
    films = []
    film = kitchen_filmstrip.Film
    remember = lambda env: films.append(film(env, interval=3)) or films[-1]  # noqa: E731
    monkeypatch.setattr(kitchen_filmstrip, "Film", remember)
    out = tmp_path / "film.png"
    kitchen_filmstrip.main(kitchen_filmstrip.Args(tmp_path, eval_episodes=3, out=out))
    assert capsys.readouterr().out.splitlines() == [
        "kettle: done at step 2",
        "microwave: done at step 5",
        "2 of 2 tasks in 8 steps",
    ]
    shown = [(step, picture.max(), new) for step, picture, new in films[1].frames]
    assert shown == [
        (1, 30, []),
        (2, 60, ["kettle"]),
        (4, 120, []),
        (5, 150, ["microwave"]),
        (7, 210, []),
    ]
    assert out.stat().st_size > 3_000


def test_random_actions_go_through_the_evaluation_of_policies(
    tmp_path, monkeypatch, capsys
):
    """The same table whether it writes or not; what it writes reads as a run's curve."""
    monkeypatch.chdir(tmp_path)
    done = {4: ["kettle"]}
    monkeypatch.setattr(fmer_kitchen, "make_env", lambda tasks: Scripted(done))
    kitchen_random.main(kitchen_random.Args(seeds=2, eval_episodes=3))
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == "| 7 | 6 | 50.0 | kettle 6 |"
    assert not list(tmp_path.iterdir())
    kitchen_random.main(kitchen_random.Args(seeds=2, eval_episodes=3, out=tmp_path))
    assert capsys.readouterr().out == text
    curves = lc.load(lc.Args(results=(tmp_path,)))
    steps, scores, _ = curves["FrankaKitchen-v1-4"]["random"]
    assert list(steps) == [0] and scores.tolist() == [[50], [50]]


@pytest.mark.filterwarnings("ignore:.*share an object")  # goals, which are unused
def test_random_actions_in_the_real_kitchen(tmp_path, capsys):
    kitchen_random.main(kitchen_random.Args(seeds=1, eval_episodes=1, out=tmp_path))
    for number in (1, 4, 7):
        path = tmp_path / f"FrankaKitchen-v1-{number}" / "random" / "seed_1.csv"
        with open(path) as file:
            (row,) = csv.DictReader(file)
        assert row["length"] == "280" and 0 <= float(row["success_rate"]) <= 1
    assert capsys.readouterr().out.count("\n") == 2 + 3


def test_random_actions_are_uniform_and_differ_between_seeds():
    a, _ = kitchen_random.RandomAgent(1).act(np.zeros((4000, 59)), 1)
    assert a.shape == (4000, 9) and np.abs(a).max() <= 1
    assert a.mean() == pytest.approx(0, abs=0.02)
    assert a.var() == pytest.approx(1 / 3, abs=0.01)
    b, _ = kitchen_random.RandomAgent(2).act(np.zeros((4000, 59)), 1)
    assert not np.allclose(a, b)
    held = kitchen_random.RandomAgent(1, repeat=3)
    a, b, c, d = (held.act(np.zeros((7, 59)), 1)[0] for _ in range(4))
    assert (a == b).all() and (b == c).all() and (c != d).all()


def test_means_and_quantiles_of_logged_metrics(tmp_path, capsys):
    """Two seeds log 0 … 20 and 100 … 120; those from step 10 on are pooled."""
    for seed in (0, 1):
        with SummaryWriter(tmp_path / f"mine/seed_{seed}") as writer:
            for step in range(21):
                writer.add_scalar("losses/qf_loss", 100 * seed + step, step)
                writer.add_scalar("charts/SPS", 7, step)
    runs = tuple(tmp_path.glob("mine/seed_*/"))
    metrics.main(metrics.Args(runs, start=10))
    pooled = [*range(10, 21), *range(110, 121)]
    low, high = np.quantile(pooled, [0.05, 0.95])
    row = f"| mine | `losses/qf_loss` | {low:.3g} | 65 | {high:.3g} | 70 |"
    assert capsys.readouterr().out.splitlines()[2:] == [row]
    metrics.main(metrics.Args(runs, keys=("charts/SPS",)))
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| mine | `charts/SPS` " + 4 * "| 7 " + "|"
    ]
    with pytest.raises(SystemExit, match="holds no TensorBoard scalars"):
        metrics.main(metrics.Args((tmp_path,)))


def test_progress_tells_when_tasks_were_found_and_how_well_they_were_kept(tmp_path, capsys):
    """Episodes of 10 steps, the last of each 40 with two tasks, and one 60 steps later."""
    with SummaryWriter(tmp_path / "FrankaKitchen-v1-4/mine/seed_3") as writer:
        for step in [*range(10, 121, 10), 180]:
            writer.add_scalar("charts/episodic_length", 10, step)
            tasks = 1 if step == 180 else 2 * (step % 40 == 0)
            writer.add_scalar("charts/episodic_tasks_completed", tasks, step)
            writer.add_scalar("charts/q_bias", step / 100, step)
            writer.add_scalar("charts/episodic_task/kettle", tasks > 0, step)
            writer.add_scalar("charts/episodic_task/top burner", tasks > 1, step)
            writer.add_scalar("charts/episodic_task/microwave", 0, step)
    args = dict(every=40, out=tmp_path / "kept")
    runs = tuple(tmp_path.glob("*/mine/seed_*/"))
    kitchen_progress.main(kitchen_progress.Args(runs, **args))
    row = capsys.readouterr().out.splitlines()[2]
    tasks, bias = "0.50 0.50 0.50 - 1.00", "0.25 0.65 1.05 - 1.80"
    assert row == f"| 4, `mine`, 3 | 180 | 40 | 120 | {tasks} | {bias} |"
    kept = tmp_path / "kept/FrankaKitchen-v1-4/mine/train_3.csv"
    head, first, *_ = kept.read_text().splitlines()
    assert head == "step,tasks_completed,length,q_bias,kettle,top burner,microwave"
    assert first == "10,0,10,0.1,0,0,0"
    kitchen_progress.main(kitchen_progress.Args((kept,), every=40))
    assert capsys.readouterr().out.splitlines()[2] == row
    for run in (kept, *runs):
        kitchen_progress.main(kitchen_progress.Args((run,), every=40, single_tasks=True))
        assert capsys.readouterr().out.splitlines()[2:] == [
            "| 4, `mine`, 3 | kettle | 0.25 0.25 0.25 - 1.00 |",
            "| 4, `mine`, 3 | top burner | 0.25 0.25 0.25 - 0.00 |",
        ]
    kept.write_text("step,tasks_completed,length,q_bias\n10,0,10,0.1\n")
    with pytest.raises(SystemExit, match="train_3.csv does not tell the tasks apart"):
        kitchen_progress.main(kitchen_progress.Args((kept,), single_tasks=True))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="has not logged charts/episodic_tasks"):
        kitchen_progress.main(kitchen_progress.Args((tmp_path / "empty",)))


def test_speed_is_compared_by_the_difference_of_two_runs(tmp_path, monkeypatch, capsys):
    """By a clock on which a start takes 5 s, a step of ours 10 ms, one of theirs 40 ms."""
    clock, commands = [0.0], []

    def runs(command, cwd, env, check, capture_output):
        flags = dict(zip(command[2::2], command[3::2], strict=False))
        steps = int(flags["--total-timesteps"]) - int(flags["--learning-starts"])
        clock[0] += 5 + steps * (0.01 if "fmer_continuous.py" in command[1] else 0.04)
        commands.append(command)

    monkeypatch.setattr(speed.subprocess, "run", runs)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    sac = tmp_path / "cleanrl" / "sac.py"
    speed.main(speed.Args(sac=sac, sac_python="theirs", sac_rounds=2, flags="--tau 0.01"))
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows == ["| 1 | 100.0 | 25.0 | 4.00 |", "| 2 | 100.0 | 25.0 | 4.00 |"]
    assert [command[0] for command in commands[:4]] == [sys.executable] * 2 + ["theirs"] * 2
    assert "--tau" in commands[0] and "--tau" not in commands[2]


def test_speed_table_and_picture(tmp_path, monkeypatch, capsys):
    small = dict(hidden_dim=11, batch_size=13, actor_batch_size=7, flow_steps=2)
    points = {n: small | dict(num_candidates=n) for n in (1, 3)}
    monkeypatch.setattr(speed, "ROWS", {"tiny": small})
    monkeypatch.setattr(speed, "POINTS", {"N": points, "N again": points})
    out = tmp_path / "speed.png"
    speed.main(speed.Args(env_id="Hopper-v5", cuda=False, steps=2, out=out))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Hopper-v5, ")
    cells = [cell.strip() for cell in lines[-1].split("|")[1:-1]]
    assert cells[0] == "tiny" and float(cells[1]) > 0 and float(cells[2]) > 0
    shares = [float(share) for share in cells[3].rstrip("%").split("/")]
    assert sum(shares) == pytest.approx(100, abs=2)
    assert out.stat().st_size > 3_000
