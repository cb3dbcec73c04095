"""kill -9 at random moments of real runs, until each has ended; then every run must equal,
bit for bit, one that nobody interrupted. A run that dies before its first checkpoint begins
anew.

    python tests/maintenance/kills.py --kills 100
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing import Array
from pathlib import Path

import tyro
from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from test_resume import assert_same_run  # noqa: E402

import fmer_continuous as fmer  # noqa: E402

SETTINGS = dict(
    env_id="Hopper-v4",
    cuda=False,
    total_timesteps=700,
    learning_starts=100,
    batch_size=64,
    hidden_dim=64,
    flow_steps=5,
    log_interval=7,
    eval_interval=90,
    eval_episodes=2,
    checkpoint_minutes=0.3 / 60,
)


@dataclass
class Args:
    """Kill runs at random moments, and compare what becomes of them."""

    kills: int = 100  # at least


def watch(phase, name):
    """What the process does is visible to the one that kills it."""
    function = getattr(fmer, name)

    def watched(*args):
        phase.value = name.encode()
        try:
            return function(*args)
        finally:
            phase.value = b"step"

    setattr(fmer, name, watched)


def run(directory, phase, **changes):
    """In a child process; exits 0 when the run is complete."""
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    tqdm.set_lock(threading.RLock())  # not the parent's: it dies holding it
    for name in ("evaluate", "save_checkpoint"):
        watch(phase, name)
    fmer.main(fmer.Args(**SETTINGS, run_dir=str(directory), **changes))
    os._exit(0)


def survive(directory, phase, generator, kills):
    """One run to its end, through kills, of which the phase is counted."""
    while True:
        resume = (directory / "checkpoint.pt").exists()
        if directory.exists() and not resume:
            shutil.rmtree(directory)
            kills["begun anew"] += 1
        child = run(directory, phase, resume=resume)
        end = time.time() + generator.uniform(0.1, 6)
        while time.time() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0, directory
                return
            time.sleep(0.002)
        kills[phase.value.decode()] += 1
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def main(args: Args) -> None:
    kills, phase, generator = Counter(), Array("c", 32), random.Random(0)
    phase.value = b"step"
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        os.waitpid(run(whole, phase), 0)
        runs = 0
        while sum(kills.values()) - kills["begun anew"] < args.kills:
            directory = Path(folder, str(runs))
            survive(directory, phase, generator, kills)
            assert_same_run(directory, whole)
            runs += 1
            print(f"{runs} runs equal to the uninterrupted one, {dict(kills)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
