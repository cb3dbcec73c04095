"""figures/cuda_graphs.py with recordings that are played on the CPU, where nothing comes
before them: all of it but CUDA itself."""

import pytest
from test_resume import equal, run, saved, scalars

import fmer_continuous
from figures import cuda_graphs


class Recording:
    """Graph and results in one: the results are those of the last replay."""

    replays = 0

    def __init__(self, function):
        self.function = function

    def replay(self):
        Recording.replays += 1
        self.results = self.function()

    def __iter__(self):
        return iter(self.results)

    def keys(self):
        return self.results.keys()

    def __getitem__(self, name):
        return self.results[name]


def record(function):
    recording = Recording(function)
    return recording, recording


def test_a_run_by_graphs_is_the_run(tmp_path, monkeypatch):
    run(fmer_continuous, tmp_path / "whole")
    monkeypatch.setattr(fmer_continuous, "Agent", cuda_graphs.GraphAgent)
    monkeypatch.setattr(cuda_graphs, "record", record)
    run(fmer_continuous, tmp_path / "graphs")
    args = saved(tmp_path / "whole")["args"]
    assert Recording.replays == 2 * (args["total_timesteps"] - args["learning_starts"])
    assert equal(*[saved(tmp_path / name)["agent"] for name in ("graphs", "whole")])
    assert scalars(tmp_path / "graphs") == scalars(tmp_path / "whole")


def test_without_a_gpu_it_says_so(tmp_path):
    with pytest.raises(SystemExit, match="^error: CUDA graphs need a GPU$"):
        cuda_graphs.main(fmer_continuous.Args(cuda=False, run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
