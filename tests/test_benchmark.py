"""benchmark.sh: its commands parse, finished runs are skipped, interrupted ones resumed."""

import fcntl
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tyro
from envs import at_step

import fmer_continuous
import fmer_kitchen
from figures import learning_curves, multigoal, speed

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "benchmark.sh")
MODULES = {
    "fmer_continuous.py": fmer_continuous, "fmer_kitchen.py": fmer_kitchen,
    "figures/multigoal.py": multigoal, "figures/speed.py": speed,
}  # fmt: skip
TINY = dict(
    SEEDS="1 2", STEPS="60", DEVICE="cpu", JOBS="2",
    FLAGS="--hidden-dim 11 --flow-steps 2 --batch-size 13 --actor-batch-size 7 --learning-starts 31"
    " --eval-interval 30 --eval-episodes 1 --checkpoint-interval 20 --buffer-size 1009",
)  # fmt: skip


def bench(*words, **environment):
    environment = {k: str(v) for k, v in environment.items()}
    return subprocess.run(
        [SCRIPT, *words], env=os.environ | environment, capture_output=True, text=True, cwd=ROOT
    )


def test_every_command_of_a_dry_run_parses():
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    done = bench("--dry-run", VERSION="v5", DEVICE="cpu", OUT="here", FLAGS="--hidden-dim 64")
    assert done.returncode == 0 and not done.stderr and not (ROOT / "here").exists()
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    seen, directories = {}, []
    for python, script, *flags in lines:
        assert python == "python" and (ROOT / script).exists()
        args = tyro.cli(MODULES[script].Args, args=flags)
        seen.setdefault(script, []).append(args)
        if script.startswith("fmer"):
            assert not args.cuda and args.hidden_dim == 64 and args.total_timesteps == 1_000_000
            directories.append(args.run_dir)
    assert seen.keys() == MODULES.keys()
    assert len(set(directories)) == len(directories), "no run is listed twice"
    trained = {(args.env_id, args.seed) for args in seen["fmer_continuous.py"]}
    tasks = ("HalfCheetah", "Hopper", "Walker2d", "Humanoid")
    assert trained == {(f"{task}-v5", seed) for task in tasks for seed in range(1, 6)}
    kitchen = {(args.num_tasks, args.seed) for args in seen["fmer_kitchen.py"]}
    assert kitchen == {(number, seed) for number in (1, 4, 7) for seed in range(1, 6)}


def test_one_seed_of_one_suite():
    done = bench("--dry-run", "kitchen", SEEDS="7", STEPS="123", PYTHON="python3")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["python3"] * 3
    assert all("--seed 7 " in line and "steps 123 " in line for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("words", "environment", "complaint"),
    [
        (["walker"], {}, "error: no suite 'walker'"),
        (["mujoco"], {"STEPS": "1e6"}, "error: STEPS and JOBS are positive integers"),
        (["mujoco"], {"JOBS": "0"}, "error: STEPS and JOBS are positive integers"),
        (["mujoco"], {"DEVICE": "tpu"}, "error: DEVICE is cuda or cpu"),
        (["mujoco"], {"OUT": "my runs"}, "error: OUT holds a blank"),
        (["mujoco"], {"LAUNCHER": "k8s"}, "error: LAUNCHER is local or slurm"),
    ],
)
def test_bad_input_is_one_line(words, environment, complaint):
    done = bench(*words, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", complaint + "\n")


def test_runs_are_made_skipped_resumed_and_their_failures_listed(tmp_path):
    out = tmp_path / "out"
    listed = (ROOT / "benchmark.sh").read_text().replace("Hopper Walker2d Humanoid", "Hopper")
    script = tmp_path / "benchmark.sh"  # two tasks are enough here
    script.write_text(listed.replace('here=$(cd "$(dirname "$0")" && pwd)', f"here={ROOT}"))
    script.write_text(script.read_text().replace('"$here/benchmark.sh"', str(script)))
    script.chmod(0o755)

    def run(**changes):
        environment = os.environ | TINY | {"OUT": str(out), "PYTHON": sys.executable} | changes
        return subprocess.run(
            [str(script), "mujoco"], env=environment, capture_output=True, text=True
        )

    # one run was interrupted after its first checkpoint, another before it
    flags = f"{TINY['FLAGS']} --env-id Hopper-v4 --seed 2 --total-timesteps 60 --no-cuda"
    half = tyro.cli(fmer_continuous.Args, args=flags.split())
    half.run_dir = str(out / "Hopper-v4" / "fmer_2")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        at_step(patch, fmer_continuous, 50, lambda: 1 / 0)
        fmer_continuous.main(half)
    before = (out / "Hopper-v4" / "fmer_2" / "eval.csv").read_text()
    (out / "Hopper-v4" / "fmer_1").mkdir()
    (out / "Hopper-v4" / "fmer_1" / "eval.csv").write_text("step\n0\n")

    done = run()
    assert done.returncode == 0, done.stderr
    curves = learning_curves.load(
        learning_curves.Args(runs=tuple(path.parent for path in out.glob("*/*/eval.csv")))
    )
    for task in ("HalfCheetah-v4", "Hopper-v4"):
        steps, scores = curves[task, "fmer", "return"]
        assert list(steps) == [0, 30, 60] and scores.shape == (2, 3)
    after = (out / "Hopper-v4" / "fmer_2" / "eval.csv").read_text()
    assert after.startswith(before), "resumed, not begun again"
    assert torch.load(out / "Hopper-v4" / "fmer_2" / "checkpoint.pt")["run"][0] == 60
    provenance = (out / "provenance.txt").read_text()
    assert re.search(r"^[0-9a-f]{40}|no commit", provenance, re.M) and "torch==" in provenance

    (out / "Hopper-v4" / "fmer_1" / "eval.csv").rename(out / "kept")
    with open(out / "Hopper-v4" / "fmer_1.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        running = run()
    assert "running already: Hopper-v4/fmer_1" in running.stdout and running.returncode == 1
    (out / "kept").rename(out / "Hopper-v4" / "fmer_1" / "eval.csv")

    times = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*")}
    again = run()
    assert again.returncode == 0 and again.stdout.count("finished before") == 4
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("*/*/*")}

    failed = run(SEEDS="3", FLAGS=TINY["FLAGS"] + " --gamma 7")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-3:] == [
        "not finished:", f"  {out}/HalfCheetah-v4/fmer_3.log", f"  {out}/Hopper-v4/fmer_3.log"
    ]  # fmt: skip
    assert "error: --gamma must lie in [0, 1]" in (out / "Hopper-v4" / "fmer_3.log").read_text()


FAKE_PYTHON = """#!/bin/bash
case "$*" in
    *pip*) echo torch==0 ;;
    *multigoal*) echo "half a table"; exit 3 ;;
    *speed*) echo "a table" ;;
    *--num-tasks\\ 1*) kill -9 $$ ;;
    *) all=$*; dir=${all#*--run-dir }; dir=${dir%% *}; mkdir -p $dir; echo 60,0 > $dir/eval.csv ;;
esac
"""
FAKE_SBATCH = """#!/bin/bash
for word in "$@"; do
    case "$word" in
        --array=*) last=${word#--array=1-}; last=${last%%%*} ;;
        --wrap=*) job=${word#--wrap=} ;;
    esac
done
for SLURM_ARRAY_TASK_ID in $(seq $last); do export SLURM_ARRAY_TASK_ID; bash -c "$job"; done
"""


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_a_run_that_dies_ends_no_other_and_a_failed_table_is_no_table(tmp_path, launcher):
    """Processes are played here, and so is Slurm, which runs its tasks one after the other."""
    for name, text in (("python", FAKE_PYTHON), ("sbatch", FAKE_SBATCH)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    out = tmp_path / "out"
    settings = dict(OUT=out, PYTHON=tmp_path / "python", STEPS=60, SEEDS="1 2", JOBS=2)
    settings |= dict(PATH=f"{tmp_path}:{os.environ['PATH']}", LAUNCHER=launcher, FLAGS="--tau 1 ")
    done = bench("kitchen", "multigoal", "speed", **settings)
    assert done.returncode == 1
    missing = ["FrankaKitchen-v1-1/fmer_1", "FrankaKitchen-v1-1/fmer_2", "multigoal"]
    listed = [f"  {out}/{name}.log" for name in missing]
    assert done.stderr.splitlines()[-4:] == ["not finished:", *listed]
    assert len(list(out.glob("FrankaKitchen-v1-[47]/fmer_[12]/eval.csv"))) == 4
    assert (out / "speed.md").read_text() == "a table\n"


def test_speed_table_and_figure(tmp_path, monkeypatch, capsys):
    small = dict(hidden_dim=11, batch_size=13, actor_batch_size=7, flow_steps=2)
    monkeypatch.setattr(speed, "ROWS", {"tiny": small})
    grow = ([1, 3], lambda n: small | dict(num_candidates=n))
    monkeypatch.setattr(speed, "GROWTH", {"candidates N": grow, "observations": grow})
    speed.main(speed.Args(device="cpu", steps=2, out=tmp_path / "folder" / "speed.png"))
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]]
    assert row[0] == "tiny" and float(row[1]) > 0 and float(row[2]) > 0
    assert sum(map(float, row[3].rstrip("%").split("/"))) == pytest.approx(100, abs=2)
    assert (tmp_path / "folder" / "speed.png").stat().st_size > 3_000
