"""figures/watch.py: a saved policy evaluated again, in another process too."""

import csv
import subprocess
import sys

import envs  # noqa: F401  registers Target-v0
import numpy as np
import pytest
import torch

import fmer_continuous
import fmer_kitchen
from figures import watch

SMALL = dict(cuda=False, learning_starts=31, batch_size=29, actor_batch_size=23, hidden_dim=19,
             flow_steps=3, eval_episodes=3, buffer_size=1009)  # fmt: skip


def last_returns(directory):
    with open(directory / "eval.csv") as file:
        rows = list(csv.DictReader(file))
    return [float(row["return"]) for row in rows if row["step"] == rows[-1]["step"]]


def test_a_fresh_process_reproduces_the_last_evaluation(tmp_path):
    args = fmer_continuous.Args(
        env_id="Hopper-v4", total_timesteps=53, run_dir=str(tmp_path / "run"), **SMALL
    )
    fmer_continuous.main(args)
    expected = last_returns(tmp_path / "run")
    episodes = watch.main(watch.Args(tmp_path / "run", eval_episodes=3))
    assert [each["return"] for each in episodes] == expected
    command = [sys.executable, watch.__file__, "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([*command, "--eval-episodes", "3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mean, std = np.mean(expected), np.std(expected)
    assert done.stdout.splitlines()[0] == f"return: {mean:.5g} ± {std:.5g} (3 episodes)"


def test_the_kitchens_policies_and_videos(tmp_path):
    args = fmer_kitchen.Args(
        tasks=("kettle",), total_timesteps=37, run_dir=str(tmp_path / "run"), **SMALL
    )
    fmer_kitchen.main(args)
    fmer, task, agent = watch.load(tmp_path / "run" / "policy.pt")
    assert (fmer, task, agent.args.flow_steps) == (fmer_kitchen, ["kettle"], 3)
    assert watch.task_of(fmer_kitchen.Args(tasks=("kettle", "kettle"))) == ["kettle"]
    assert watch.task_of(fmer_kitchen.Args(num_tasks=1)) == ["microwave"]
    target = fmer_continuous.Args(
        env_id="Target-v0", total_timesteps=37, run_dir=str(tmp_path / "target"), **SMALL
    )
    fmer_continuous.main(target)
    watch.main(watch.Args(tmp_path / "target", eval_episodes=2, capture_video=True, best=True))
    (video,) = (tmp_path / "target" / "videos").glob("*/*.mp4")
    assert video.stat().st_size > 500


def test_what_is_no_policy_is_refused(tmp_path):
    for content in (None, b"", b"text"):
        if content is not None:
            (tmp_path / "policy.pt").write_bytes(content)
        with pytest.raises(SystemExit, match=r"error: .*policy.pt is no policy: \w+$"):
            watch.main(watch.Args(tmp_path))
    torch.save({"args": {}}, tmp_path / "policy.pt")
    with pytest.raises(SystemExit, match="is no policy: KeyError"):
        watch.main(watch.Args(tmp_path))
    with pytest.raises(SystemExit, match="error: --eval-episodes"):
        watch.main(watch.Args(tmp_path, eval_episodes=0))
