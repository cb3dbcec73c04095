"""figures/cuda_graphs.py with recordings that are played on the CPU, where no ordinary
steps come before them, and with CUDA's where there is a GPU."""

import numpy as np
import pytest
import torch
from test_agent import D, S, new_agent, random_batch
from test_resume import RUNS, equal, evaluations, run, saved, scalars

import fmer_continuous
import fmer_kitchen
from envs import SMALL, needs_gpu
from figures import cuda_graphs

AGENTS = {
    fmer_continuous: cuda_graphs.GraphAgent,
    fmer_kitchen: cuda_graphs.KitchenGraphAgent,
}
pytestmark = pytest.mark.filterwarnings("ignore:.*share an object")  # the kitchen's goals


class Recording:
    """Graph and results in one: each replay writes its results over those before."""

    replays = 0
    results = None

    def __init__(self, function):
        self.function = function

    def replay(self):
        Recording.replays += 1
        new = self.function()
        if self.results is None:
            self.results = new
        for name in new if isinstance(new, dict) else range(len(new)):
            self.results[name].copy_(new[name])

    def __iter__(self):
        return iter(self.results)

    def keys(self):
        return self.results.keys()

    def __getitem__(self, name):
        return self.results[name]


def record(function):
    recording = Recording(function)
    return recording, recording


@pytest.fixture
def graphs(monkeypatch, fmer):
    monkeypatch.setattr(Recording, "replays", 0)
    monkeypatch.setattr(cuda_graphs, "record", record)
    return lambda: monkeypatch.setattr(fmer, "Agent", AGENTS[fmer])


def test_a_run_by_graphs_is_the_run(tmp_path, graphs, fmer):
    run(fmer, tmp_path / "whole")
    graphs()
    run(fmer, tmp_path / "graphs")
    whole, played = saved(tmp_path / "whole"), saved(tmp_path / "graphs")
    steps = whole["args"]["total_timesteps"] - whole["args"]["learning_starts"]
    assert Recording.replays == 2 * steps
    assert equal(played["agent"], whole["agent"])
    for name in fmer.OPTIMIZERS:
        assert equal(played[name]["state"], whole[name]["state"])
    assert evaluations(tmp_path / "graphs") == evaluations(tmp_path / "whole")
    assert scalars(tmp_path / "graphs") == scalars(tmp_path / "whole")


def test_graphs_resume_a_plain_run(tmp_path, graphs, fmer):
    steps = (SMALL | RUNS[fmer])["learning_starts"] + 17
    run(fmer, tmp_path / "run", total_timesteps=steps)
    graphs()
    run(fmer, tmp_path / "run", total_timesteps=steps + 5, resume=True)
    for name in fmer.OPTIMIZERS:
        groups = saved(tmp_path / "run")[name]["param_groups"]
        assert all(group["capturable"] for group in groups)


def test_without_a_gpu_it_says_so(tmp_path, fmer):
    with pytest.raises(SystemExit, match="^error: CUDA graphs need a GPU$"):
        cuda_graphs.main(fmer.Args(cuda=False, run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_each_script_gets_its_agent(monkeypatch, fmer):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fmer, "Agent", fmer.Agent)  # what main changes is undone
    monkeypatch.setattr(fmer, "main", lambda args: (fmer.Agent, args))
    args = fmer.Args()
    assert cuda_graphs.main(args) == (AGENTS[fmer], args)


def repeat_draws(monkeypatch):
    """The same noise at every call: a replay cannot be given that of another run."""
    first = {}
    for name in ("randn", "randint", "randn_like", "rand_like"):
        function = getattr(torch, name)

        def draw(*args, function=function, **options):
            sizes = [x.shape if isinstance(x, torch.Tensor) else x for x in args]
            key = f"{function.__name__} {sizes}"
            if key not in first:
                first[key] = function(*args, **options)
            return first[key].clone()

        monkeypatch.setattr(torch, name, draw)


@needs_gpu
def test_replays_compute_what_the_ordinary_steps_compute(monkeypatch, fmer):
    plain = new_agent(fmer).cuda()
    played = AGENTS[fmer](S, D, plain.args).cuda()
    played.load_state_dict(plain.state_dict())
    repeat_draws(monkeypatch)
    first, second = ([x.cuda() for x in random_batch()] for _ in range(2))
    for batch, with_actor, ordinary in (
        (first, True, 4),  # three before the recording, and a replay
        (second, True, 1),
        (first, False, 4),
        (second, False, 1),
    ):
        losses = played.update(batch, with_actor)
        for _ in range(ordinary):
            expected = plain.update(batch, with_actor)
        torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)
    trained = dict(plain.named_parameters())
    torch.testing.assert_close(dict(played.named_parameters()), trained, rtol=0, atol=1e-4)
    for obs in np.random.default_rng(1).normal(size=(3, 1, S)):
        torch.testing.assert_close(played.act(obs, 5), plain.act(obs, 5), rtol=0, atol=1e-3)


@needs_gpu
def test_cudas_graphs_train_and_resume(tmp_path, monkeypatch, fmer):
    steps = (SMALL | RUNS[fmer])["learning_starts"] + 17
    run(fmer, tmp_path / "run", total_timesteps=steps, cuda=True)
    before = saved(tmp_path / "run")["agent"]
    monkeypatch.setattr(fmer, "Agent", AGENTS[fmer])
    run(fmer, tmp_path / "run", total_timesteps=steps + 23, resume=True, cuda=True)
    after = saved(tmp_path / "run")
    assert after["progress"]["step"] == steps + 23
    for name in ("velocity.net.out.weight", "log_alpha", "log_temperature"):
        assert after["agent"][name].isfinite().all()
        assert not torch.equal(after["agent"][name], before[name])


@needs_gpu
def test_each_replay_draws_anew(fmer):
    agent = AGENTS[fmer](S, D, new_agent(fmer).args).cuda()
    actions = {agent.act(np.zeros((1, S)), 1)[0].sum() for _ in range(5)}
    assert len(actions) == 5
