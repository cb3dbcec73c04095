"""Checkpoints: exact resume, signals, kills while writing, refusals. Both scripts."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import envs  # noqa: F401  registers Target-v0
import pytest
import torch
from envs import at_step
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fmer_continuous
import fmer_kitchen

ROOT = Path(__file__).parent.parent
SMALL = dict(
    cuda=False, batch_size=29, actor_batch_size=23, hidden_dim=19, flow_steps=3, num_candidates=7,
    num_act_candidates=5, num_target_candidates=2, eval_episodes=2, log_interval=13,
)  # fmt: skip
TASKS = {
    fmer_continuous: dict(env_id="Target-v0", total_timesteps=97, learning_starts=31,
                          policy_frequency=3, eval_interval=20, checkpoint_interval=40,
                          buffer_size=61),
    fmer_kitchen: dict(tasks=("kettle", "microwave"), total_timesteps=311, learning_starts=271,
                       eval_interval=295, checkpoint_interval=290, buffer_size=1009),
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:.*share an object")


def small(fmer, directory, **changes):
    return fmer.Args(**(SMALL | TASKS[fmer] | dict(run_dir=str(directory)) | changes))


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
    return type(a) is type(b) and (a == b).all() if hasattr(a, "all") else a == b


def evaluations(directory):
    with open(directory / "eval.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def scalars(directory):
    """Every scalar event but the clock's, after TensorBoard's own purge of what was redone."""
    events = EventAccumulator(str(directory)).Reload()
    tags = set(events.Tags()["scalars"]) - {"charts/SPS"}
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def assert_same_run(resumed, whole):
    a, b = saved(resumed), saved(whole)
    for key in ("agent", "optimizer", "rows", "noise"):
        assert equal(a[key], b[key]), key
    step, episode, actions, eval_returns, metrics, _, _ = a["run"]
    assert equal((step, episode, actions, eval_returns, metrics), b["run"][:5])
    assert evaluations(resumed) == evaluations(whole)
    assert scalars(resumed) == scalars(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of each script."""
    directories = {}
    for fmer in TASKS:
        directories[fmer] = tmp_path_factory.mktemp("whole") / "run"
        result = fmer.main(small(fmer, directories[fmer]))
        steps = {int(s["step"]) for s in result["agent"].optimizer.state.values()}
        assert max(steps) == TASKS[fmer]["total_timesteps"] - TASKS[fmer]["learning_starts"]
    return directories


@pytest.mark.parametrize(
    ("fmer", "steps"),
    [(fmer_continuous, [5, 53]), (fmer_continuous, [60, 70, 71]), (fmer_kitchen, [299])],
)
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, monkeypatch, whole, fmer, steps):
    """Stopped as by a signal: in warm-up, in mid-episode, at an evaluation, at an episode's end,
    and twice in a row; the ring buffer has wrapped."""
    for step in steps:
        with monkeypatch.context() as patch:
            at_step(patch, fmer, step, lambda p=patch: p.setattr(fmer.Args, "stopped", True))
            fmer.main(small(fmer, tmp_path / "run", resume=(tmp_path / "run").exists()))
        assert saved(tmp_path / "run")["run"][0] == step
    fmer.main(small(fmer, tmp_path / "run", resume=True))
    assert_same_run(tmp_path / "run", whole[fmer])


def test_a_signal_during_start_up_loses_nothing(tmp_path, monkeypatch, whole):
    """Before the first step, then before the first step of the resumed run; then on the last."""
    directory = tmp_path / "run"
    for resume in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(fmer_continuous.Args, "stopped", True)
            fmer_continuous.main(small(fmer_continuous, directory, resume=resume))
        assert saved(directory)["run"][0] == 0 and saved(directory)["args"]["total_timesteps"] == 97
    with monkeypatch.context() as patch:
        stop = lambda: patch.setattr(fmer_continuous.Args, "stopped", True)  # noqa: E731
        at_step(patch, fmer_continuous, 97, stop)
        fmer_continuous.main(small(fmer_continuous, directory, resume=True))
    assert_same_run(directory, whole[fmer_continuous])


@pytest.mark.parametrize(
    ("fmer", "step", "at"), [(fmer_continuous, 77, 40), (fmer_kitchen, 309, 290)]
)
def test_a_crashed_run_resumes_from_its_last_checkpoint(
    tmp_path, monkeypatch, whole, fmer, step, at
):
    """Evaluations and events written after the checkpoint are not kept twice."""
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        at_step(patch, fmer, step, lambda: 1 / 0)
        fmer.main(small(fmer, tmp_path / "run"))
    assert saved(tmp_path / "run")["run"][0] == at
    assert int(evaluations(tmp_path / "run")[-1]["step"]) > at
    fmer.main(small(fmer, tmp_path / "run", resume=True))
    assert_same_run(tmp_path / "run", whole[fmer])


def test_a_finished_run_can_be_made_longer(tmp_path, whole):
    short = fmer_continuous.main(small(fmer_continuous, tmp_path / "run", total_timesteps=80))
    assert [step for step, _ in short["eval_returns"]] == [0, 20, 40, 60, 80]
    fmer_continuous.main(small(fmer_continuous, tmp_path / "run", resume=True))
    assert_same_run(tmp_path / "run", whole[fmer_continuous])


def test_a_checkpoint_is_written_once_where_the_run_ends(tmp_path, monkeypatch):
    written, write = [], torch.save
    monkeypatch.setattr(torch, "save", lambda what, path: (written.append(path), write(what, path)))
    for interval, checkpoints in ((40, 2), (0, 1), (33, 3)):
        written.clear()
        changes = dict(total_timesteps=80, checkpoint_interval=interval, eval_interval=0)
        fmer_continuous.main(small(fmer_continuous, tmp_path / str(interval), **changes))
        assert [path.name for path in written] == ["checkpoint.tmp"] * checkpoints


def test_resuming_another_time_changes_nothing(tmp_path):
    fmer_continuous.main(small(fmer_continuous, tmp_path / "run"))
    before = saved(tmp_path / "run")
    fmer_continuous.main(small(fmer_continuous, tmp_path / "run", resume=True))
    assert equal(before["agent"], saved(tmp_path / "run")["agent"])
    assert len(evaluations(tmp_path / "run")) == 2 * 6


@pytest.mark.parametrize("change", [{"seed": 2}, {"gamma": 0.9}, {"hidden_dim": 23}])
def test_other_arguments_are_refused_by_name(tmp_path, change):
    fmer_continuous.main(small(fmer_continuous, tmp_path / "run", total_timesteps=5))
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(SystemExit, match=f"error: .* with another {next(iter(change))}"):
        fmer_continuous.main(small(fmer_continuous, tmp_path / "run", resume=True, **change))
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_missing_truncated_or_foreign_checkpoint_is_refused(tmp_path):
    def refuse(kind):
        with pytest.raises(SystemExit) as refusal:
            fmer_continuous.main(small(fmer_continuous, tmp_path / "run", resume=True))
        assert str(refusal.value).startswith("error: cannot resume") and kind in str(refusal.value)
        assert "\n" not in str(refusal.value)

    refuse("FileNotFoundError")
    assert not (tmp_path / "run").exists()
    fmer_continuous.main(small(fmer_continuous, tmp_path / "run", total_timesteps=5))
    path = tmp_path / "run" / "checkpoint.pt"
    whole = path.read_bytes()
    for content in (whole[:1000], whole[:-100], b"", b"not a checkpoint"):
        path.write_bytes(content)
        refuse("Error")
        assert path.read_bytes() == content, "never overwritten"
    torch.save({"weights": torch.zeros(3)}, path)
    refuse("KeyError")
    torch.save({"args": {"tasks": ("kettle",)}}, path)  # the other script's
    refuse("TypeError")


def command(directory, *flags):
    script = [sys.executable, str(ROOT / "fmer_continuous.py"), "--run-dir", str(directory)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([*script, *flags], env=environment, **pipes)


def test_sigterm_stops_after_a_step_and_says_how_to_resume(tmp_path):
    """A real process: stopped, resumed with two flags, and made to run to its end."""
    flags = "--env-id envs:Target-v0 --no-cuda --hidden-dim 19 --flow-steps 3 --batch-size 29"
    flags += " --actor-batch-size 23 --learning-starts 31 --eval-interval 0 --buffer-size 1009"
    flags += " --checkpoint-interval 50"
    run = command(tmp_path / "run", *flags.split())
    deadline = time.time() + 60
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert time.time() < deadline and run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=60)
    last = err.splitlines()[-1]
    assert run.returncode == 1 and "Traceback" not in err and not out
    assert last == f"stopped; to continue: --run-dir {tmp_path}/run --resume"
    step = saved(tmp_path / "run")["run"][0]
    assert 50 <= step < 1_000_000
    run = command(tmp_path / "run", "--resume", "--total-timesteps", str(step + 7))
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0 and out == f"done: {tmp_path}/run\n", err
    assert saved(tmp_path / "run")["run"][0] == step + 7
    run = command(tmp_path / "run", "--resume", "--gamma", "0.5")
    assert run.communicate(timeout=60)[1].splitlines()[-1].endswith("with another gamma")


def test_killing_the_writer_never_leaves_an_unreadable_file(tmp_path):
    """kill -9 at random moments of a run that does little but write checkpoints."""
    generator, found = random.Random(0), 0
    for attempt in range(20):
        directory, deadline = tmp_path / str(attempt), time.time() + 30
        child = os.fork()
        if not child:
            os.close(1), os.close(2)
            args = small(fmer_continuous, directory, checkpoint_interval=1, eval_interval=2)
            args.total_timesteps, args.hidden_dim = 10_000, 307  # some MB to write
            try:
                fmer_continuous.main(args)
            finally:
                os._exit(1)
        while not list(directory.glob("checkpoint.*")):
            assert time.time() < deadline and not os.waitpid(child, os.WNOHANG)[0]
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for name in ("checkpoint.pt", "policy.pt", "policy_best.pt"):
            if (directory / name).exists():
                assert torch.load(directory / name, weights_only=True)["args"]
                found += name == "checkpoint.pt"
    assert found >= 10


def test_a_full_disk_keeps_the_last_checkpoint_and_is_one_line(tmp_path):
    """A limit on the size of files, which torch meets as it does a full disk, in a real process."""
    flags = "--env-id envs:Target-v0 --no-cuda --hidden-dim 19 --flow-steps 3 --batch-size 29"
    flags += " --actor-batch-size 23 --learning-starts 31 --eval-interval 0 --buffer-size 100003"
    flags += " --checkpoint-interval 100"
    shell = 'trap "" XFSZ; ulimit -f $1; shift; exec "$@"'
    script = [sys.executable, str(ROOT / "fmer_continuous.py"), "--run-dir", str(tmp_path / "run")]
    limited = subprocess.run(
        ["bash", "-c", shell, "-", "100", *script, *flags.split()],
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")}, capture_output=True, text=True,
    )  # fmt: skip
    last = limited.stderr.strip().splitlines()[-1]
    assert limited.returncode == 1 and "Traceback" not in limited.stderr, limited.stderr
    assert last.startswith("error: cannot write") and "checkpoint.tmp" in last
    assert saved(tmp_path / "run")["run"][0] % 100 == 0
    (tmp_path / "file").write_text("")
    run = command(tmp_path / "file" / "run", "--env-id", "envs:Target-v0")
    error = run.communicate(timeout=60)[1]
    assert run.returncode == 1 and error.splitlines()[-1].startswith("error: [Errno ")
    assert "Traceback" not in error


def test_a_diverging_run_stops_at_the_next_logging_point_and_names_it(tmp_path, monkeypatch):
    """NaN in the critics after step 51: noticed at 52, and the checkpoint of 40 stays."""
    result = {}

    def poison():
        torch.nn.init.constant_(result["agent"].critic.q1.out.bias, torch.nan)

    build = fmer_continuous.Agent.__init__

    def watched(self, *args):
        build(self, *args)
        result["agent"] = self

    monkeypatch.setattr(fmer_continuous.Agent, "__init__", watched)
    at_step(monkeypatch, fmer_continuous, 51, poison)
    with pytest.raises(SystemExit, match="error: losses/critic is nan at step 52"):
        fmer_continuous.main(small(fmer_continuous, tmp_path / "run"))
    assert saved(tmp_path / "run")["run"][0] == 40
    assert all(value.isfinite().all() for value in saved(tmp_path / "run")["agent"].values())


def test_the_best_policy_is_kept_beside_the_last(tmp_path, monkeypatch):
    """Evaluations that earn 1, 3, 2, 3, 0 and 1: the best is the fourth, as good as the second."""
    earned, weights = [1.0, 3.0, 2.0, 3.0, 0.0, 1.0], []

    def evaluate(agent, tasks):
        weights.append(agent.velocity.net.hidden.weight.clone())
        return [{"return": earned[len(weights) - 1], "length": 7}]

    monkeypatch.setattr(fmer_continuous, "evaluate", evaluate)
    fmer_continuous.main(small(fmer_continuous, tmp_path / "run"))
    for name, number in (("policy_best.pt", 3), ("policy.pt", 5)):
        policy = torch.load(tmp_path / "run" / name, weights_only=True)
        assert torch.equal(policy["agent"]["velocity.net.hidden.weight"], weights[number])
    assert not torch.equal(weights[3], weights[5])
