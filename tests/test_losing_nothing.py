"""What can end a run, and what is left of it: errors in the user's environment, values that
are not finite, damaged files, two processes in one place, signals. Exact resume is tested
in test_resume.py, refused flags in test_training.py."""

import functools
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from test_resume import command, saved
from test_training import run
from torch.utils._python_dispatch import TorchDispatchMode

import fmer_continuous
import fmer_kitchen
from envs import SMALL, Target, at_step


def all_finite(value):
    if isinstance(value, dict):
        return all(map(all_finite, value.values()))
    return not isinstance(value, torch.Tensor) or value.isfinite().all()


# --- The user's own environment -----------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "call", "last_step"), [("step", 53, 52), ("reset", 9, 56)]
)
def test_an_error_in_the_environment_leaves_a_checkpoint_of_the_last_whole_step(
    tmp_path, monkeypatch, method, call, last_step
):
    """OSError, which is no full disk; the traceback is the user's."""
    calls, original = [], getattr(Target, method)

    def fails(self, action=None, seed=None, options=None):
        calls.append(1)
        if len(calls) == call:
            raise OSError("the simulator has no licence")
        return original(self, *([action] if method == "step" else [seed, options]))

    with monkeypatch.context() as patch:
        patch.setattr(Target, method, fails)
        with pytest.raises(OSError, match="licence") as error:
            run(tmp_path)
    assert error.traceback[-1].name == "fails"
    left = saved(tmp_path / "run")
    assert left["progress"]["step"] == left["agent"]["count"] == last_step
    result = run(tmp_path, resume=True)
    assert len(result["buffer"]) == 97


def test_a_run_that_cannot_begin_leaves_no_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(Target, "reset", lambda self, seed=None, options=None: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "module", "error", "message"),
    [
        ("1 / 0", "broken_module", ZeroDivisionError, "division"),
        ("import not_installed", "lacking_module", SystemExit, "'not_installed'"),
        ("", "no_such_module", SystemExit, "'no_such_module'"),
    ],
)
def test_a_bug_in_the_users_module_keeps_its_traceback(
    tmp_path, monkeypatch, text, module, error, message
):
    """A module that is not there, the user's or one that it imports, is named in a line."""
    if text:
        (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error, match=message) as refusal:
        run(tmp_path, env_id=f"{module}:Task-v0")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("failing_step", [None, 53])
def test_environments_are_closed(tmp_path, monkeypatch, failing_step):
    """The one that trains and the three that evaluate, also after an error."""
    closed, stepped, step = [], [], Target.step

    def fails(self, action):
        stepped.append(1)
        if len(stepped) == failing_step:
            raise RuntimeError("the simulator fell over")
        return step(self, action)

    monkeypatch.setattr(Target, "step", fails)
    monkeypatch.setattr(Target, "close", lambda self: closed.append(self))
    if failing_step:
        with pytest.raises(RuntimeError, match="fell over"):
            run(tmp_path, eval_interval=97)
    else:
        run(tmp_path, eval_interval=97)
    assert len(set(closed)) == 4


def test_an_error_during_an_evaluation_loses_no_step(tmp_path, monkeypatch):
    evaluate, evaluated = fmer_continuous.evaluate, []

    def fails(agent, envs, signals):
        evaluated.append(1)
        if len(evaluated) == 3:
            raise RuntimeError("the simulator fell over")
        return evaluate(agent, envs, signals)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="fell over"):
        patch.setattr(fmer_continuous, "evaluate", fails)
        run(tmp_path, eval_interval=20)
    assert saved(tmp_path / "run")["progress"]["step"] == 40
    result = run(tmp_path, eval_interval=20, resume=True)
    assert list(result["progress"].eval_returns) == [0, 20, 40, 60, 80, 97]


def stopped_by_a_failing_log(tmp_path, monkeypatch, prefix, step, **changes):
    """A run whose events find no space at that step."""
    log = fmer_continuous.log

    def fails(writer, name, values, at):
        if (name, at) == (prefix, step):
            raise OSError("no space for events")
        log(writer, name, values, at)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(fmer_continuous, "log", fails)
        run(tmp_path, **changes)


def test_a_failing_log_at_the_end_of_an_episode_leaves_its_end(tmp_path, monkeypatch):
    stopped_by_a_failing_log(tmp_path, monkeypatch, "charts/episodic_", 56)
    progress = saved(tmp_path / "run")["progress"]
    assert (progress["step"], progress["episode"]) == (56, [])
    assert progress["episode_seed"] == 1 + 8 * 1_000_003
    rows = run(tmp_path, resume=True)["buffer"].rows
    assert torch.equal(rows, run(tmp_path, "whole")["buffer"].rows)


def test_an_evaluation_that_is_not_logged_is_made_again(tmp_path, monkeypatch):
    """And recorded once."""
    changes = dict(eval_interval=20)
    stopped_by_a_failing_log(tmp_path, monkeypatch, "eval/", 40, **changes)
    run(tmp_path, **changes, resume=True)
    lines = (tmp_path / "run" / "eval.csv").read_text().splitlines()[1:]
    steps = [int(line.split(",")[0]) for line in lines]
    assert steps == [step for step in (0, 20, 40, 60, 80, 97) for _ in range(3)]


@pytest.mark.parametrize("file", ["eval.csv", "policy.pt"])
def test_an_evaluation_whose_file_cannot_be_written_is_made_again(
    tmp_path, monkeypatch, file
):
    """The last one, after which no other writes the file."""
    save_file = fmer_continuous.save_file

    def fails(path, content):
        if path.name == file:
            raise SystemExit("no space")
        save_file(path, content)

    whole = run(tmp_path, "whole", eval_interval=97)
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="no space"):
        fail = functools.partial(patch.setattr, fmer_continuous, "save_file", fails)
        at_step(patch, fmer_continuous, 97, fail)
        run(tmp_path, eval_interval=97)
    assert saved(tmp_path / "run")["progress"]["step"] == 97
    run(tmp_path, eval_interval=97, resume=True)
    for name in ("whole", "run"):
        rows = (tmp_path / name / "eval.csv").read_text().splitlines()[1:]
        assert [int(row.split(",")[0]) for row in rows] == [0] * 3 + [97] * 3
    policy = torch.load(tmp_path / "run" / "policy.pt", weights_only=True)["agent"]
    for key, value in whole["agent"].state_dict().items():
        assert torch.equal(policy[key], value)


def test_actions_stay_within_the_users_box():
    """Where rescaling rounds beyond it: at the edges of a box that is not symmetric."""
    env = fmer_continuous.make_env("Careful-v0")
    env.reset(seed=0)
    edge = np.nextafter(np.float32(1), np.float32(0))
    for action in ([1, -1], [-1, 1], [edge, -edge]):
        env.step(np.array(action, np.float32))  # asserts that it is in the box


def test_a_reward_may_be_an_array_of_one_element(tmp_path):
    plain, arrays = run(tmp_path, "a"), run(tmp_path, "b", env_id="OneElement-v0")
    assert torch.equal(plain["buffer"].rows, arrays["buffer"].rows)


# --- Values that are not finite -----------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "value", "name"),
    [
        ("reward", np.nan, "reward"),
        ("reward", 1e39, "reward"),  # infinite in the buffer's single precision
        ("observation", -np.inf, "next observation"),
    ],
)
def test_a_transition_that_is_not_finite_stops_the_run_at_its_step(
    tmp_path, monkeypatch, what, value, name
):
    steps, step = [], Target.step

    def poisoned(self, action):
        obs, reward, *rest = step(self, action)
        steps.append(1)
        if len(steps) == 53 and what == "reward":
            reward = value
        elif len(steps) == 53:
            obs = np.array([0.0, value, 0.0])
        return obs, reward, *rest

    monkeypatch.setattr(Target, "step", poisoned)
    with pytest.raises(SystemExit, match=f"^error: step 53: {name} is not finite$"):
        run(tmp_path)
    left = saved(tmp_path / "run")
    assert left["progress"]["step"] == 52 and all_finite(left)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e39])
def test_a_number_of_any_kind_must_be_finite_in_single_precision(fmer, value):
    tensor = torch.full((3, 5), 1e30)
    fmer.require_finite("all", {"reward": np.float32(1), "rows": tensor, "none": 7 * [""]})
    tensor = tensor.double()
    tensor[2, 1] = value
    for bad in (value, np.float32(value), np.array([0, value]), tensor):
        with pytest.raises(SystemExit, match="^error: all a b is not finite$"):
            fmer.require_finite("all", {"a": {"c": 1.0, "b": bad}})


def poison_networks(agent, buffer):
    torch.nn.init.constant_(agent.critic.q1.out.bias, torch.nan)


def poison_optimizer(agent, buffer):
    next(iter(agent.q_optimizer.state.values()))["exp_avg_sq"].fill_(torch.inf)


def poison_buffer(agent, buffer):
    buffer.rows[11, 3] = torch.nan


@pytest.mark.parametrize(
    ("poison", "name"),
    [
        (poison_networks, r"agent critic.q1.out.bias"),
        (poison_optimizer, r"q_optimizer state 0 exp_avg_sq"),
        (poison_buffer, r"rows"),
    ],
)
@pytest.mark.parametrize("step", [51, 97])
def test_what_is_not_finite_is_never_saved(tmp_path, monkeypatch, poison, name, step):
    """After an update in mid-run and after the last one, between two logging points."""
    built, init = {}, fmer_continuous.Agent.__init__
    add = fmer_continuous.ReplayBuffer.add

    def watched_init(self, *args):
        init(self, *args)
        built["agent"] = self

    def watched_add(self, *transition):
        built["buffer"] = self
        add(self, *transition)

    monkeypatch.setattr(fmer_continuous.Agent, "__init__", watched_init)
    monkeypatch.setattr(fmer_continuous.ReplayBuffer, "add", watched_add)
    at_step(monkeypatch, fmer_continuous, step, lambda: poison(**built))
    stays = f"^error: .*checkpoint.pt stays as it was: {name} is not finite$"
    with pytest.raises(SystemExit, match=stays):
        run(tmp_path, checkpoint_minutes=0)
    left = saved(tmp_path / "run")
    assert left["progress"]["step"] == step - 1 and all_finite(left)


def test_a_policy_that_is_not_finite_is_not_published(tmp_path):
    agent = run(tmp_path, eval_interval=97)["agent"]
    before = (tmp_path / "run" / "policy.pt").read_bytes()
    torch.nn.init.constant_(agent.velocity.net.out.bias, torch.nan)
    policy = {"agent": agent.state_dict()}
    with pytest.raises(SystemExit, match="policy.pt stays as it was: .*velocity.net.out"):
        fmer_continuous.save_file(tmp_path / "run" / "policy.pt", policy)
    assert (tmp_path / "run" / "policy.pt").read_bytes() == before


def test_no_entropy_term_is_no_infinity(tmp_path):
    """α = 0, whose logarithm would not be finite."""
    result = run(tmp_path, alpha=0.0, autotune=False)
    assert result["agent"].log_alpha.exp() == 0 and all_finite(saved(tmp_path / "run"))


class Results(TorchDispatchMode):
    """Keeps what every operation makes."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        self.made += [result] if isinstance(result, torch.Tensor) else []
        return result


def test_a_checkpoint_takes_one_copy_of_the_buffer(tmp_path):
    """As much as a run asks for when it begins, and not a mask or a moment more."""
    result = run(tmp_path)
    agent, buffer, progress = (result[name] for name in ("agent", "buffer", "progress"))
    buffer.rows = torch.zeros(20_011, buffer.rows.shape[1])
    buffer.num_added = 20_011
    with Results() as results:
        fmer_continuous.save_checkpoint(tmp_path / "run", agent, buffer, progress)
    storages = [buffer.rows.untyped_storage()]
    storages += [each.untyped_storage() for each in results.made]
    large = [each for each in storages if each.nbytes() >= buffer.rows.numel()]
    assert len({each.data_ptr() for each in large}) == 2


# --- Damaged files ------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_refused_or_harmless(tmp_path):
    """Bytes changed at random: found by the checksum, if anything that is read changed."""
    run(tmp_path, total_timesteps=40)
    path = tmp_path / "run" / "checkpoint.pt"
    good, reference = path.read_bytes(), saved(tmp_path / "run")
    generator, refused = random.Random(1), 0
    for _ in range(40):
        position = generator.randrange(len(good))
        damaged = bytearray(good)
        damaged[position] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            left = run(tmp_path, total_timesteps=40, resume=True)
        except SystemExit as error:
            assert str(error).startswith("error: cannot resume") and "\n" not in str(error)
            assert path.read_bytes() == damaged, "never overwritten"
            refused += 1
        else:
            for name, value in left["agent"].state_dict().items():
                assert torch.equal(value, reference["agent"][name])
            assert torch.equal(left["buffer"].rows[:40], reference["rows"])
    assert refused > 20


def test_a_policy_is_no_checkpoint(tmp_path):
    run(tmp_path, eval_interval=97)
    (tmp_path / "run" / "policy.pt").replace(tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(SystemExit, match="^error: cannot resume .*policy_optimizer"):
        run(tmp_path, eval_interval=97, resume=True)


# --- One run, one process -----------------------------------------------------------------


def test_a_run_that_is_going_on_is_refused_in_one_line(tmp_path):
    run(tmp_path, total_timesteps=40)
    before = saved(tmp_path / "run")["agent"]
    with FileLock(tmp_path / "run" / "lock"):
        with pytest.raises(SystemExit, match="^error: .*lock.* could not be acquired"):
            run(tmp_path, resume=True)
    after = saved(tmp_path / "run")["agent"]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(run(tmp_path, resume=True)["buffer"]) == 97, "free again"


def test_a_checkpoint_is_read_when_nobody_else_can_write_a_later_one(tmp_path, monkeypatch):
    run(tmp_path, total_timesteps=40)
    load, read = fmer_continuous.load_checkpoint, []

    def load_locked(run_dir, *rest):
        with pytest.raises(Timeout):
            FileLock(run_dir / "lock").acquire(timeout=0)
        read.append(run_dir)
        return load(run_dir, *rest)

    monkeypatch.setattr(fmer_continuous, "load_checkpoint", load_locked)
    run(tmp_path, resume=True)
    assert read == [tmp_path / "run"]


def test_a_last_checkpoint_that_cannot_be_written_leaves_nothing_open(
    tmp_path, monkeypatch, capsys
):
    """The lock is free, and what is printed last is the error, not the bar."""

    def full_disk(run_dir, agent, buffer, progress):
        if progress.step == 40:
            raise SystemExit("error: cannot write")

    monkeypatch.setattr(fmer_continuous, "save_checkpoint", full_disk)
    with pytest.raises(SystemExit, match="cannot write") as caught:
        run(tmp_path, total_timesteps=40)
    last = capsys.readouterr().err.splitlines()[-1]
    frames = [entry.frame.f_locals for entry in caught.traceback]
    (left,) = [each for each in frames if "bar" in each]
    assert left["bar"].disable and "40/40" in last
    assert left["writer"].file_writer is None
    with FileLock(tmp_path / "run" / "lock").acquire(timeout=0):
        pass


# --- Multipliers --------------------------------------------------------------------------


def test_a_multiplier_stops_at_its_bound(fmer):
    """Where its target is out of reach: a flat Q, and an entropy that no policy has."""
    args = fmer.Args(**SMALL, target_entropy_scale=0.69)
    torch.manual_seed(0)
    agent = fmer.Agent(5, 2, args)
    with torch.no_grad():
        agent.log_temperature.fill_(-14.0)
        agent.log_alpha.fill_(21.0)
    before = agent.velocity.net.out.bias.clone()
    for q in (agent.critic.q1, agent.critic.q2):
        torch.nn.init.zeros_(q.out.weight)  # Q is flat: T can only fall
    losses = agent.update_actor(torch.randn(23, 5))
    assert (
        losses["ess"].item() == pytest.approx(1)
        and losses["entropy"] < agent.target_entropy
    )
    assert agent.log_temperature.item() == -14 and agent.log_alpha.item() == 21
    assert agent.velocity.net.out.bias.isfinite().all()
    assert not torch.equal(agent.velocity.net.out.bias, before)


def test_the_smallest_temperature_gives_finite_weights(fmer):
    q = torch.tensor([[3.0, 3.0, 1.0], [-1e4, 2e4, 7.0], [5.0, 5.0, 5.0]])
    weights, ess = fmer.candidate_weights(q, torch.tensor(-14.0).exp())
    torch.testing.assert_close(ess, torch.tensor([2.0, 1.0, 3.0]))
    assert weights.isfinite().all()


def test_the_kitchens_tasks_are_named_or_counted_not_both():
    args = fmer_kitchen.Args(tasks=["kettle"], num_tasks=4)
    with pytest.raises(SystemExit, match="^error: --tasks goes without --num-tasks"):
        fmer_kitchen.chosen_tasks(args)


def test_an_environment_that_changes_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_dir = run(tmp_path, env_id="Moving-v0", run_dir="here", eval_interval=97)["run_dir"]
    assert run_dir == tmp_path / "here" and saved(run_dir)["progress"]["step"] == 97
    assert (run_dir / "eval.csv").exists() and (run_dir / "policy.pt").exists()


# --- Real processes -----------------------------------------------------------------------


WARMS_UP_TO_ITS_END = ["--env-id", "envs:Target-v0", "--learning-starts", "1000000"]


def start(directory, *flags, **options):
    """fmer_continuous.py, without evaluations."""
    common = ["--run-dir", str(directory), "--no-cuda", "--eval-interval", "0"]
    return command(*common, *flags, **options)


def wait_for(process, path):
    deadline = time.time() + 120
    while not path.exists():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)


@pytest.fixture
def hangups_are_heard():
    """Also where the tests themselves run under nohup, which runs inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_hangup_stops_a_run_and_its_lock_keeps_others_out(tmp_path, hangups_are_heard):
    flags = [*WARMS_UP_TO_ITS_END, "--checkpoint-minutes", "0"]
    first = start(tmp_path / "run", *flags)
    wait_for(first, tmp_path / "run" / "checkpoint.pt")
    second = start(tmp_path / "run", *flags, "--resume")
    err = second.communicate(timeout=120)[1]
    assert second.returncode == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert "lock" in err and first.poll() is None
    for _ in range(2):  # as shells do: the second one must not cut the saving short
        first.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    err = first.communicate(timeout=120)[1]
    assert first.returncode == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("stopped; to continue: ")
    assert saved(tmp_path / "run")["progress"]["step"] > 0


HANGUPS_INSIDE_THE_HANDLER = """
import runpy, signal, sys

def observed(number, handler):  # a hangup at each call that the handler makes, at any depth
    def hang_up(*_):
        register(signal.SIGHUP, handler)  # the handler of the last one ignores the next
        signal.raise_signal(signal.SIGHUP)
        hangups.append(number)

    def runs(number, frame):
        sys.setprofile(hang_up)
        handler(number, frame)
        sys.setprofile(None)

    return register(number, runs if callable(handler) else handler)

register, signal.signal, hangups = signal.signal, observed, []
try:
    runpy.run_path(sys.argv.pop(1), run_name="__main__")
finally:
    print("hangups:", len(hangups))
"""


def test_signals_that_interrupt_the_handler_of_another_do_not_hang_a_run(tmp_path):
    """As `timeout` sends two, one right after the other."""
    flags = [*WARMS_UP_TO_ITS_END, "--checkpoint-minutes", "0"]
    process = start(tmp_path / "run", *flags, program=["-c", HANGUPS_INSIDE_THE_HANDLER])
    wait_for(process, tmp_path / "run" / "checkpoint.pt")
    process.send_signal(signal.SIGTERM)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert int(out.split("hangups: ")[1]) > 1
    assert err.splitlines()[-1].startswith("stopped; to continue: ")
    assert saved(tmp_path / "run")["progress"]["step"] > 0


def test_a_run_whose_reader_is_gone_is_saved(tmp_path):
    """As in `… 2>&1 | tee log`, where Ctrl-C ends tee as well."""
    process = start(tmp_path / "run", *WARMS_UP_TO_ITS_END)
    process.stderr.readline()  # of the progress bar: it takes steps
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) != 0
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_nohup_is_obeyed_and_a_third_signal_ends_a_stuck_run_at_once(tmp_path):
    def like_nohup():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    flags = ["--env-id", "envs:Stuck-v0"]
    process = start(tmp_path / "run", *flags, preexec_fn=like_nohup)
    lines = threading.Thread(target=lambda: [line for line in iter(read, "stuck\n")])
    read = process.stdout.readline
    lines.start()
    lines.join(timeout=120)
    assert not lines.is_alive()
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.3)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == -signal.SIGTERM
    process.stdout.close()
    process.stderr.close()
