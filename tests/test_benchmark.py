"""benchmark.sh: its commands parse, finished runs are skipped, interrupted ones resumed."""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

import fmer_continuous
import fmer_kitchen
from envs import at_step
from figures import kitchen_random, learning_curves, multigoal, speed

ROOT = Path(__file__).parent.parent
SUITES = ["mujoco", "kettle", "kitchen", "ablations"]
SUITES += ["probes", "multigoal", "speed"]
MODULES = {
    "fmer_continuous.py": fmer_continuous,
    "fmer_kitchen.py": fmer_kitchen,
    "figures/kitchen_random.py": kitchen_random,
    "figures/multigoal.py": multigoal,
    "figures/speed.py": speed,
}
TINY = (
    "--hidden-dim 11 --flow-steps 2 --batch-size 13 --actor-batch-size 7 "
    "--learning-starts 31 --eval-interval 30 --eval-episodes 1 --checkpoint-minutes 0 "
    "--buffer-size 1009"
)


def bench(*words, script=ROOT / "benchmark.sh", **environment):
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    command = [str(script), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def dry_run(*suites, **environment):
    """{name of the run: (script, its parsed flags)}"""
    done = bench("--dry-run", *suites, OUT="out", **environment)
    assert done.returncode == 0, done.stderr
    runs = {}
    for line in done.stdout.splitlines():
        _, script, *flags = shlex.split(line)
        args = tyro.cli(MODULES[script].Args, args=flags)
        name = getattr(args, "run_dir", script)
        assert name not in runs, "no run is listed twice"
        runs[name] = script, args
    return runs


def test_every_command_parses_and_names_need_no_quoting():
    runs = dry_run(*SUITES, VERSION="v5", DEVICE="cpu", SEEDS="1 7")
    assert {script for script, _ in runs.values()} == set(MODULES)
    assert not any(getattr(args, "cuda", False) for _, args in runs.values())
    assert all(shlex.quote(name) == name and "=" not in name for name in runs)
    for task in ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Humanoid-v5"):
        for seed in (1, 7):
            _, args = runs[f"out/{task}/fmer/seed_{seed}"]
            expected = task, seed, 1_000_000
            assert (args.env_id, args.seed, args.total_timesteps) == expected
    for number in (1, 4, 7):
        assert runs[f"out/FrankaKitchen-v1-{number}/fmer/seed_7"][1].num_tasks == number


def test_flags_are_for_every_run_but_an_ablations_own_flag_wins():
    flags = "--hidden-dim 64 --num-candidates 3 --flow-steps 7"
    runs = dry_run("ablations", FLAGS=flags, STEPS=123, SEEDS="1")
    assert {args.hidden_dim for _, args in runs.values()} == {64}
    assert {args.total_timesteps for _, args in runs.values()} == {123}
    changed = {}
    for name, (_, args) in runs.items():
        changed[name.split("/")[-2]] = args.num_candidates, args.flow_steps
    assert changed.pop("N8") == (8, 7) and changed.pop("N32") == (32, 7)
    assert changed.pop("N4_rho0.4") == (4, 7) and changed.pop("K2") == (3, 2)
    assert changed.pop("K1") == (3, 1) and changed.pop("K10") == (3, 10)
    assert set(changed.values()) == {(3, 7)}


def test_without_arguments_it_lists_the_suites_and_runs_nothing(tmp_path):
    done = bench(OUT=tmp_path / "out", SEEDS="1 2", STEPS=900_000)
    listed = [line.split() for line in done.stdout.splitlines()[-len(SUITES) :]]
    assert [words[0] for words in listed] == SUITES and not list(tmp_path.iterdir())
    cost = {words[0]: words[1:3] for words in listed}
    assert cost["mujoco"] == ["8", f"{8 * 900_000 / 85 / 3600:.1f}"], "85 steps a second"
    for suite in SUITES:
        assert int(cost[suite][0]) == len(dry_run(suite, SEEDS="1 2")), suite


@pytest.mark.parametrize("words", [[], ["--dry-run", "mujoco"]])
def test_what_only_prints_runs_nothing_when_its_reader_is_gone(tmp_path, words):
    environment = os.environ | {"OUT": str(tmp_path / "out"), "PYTHON": "false"}
    reader, writer = os.pipe()
    os.close(reader)
    subprocess.run([ROOT / "benchmark.sh", *words], env=environment, stdout=writer)
    os.close(writer)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "environment", "complaint"),
    [
        (["walker"], {}, "no suite 'walker'"),
        (["mujoco"], {"STEPS": "1e6"}, "STEPS and JOBS are positive integers"),
        (["mujoco"], {"JOBS": "0"}, "STEPS and JOBS are positive integers"),
        (["mujoco"], {"DEVICE": "tpu"}, "DEVICE is cuda or cpu"),
        (["mujoco"], {"OUT": "my runs"}, "OUT holds a blank"),
        (["mujoco"], {"SEEDS": " "}, "SEEDS are integers"),
        (["mujoco"], {"SEEDS": "*"}, "SEEDS are integers"),
        (["mujoco"], {"FLAGS": "--tau 0.1 --seed 7"}, "FLAGS has a flag that names a run"),
        (["mujoco"], {"LAUNCHER": "k8s"}, "LAUNCHER is local or slurm"),
    ],
)
def test_bad_input_is_one_line(words, environment, complaint):
    done = bench(*words, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {complaint}\n"


def test_runs_are_made_skipped_and_resumed(tmp_path, monkeypatch):
    text = (ROOT / "benchmark.sh").read_text()
    for task in ("HalfCheetah", "Walker2d", "Humanoid"):  # one task is enough here
        text = text.replace(f" {task}-$VERSION", "")
    script = tmp_path / "benchmark.sh"
    text = text.replace('here=$(cd "$(dirname "$0")" && pwd)', f"here={ROOT}")
    script.write_text(text.replace('"$here/benchmark.sh"', f'"{script}"'))
    script.chmod(0o755)
    out = tmp_path / "out"
    first = out / "Hopper-v4/fmer/seed_1"
    second = out / "Hopper-v4/fmer/seed_2"
    settings = dict(SEEDS="1 2", STEPS=60, DEVICE="cpu", JOBS=2, FLAGS=TINY, OUT=out)
    settings |= dict(script=script, PYTHON=sys.executable)

    # One run was stopped before its first checkpoint, another after it
    first.mkdir(parents=True)
    (first / "eval.csv").write_text("step\n0\n")
    flags = f"{TINY} --env-id Hopper-v4 --seed 2 --total-timesteps 60 --no-cuda"
    args = tyro.cli(fmer_continuous.Args, args=flags.split())
    args.run_dir = str(second)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        at_step(patch, fmer_continuous, 50, lambda: 1 / 0)
        fmer_continuous.main(args)
    before = (second / "eval.csv").read_text()

    done = bench("mujoco", **settings)
    assert done.returncode == 0, done.stderr
    curves = learning_curves.load(learning_curves.Args(results=(out,)))
    steps, scores, _ = curves["Hopper-v4"]["fmer"]
    assert list(steps) == [0, 30, 60] and scores.shape == (2, 3)
    assert (second / "eval.csv").read_text().startswith(before), "resumed, not begun again"
    assert "torch==" in (out / "provenance.txt").read_text()

    times = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*/*")}
    with open(out / "Hopper-v4/fmer/seed_1.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        again = bench("mujoco", **settings)
    assert again.returncode == 0
    assert sorted(again.stdout.splitlines()) == [
        "finished before: Hopper-v4/fmer/seed_2",
        "running already: Hopper-v4/fmer/seed_1",
    ]
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("*/*/*/*")}

    # Neither other flags nor more steps without a checkpoint take a run's files away
    kept = (first / "eval.csv").read_text()
    settings |= dict(SEEDS="1")
    other = bench("mujoco", **settings | dict(FLAGS=f"{TINY} --gamma 0.9"))
    assert other.returncode == 1 and other.stdout == "Hopper-v4/fmer/seed_1\n"
    log = (out / "Hopper-v4/fmer/seed_1.log").read_text()
    assert "--gamma was 0.99 at its start" in log.splitlines()[-1]
    (first / "checkpoint.pt").unlink()
    longer = bench("mujoco", **settings | dict(STEPS=90))
    assert longer.returncode == 1 and "its checkpoint is gone" in longer.stdout
    (out / "Hopper-v4/fmer/seed_1.log").write_text("90 it/s\r\rstopped; to continue: …\n")
    assert "its checkpoint is gone" in bench("mujoco", **settings | dict(STEPS=90)).stdout
    assert (first / "eval.csv").read_text() == kept and (first / "policy.pt").exists()
    shutil.rmtree(first)  # to have it made again
    assert bench("mujoco", **settings).returncode == 0
    assert (first / "checkpoint.pt").exists()


FAKE_PYTHON = """#!/bin/bash
case "$*" in
    *pip*) echo torch==0 ;;
    *multigoal*) echo "half a table"; exit 3 ;;
    *speed*) echo "a table" ;;
    *--num-tasks\\ 1*) kill -9 $$ ;;
    *) dir=${*: 3:1}; mkdir -p $dir; echo 60,0 > $dir/eval.csv ;;
esac
"""
FAKE_SBATCH = """#!/bin/bash
for word in "$@"; do
    case "$word" in
        --array=*) last=${word#--array=1-}; last=${last%%%*} ;;
        --wrap=*) job=${word#--wrap=} ;;
    esac
done
for SLURM_ARRAY_TASK_ID in $(seq $last); do
    export SLURM_ARRAY_TASK_ID
    bash -c "$job"
done
"""


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_a_run_that_dies_ends_no_other_and_half_a_table_is_none(tmp_path, launcher):
    """Python is played here, and so is Slurm, which runs its tasks one after the other."""
    for name, text in (("python", FAKE_PYTHON), ("sbatch", FAKE_SBATCH)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    out = tmp_path / "out"
    settings = dict(OUT=out, PYTHON=tmp_path / "python", STEPS=60, SEEDS="1 2", JOBS=2)
    settings |= dict(PATH=f"{tmp_path}:{os.environ['PATH']}", LAUNCHER=launcher)
    done = bench("kitchen", "multigoal", "speed", **settings)
    assert done.returncode == 1
    one_task = [f"FrankaKitchen-v1-1/{method}" for method in ("fmer", "repeat40_warmup60k")]
    missing = [f"{name}/seed_{seed}" for name in one_task for seed in (1, 2)]
    listed = [f"  {out}/{name}.log" for name in [*missing, "multigoal"]]
    assert done.stderr.splitlines()[-6:] == ["not finished:", *listed]
    assert len(list(out.glob("FrankaKitchen-v1-[47]/fmer/seed_[12]/eval.csv"))) == 4
    assert (out / "speed.md").read_text() == "a table\n"
    assert not (out / "multigoal.md").exists()
