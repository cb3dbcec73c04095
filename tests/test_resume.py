"""Checkpoints: exact resume, signals, kills while writing, refusals. Both scripts."""

import csv
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

import fmer_continuous
import fmer_kitchen
from envs import SMALL, ByChance, Target, at_step, needs_gpu

ROOT = Path(__file__).parent.parent
RUNS = {
    fmer_continuous: dict(
        env_id="Target-v0",
        warmup_repeat=3,  # so that the one of step 5 is repeated in step 6
        policy_frequency=3,
        eval_interval=20,
        buffer_size=61,
    ),
    fmer_kitchen: dict(
        tasks=["kettle", "microwave"],
        normalize_observations=True,
        total_timesteps=311,
        learning_starts=271,
        eval_interval=295,
        eval_episodes=1,
    ),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*share an object")  # the kitchen's goals


def run(fmer, directory, signals=(), **changes):
    events = sorted(directory.glob("events.*"))  # TensorBoard sorts them by their second
    while events and f".{int(time.time())}." in events[-1].name:
        time.sleep(0.05)
    settings = SMALL | RUNS[fmer] | dict(run_dir=str(directory)) | changes
    return fmer.main(fmer.Args(**settings), signals)


def run_until(monkeypatch, fmer, directory, step, **changes):
    """Stopped as by a signal that arrives in that step."""
    signals = []
    with monkeypatch.context() as patch:
        at_step(patch, fmer, step, lambda: signals.append(15))
        run(fmer, directory, signals, **changes)
    assert saved(directory)["progress"]["step"] == step


def saved(directory):
    return torch.load(directory / "checkpoint.pt", weights_only=True)


def equal(a, b):
    """Bit for bit, through dictionaries and sequences."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def evaluations(directory):
    with open(directory / "eval.csv") as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in row if name != "seconds"} for row in rows]


def scalars(directory):
    """Every scalar event but the clock's, after TensorBoard's purge of what was redone."""
    events = EventAccumulator(str(directory)).Reload()
    tags = set(events.Tags()["scalars"]) - {"charts/SPS"}
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def assert_same_run(resumed, whole):
    a, b = saved(resumed), saved(whole)
    clock = dict(seconds=0, eval_rows="")  # eval.csv's, compared below without its clock
    for content in (a, b):
        content["progress"] |= clock
        del content["args"]["run_dir"], content["args"]["resume"]
    assert a.keys() == b.keys()
    for key in a:
        assert equal(a[key], b[key]), key
    assert evaluations(resumed) == evaluations(whole)
    assert scalars(resumed) == scalars(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of each script."""
    directories = {}
    for fmer in RUNS:
        directories[fmer] = tmp_path_factory.mktemp("whole") / "run"
        args = run(fmer, directories[fmer])["agent"].args
        (state, *_) = saved(directories[fmer])["q_optimizer"]["state"].values()
        assert state["step"] == args.total_timesteps - args.learning_starts
    return directories


@pytest.mark.parametrize(
    ("fmer", "steps"),
    [
        (fmer_continuous, [5, 53]),
        (fmer_continuous, [60, 70, 71]),
        (fmer_continuous, [38, 51]),
        (fmer_kitchen, [299]),
    ],
)
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, monkeypatch, whole, fmer, steps):
    """In warm-up, in mid-episode, at an evaluation, at an episode's end, just before losses
    are logged, and twice in a row; the ring buffer has wrapped."""
    for number, step in enumerate(steps):
        run_until(monkeypatch, fmer, tmp_path / "run", step, resume=number > 0)
    run(fmer, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole[fmer])


@needs_gpu
@pytest.mark.parametrize(("fmer", "step"), [(fmer_continuous, 53), (fmer_kitchen, 299)])
def test_a_run_on_a_gpu_resumes_bit_for_bit(tmp_path, monkeypatch, fmer, step):
    run(fmer, tmp_path / "whole", cuda=True)
    run_until(monkeypatch, fmer, tmp_path / "run", step, cuda=True)
    (weight, *_) = saved(tmp_path / "run")["agent"].values()
    assert weight.is_cuda
    run(fmer, tmp_path / "run", resume=True, cuda=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_signal_during_start_up_or_on_the_last_step_loses_nothing(
    tmp_path, monkeypatch, whole
):
    for resume in (False, True):
        run(fmer_continuous, tmp_path / "run", [15], resume=resume)
        assert saved(tmp_path / "run")["progress"]["step"] == 0
    run_until(monkeypatch, fmer_continuous, tmp_path / "run", 97, resume=True)
    run(fmer_continuous, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole[fmer_continuous])


def test_a_signal_during_an_evaluation_makes_the_resumed_run_evaluate_again(
    tmp_path, monkeypatch, whole
):
    evaluate = fmer_continuous.evaluate

    def interrupted(agent, envs, signals):
        if stop_at.pop(0):
            signals.append(15)
        return evaluate(agent, envs, signals)

    stop_at = [False, False, False, True]  # at steps 0, 20, 40 and 60
    with monkeypatch.context() as patch:
        patch.setattr(fmer_continuous, "evaluate", interrupted)
        result = run(fmer_continuous, tmp_path / "run", [])
    assert list(result["progress"].eval_returns) == [0, 20, 40] and not stop_at
    assert saved(tmp_path / "run")["progress"]["step"] == 60
    run(fmer_continuous, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole[fmer_continuous])


def only_at(monkeypatch, fmer, step):
    """Checkpoints are due in each step, but only that step's is written."""
    save = fmer.save_checkpoint

    def watched(run_dir, agent, buffer, progress):
        if progress.step == step:
            save(run_dir, agent, buffer, progress)

    monkeypatch.setattr(fmer, "save_checkpoint", watched)


@pytest.mark.parametrize(
    ("fmer", "step", "at"), [(fmer_continuous, 77, 40), (fmer_kitchen, 309, 290)]
)
def test_a_killed_run_resumes_from_its_last_checkpoint(
    tmp_path, monkeypatch, whole, fmer, step, at
):
    """Evaluations and events written after the checkpoint are not kept twice."""
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        at_step(patch, fmer, step, lambda: 1 / 0)
        only_at(patch, fmer, at)
        run(fmer, tmp_path / "run", checkpoint_minutes=0)
    assert saved(tmp_path / "run")["progress"]["step"] == at
    assert int(evaluations(tmp_path / "run")[-1]["step"]) > at
    run(fmer, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole[fmer])


def test_a_finished_run_can_be_made_longer(tmp_path, whole):
    short = run(fmer_continuous, tmp_path / "run", total_timesteps=80)
    assert list(short["progress"].eval_returns) == [0, 20, 40, 60, 80]
    result = run(fmer_continuous, tmp_path / "run", resume=True)
    assert list(result["progress"].eval_returns) == [0, 20, 40, 60, 80, 97]
    assert_same_run(tmp_path / "run", whole[fmer_continuous])


def test_a_checkpoint_is_written_first_every_few_minutes_and_last(tmp_path, monkeypatch):
    """By a clock on which a step of the environment takes a minute."""
    written, clock = [], SimpleNamespace(now=0.0, time=time.time)
    save, step = fmer_continuous.save_checkpoint, Target.step

    def watched(run_dir, agent, buffer, progress):
        save(run_dir, agent, buffer, progress)
        written.append(saved(run_dir)["progress"]["step"])
        assert written[-1] == progress.step == len(saved(run_dir)["rows"])

    def slow_step(self, action):
        clock.now += 60
        return step(self, action)

    monkeypatch.setattr(fmer_continuous, "save_checkpoint", watched)
    monkeypatch.setattr(Target, "step", slow_step)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(fmer_continuous, "time", clock)
    for minutes, steps in ((20, [0, 20, 40, 50]), (1e9, [0, 50]), (25, [0, 25, 50])):
        written.clear()
        changes = dict(total_timesteps=50, checkpoint_minutes=minutes, eval_interval=0)
        run(fmer_continuous, tmp_path / str(minutes), **changes)
        assert written == steps


def test_a_resumed_run_goes_on_with_its_clock(tmp_path, monkeypatch):
    """A step of the environment takes a minute, an evaluation and a pause nothing."""
    clock, step = SimpleNamespace(now=0.0, time=time.time), Target.step

    def slow_step(self, action):
        clock.now += 60
        return step(self, action)

    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(Target, "step", slow_step)
    monkeypatch.setattr(fmer_continuous, "time", clock)
    monkeypatch.setattr(fmer_continuous, "evaluate", lambda *_: [{"return": 1.0}])
    run(fmer_continuous, tmp_path / "run", total_timesteps=20)
    run(fmer_continuous, tmp_path / "run", total_timesteps=60, resume=True)
    with open(tmp_path / "run" / "eval.csv") as file:
        rows = [(int(row["step"]), int(row["seconds"])) for row in csv.DictReader(file)]
    assert rows == [(0, 0), (20, 1200), (40, 2400), (60, 3600)]
    speed = EventAccumulator(str(tmp_path / "run")).Reload().Scalars("charts/SPS")
    assert [e.step for e in speed] == [13, 26, 39, 52]
    assert [e.value for e in speed] == pytest.approx([1 / 60] * 4)


def test_a_resumed_episode_that_ends_sooner_is_followed_by_another(tmp_path, monkeypatch):
    """96 steps are 13 episodes of 7 and 5 steps; then episodes are of 3 steps."""
    changes = dict(env_id="ByChance-v0", eval_interval=0)
    run(fmer_continuous, tmp_path / "run", total_timesteps=96, **changes)
    monkeypatch.setattr(ByChance, "length", 3)
    changes |= dict(total_timesteps=97, resume=True)
    assert run(fmer_continuous, tmp_path / "run", **changes)["progress"].step == 97


def test_a_checkpoint_holds_the_stored_transitions_only(tmp_path):
    """Of a large buffer, the file has the rows that are filled."""
    run(fmer_continuous, tmp_path / "run", buffer_size=1_000_003, total_timesteps=40)
    assert (tmp_path / "run" / "checkpoint.pt").stat().st_size < 1_000_000


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    run(fmer_continuous, tmp_path / "run")
    before = saved(tmp_path / "run")
    run(fmer_continuous, tmp_path / "run", resume=True)
    assert equal(before["agent"], saved(tmp_path / "run")["agent"])
    assert len(evaluations(tmp_path / "run")) == 3 * 6


@pytest.mark.parametrize("change", [{"seed": 2}, {"gamma": 0.9}, {"hidden_dim": 23}])
def test_other_mathematics_is_refused_by_name(tmp_path, change):
    run(fmer_continuous, tmp_path / "run", total_timesteps=5)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    flag = next(iter(change)).replace("_", "-")
    with pytest.raises(SystemExit, match=f"^error: .*--{flag}"):
        run(fmer_continuous, tmp_path / "run", resume=True, **change)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_run_keeps_its_device(tmp_path, monkeypatch):
    """A run made without a GPU says so; one made on a GPU is not continued without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state", None)  # it would start CUDA
    run(fmer_continuous, tmp_path / "run", total_timesteps=5, cuda=True)
    checkpoint = saved(tmp_path / "run")
    assert checkpoint["args"]["cuda"] is False
    assert json.loads((tmp_path / "run" / "args.json").read_text())["cuda"] is False
    checkpoint["args"]["cuda"] = True
    torch.save(checkpoint, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(SystemExit, match="^error: .*--cuda was True"):
        run(fmer_continuous, tmp_path / "run", resume=True, cuda=True)


def test_every_flag_but_those_that_may_change_is_compared(fmer):
    """By a list of exceptions, so that a new flag is compared unless it is put there."""
    names = set(fmer.Args.__dataclass_fields__)
    harmless = "total_timesteps run_dir resume checkpoint_minutes num_threads"
    assert set(fmer.MAY_CHANGE) <= names & set(harmless.split())


def test_a_checkpoint_that_lacks_a_flag_or_has_another_is_refused(tmp_path):
    """It was made by another version, whatever that flag's default is."""
    run(fmer_continuous, tmp_path / "run", total_timesteps=5)
    checkpoint = saved(tmp_path / "run")
    tau = checkpoint["args"].pop("tau")
    for changes, complaint in (({}, "--tau was unset"), ({"tau": tau, "rho": 1}, "rho")):
        checkpoint["args"] |= changes
        torch.save(checkpoint, tmp_path / "run" / "checkpoint.pt")
        with pytest.raises(SystemExit, match=f"^error: cannot resume .*{complaint}"):
            run(fmer_continuous, tmp_path / "run", resume=True)


def test_a_missing_truncated_or_foreign_checkpoint_is_refused(tmp_path):
    def refuse():
        with pytest.raises(SystemExit) as refusal:
            run(fmer_continuous, tmp_path / "run", resume=True)
        message = str(refusal.value)
        del refusal  # its traceback holds the lock
        assert message.startswith("error: cannot resume") and "\n" not in message

    with pytest.raises(SystemExit, match="^error: .*run must exist with --resume"):
        run(fmer_continuous, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    run(fmer_continuous, tmp_path / "run", total_timesteps=5)
    path = tmp_path / "run" / "checkpoint.pt"
    content = path.read_bytes()
    for broken in (content[:1000], content[:-100], b"", b"not a checkpoint"):
        path.write_bytes(broken)
        refuse()
        assert path.read_bytes() == broken, "never overwritten"
    torch.save({"weights": torch.zeros(3)}, path)
    refuse()
    torch.save({"args": {"tasks": ["kettle"]}}, path)  # the other script's
    refuse()


# --- Real processes -----------------------------------------------------------------------


def command(*flags, program=(), **options):
    """A process of fmer_continuous.py, or of a program about it, and what it will write."""
    script = [sys.executable, *program, str(ROOT / "fmer_continuous.py"), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(script, env=environment, **pipes, **options)


TINY = shlex.split(
    "--env-id envs:Target-v0 --no-cuda --hidden-dim 19 --flow-steps 3 --batch-size 29 "
    "--actor-batch-size 23 --learning-starts 31 --eval-interval 0"
)


def test_sigterm_stops_after_a_step_and_the_printed_command_goes_on(tmp_path):
    """Stopped, resumed by the command it printed at the start, then run to its end."""
    directory = tmp_path / "run"
    process = command(
        "--run-dir", str(directory), *TINY, "--checkpoint-minutes", "0", cwd=tmp_path
    )
    deadline = time.time() + 120
    while (
        not (directory / "checkpoint.pt").exists()
        or saved(directory)["progress"]["step"] < 50
    ):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    last = err.splitlines()[-1]
    assert process.returncode == 1 and "Traceback" not in err
    assert last == f"stopped; to continue: --run-dir '{directory}' --resume"
    step = saved(directory)["progress"]["step"]
    assert 50 <= step < 1_000_000
    flags = shlex.split(last.removeprefix("stopped; to continue: "))
    process = command(*flags, "--total-timesteps", str(step + 7), cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and out.splitlines()[-1] == f"done: {directory}", err
    assert saved(directory)["progress"]["step"] == step + 7
    assert json.loads((directory / "args.json").read_text())["hidden_dim"] == 19


def test_what_is_no_run_is_refused_in_one_line(tmp_path):
    def refused(content):
        if content is not None:
            (tmp_path / "args.json").write_text(content)
        process = command("--run-dir", str(tmp_path), "--resume")
        err = process.communicate(timeout=120)[1]
        assert process.returncode == 1 and err.startswith("error: cannot resume"), err
        assert err.count("\n") == 1

    refused(None)
    refused('{"tasks": ["kettle"], "gamma": 0.9}')  # the other script's


def test_killing_the_writer_never_leaves_an_unreadable_file(tmp_path):
    """kill -9 at random moments of a run that does little but write checkpoints."""
    generator, found = random.Random(0), 0
    for attempt in range(12):
        directory, deadline = tmp_path / str(attempt), time.time() + 30
        child = os.fork()
        if not child:
            os.close(1), os.close(2)
            tqdm.set_lock(threading.RLock())  # its own: killed with the parent's, both hang
            slow = dict(total_timesteps=10_000, hidden_dim=307)  # some MB to write
            try:
                run(
                    fmer_continuous,
                    directory,
                    checkpoint_minutes=0,
                    eval_interval=2,
                    **slow,
                )
            finally:
                os._exit(1)
        while not list(directory.glob("checkpoint.*")):
            assert time.time() < deadline and not os.waitpid(child, os.WNOHANG)[0]
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for name in ("checkpoint.pt", "policy.pt"):
            if (directory / name).exists():
                assert torch.load(directory / name, weights_only=True)["args"]
                found += name == "checkpoint.pt"
    assert found >= 6


def test_a_full_disk_keeps_the_last_checkpoint_and_is_one_line(tmp_path):
    """A limit on the size of files, which torch meets as it does a full disk."""
    shell = 'trap "" XFSZ; ulimit -f 100; exec "$@"'
    script = [
        sys.executable,
        str(ROOT / "fmer_continuous.py"),
        "--run-dir",
        f"{tmp_path}/run",
    ]
    limited = subprocess.run(
        ["bash", "-c", shell, "-", *script, *TINY, "--checkpoint-minutes", "0.002"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
    )
    last = limited.stderr.strip().splitlines()[-1]
    assert limited.returncode == 1 and "Traceback" not in limited.stderr, limited.stderr
    assert last.startswith("error: cannot write") and "checkpoint.pt" in last
    step = saved(tmp_path / "run")["progress"]["step"]
    assert step > 0
