"""figures/cuda_graphs.py with recordings that are played on the CPU, where no ordinary
steps come before them. CUDA itself is not tested."""

import pytest
from test_resume import equal, evaluations, run, saved, scalars

import fmer_continuous
from figures import cuda_graphs


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
def graphs(monkeypatch):
    monkeypatch.setattr(Recording, "replays", 0)
    monkeypatch.setattr(cuda_graphs, "record", record)
    return lambda: monkeypatch.setattr(fmer_continuous, "Agent", cuda_graphs.GraphAgent)


def test_a_run_by_graphs_is_the_run(tmp_path, graphs):
    run(fmer_continuous, tmp_path / "whole")
    graphs()
    run(fmer_continuous, tmp_path / "graphs")
    whole, played = saved(tmp_path / "whole"), saved(tmp_path / "graphs")
    steps = whole["args"]["total_timesteps"] - whole["args"]["learning_starts"]
    assert Recording.replays == 2 * steps
    assert equal(played["agent"], whole["agent"])
    for name in fmer_continuous.OPTIMIZERS:
        assert equal(played[name]["state"], whole[name]["state"])
    assert evaluations(tmp_path / "graphs") == evaluations(tmp_path / "whole")
    assert scalars(tmp_path / "graphs") == scalars(tmp_path / "whole")


def test_graphs_resume_a_plain_run(tmp_path, graphs):
    run(fmer_continuous, tmp_path / "run", total_timesteps=47)
    graphs()
    run(fmer_continuous, tmp_path / "run", total_timesteps=53, resume=True)
    for name in fmer_continuous.OPTIMIZERS:
        groups = saved(tmp_path / "run")[name]["param_groups"]
        assert all(group["capturable"] for group in groups)


def test_without_a_gpu_it_says_so(tmp_path):
    with pytest.raises(SystemExit, match="^error: CUDA graphs need a GPU$"):
        cuda_graphs.main(fmer_continuous.Args(cuda=False, run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
