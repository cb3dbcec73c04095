"""Training speed on this machine: a Markdown table, and a picture if --out names one.

    python figures/speed.py --out figures/speed.png
    python figures/speed.py --sac cleanrl/cleanrl/sac_continuous_action.py

Everything is at the defaults of fmer_continuous.py except what a row or a point changes.
The second command prints instead how many learning steps a second the script makes beside
CleanRL's SAC, in turns: of two runs of each, one longer, the difference counts.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib.style
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
import fmer_continuous as fmer
from figures.cuda_graphs import GraphAgent

ROWS = {
    "N = 4": dict(num_candidates=4),
    "N = 16, the defaults": {},
    "N = 64": dict(num_candidates=64),
    "actor batch 32": dict(actor_batch_size=32),
    "actor batch 128": dict(actor_batch_size=128),
    "K = 10": dict(flow_steps=10),
    "hidden 256, batch 256": dict(hidden_dim=256, batch_size=256),
    "hidden 256, batch 256, K = 10": dict(hidden_dim=256, batch_size=256, flow_steps=10),
}
GRAPH_ROWS = ["N = 16, the defaults", "hidden 256, batch 256, K = 10"]  # on a GPU
POINTS = {
    "candidates N": {n: dict(num_candidates=n) for n in (4, 8, 16, 32, 64)},
    "Euler steps K": {k: dict(flow_steps=k) for k in (1, 2, 5, 10, 20)},
    "batch = actor batch": {
        b: dict(batch_size=b, actor_batch_size=b) for b in (32, 64, 128, 256)
    },
    "observation size": {size: dict(obs_dim=size) for size in (3, 17, 59, 376)},
}


@dataclass
class Args:
    """Print a table of training speed, and draw how the cost of a learner's step grows."""

    env_id: str = "HalfCheetah-v4"  # the task of the table
    cuda: bool = True  # use a GPU if there is one
    num_threads: int = 1  # CPU threads
    steps: int = 30  # steps in a measurement; the median of three counts
    out: Path | None = None  # the picture to write; none: only the table
    sac: Path | None = None  # compare with this script of CleanRL's instead
    sac_python: str = "python"  # of an environment of its own
    sac_rounds: int = 3  # in turns
    sac_steps: int = 1_000  # learning steps in each
    flags: str = ""  # of fmer_continuous.py in that comparison


def hardware(args: Args, device: str) -> str:
    """The processor that learns, as its driver names it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]}, threads: {args.num_threads}"


def seconds(function: Callable, args: Args, device: str) -> float:
    """Median of three: mean time of function(), the device's work included."""
    function()  # warm up
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(args.steps):
            function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / args.steps)
    return median(times)


class Loop:
    """The parts of fmer_continuous.py's training loop, each to be clocked on its own."""

    def __init__(
        self, device: str, obs_dim=17, action_dim=6, agent_class=fmer.Agent, **changes
    ):
        self.steps = 0
        self.agent = agent_class(obs_dim, action_dim, fmer.Args(**changes)).to(device)
        self.buffer = fmer.ReplayBuffer(10_000, obs_dim, action_dim, device)
        rng = np.random.default_rng(1)
        for _ in range(1_000):
            s, next_s = rng.normal(size=(2, obs_dim))
            self.buffer.add(s, rng.uniform(-1, 1, action_dim), rng.normal(), next_s, False)

    def start(self, env) -> None:
        self.env = env
        self.obs, _ = env.reset(seed=1)

    def act(self) -> None:
        (self.action,), _ = self.agent.act(
            self.obs[None], self.agent.args.num_explore_candidates
        )

    def learn(self) -> None:
        self.steps += 1
        with_actor = self.steps % self.agent.args.policy_frequency == 0
        self.agent.update(self.buffer.sample(self.agent.args.batch_size), with_actor)

    def simulate(self) -> None:
        obs, reward, terminated, truncated, _ = self.env.step(self.action)
        self.buffer.add(self.obs, self.action, reward, obs, terminated)
        self.obs = self.env.reset()[0] if terminated or truncated else obs

    def step(self) -> None:
        self.act()
        self.learn()
        self.simulate()


def row(
    name: str, changes: dict, env, args: Args, device: str, agent_class=fmer.Agent
) -> str:
    """A line of the table: the whole loop's speed, and that of its parts, clocked alone."""
    dims = env.observation_space.shape[0], env.action_space.shape[0]
    loop = Loop(device, *dims, agent_class, **changes)
    loop.start(env)
    whole = seconds(loop.step, args, device)
    parts = [seconds(part, args, device) for part in (loop.act, loop.learn, loop.simulate)]
    shares = " / ".join(f"{100 * part / sum(parts):.0f}" for part in parts)
    return f"| {name} | {1 / whole:.1f} | {1 / parts[1]:.1f} | {shares} % |"


def draw(args: Args, device: str) -> Figure:
    """A panel for each quantity: the cost of a learner's step, both axes logarithmic."""
    figure = Figure((3 * len(POINTS), 2.7))
    panels = figure.subplots(1, len(POINTS), sharey=True)
    for panel, (quantity, points) in zip(panels, POINTS.items(), strict=True):
        costs = []
        for changes in points.values():
            costs.append(1000 * seconds(Loop(device, **changes).learn, args, device))
        panel.loglog(list(points), costs, "o-", ms=4)
        panel.set(title=quantity, xticks=list(points), xticklabels=list(points))
        panel.minorticks_off()
    panels[0].set(ylabel="ms per learner's step", ylim=(1, None))
    panels[0].yaxis.set_major_formatter("{x:g}")
    figure.supxlabel(f"others at their defaults; {hardware(args, device)}", size="medium")
    return figure


def learning_steps_per_second(command: list[str], args: Args, root: Path) -> float:
    """Of a script that knows CleanRL's flags: by how much a longer run takes longer."""
    start = 300
    environment = os.environ | {
        "OMP_NUM_THREADS": str(args.num_threads),
        "PYTHONPATH": str(root),  # where CleanRL's cleanrl_utils is
    }
    times = []
    for steps in (start, start + args.sac_steps):
        flags = f"--env-id {args.env_id} --learning-starts {start}"
        flags += f" --total-timesteps {steps}"
        flags += "" if args.cuda else " --no-cuda"
        with tempfile.TemporaryDirectory() as folder:  # for its runs/
            begin = time.perf_counter()
            subprocess.run(
                [*command, *flags.split()],
                cwd=folder,
                env=environment,
                check=True,
                capture_output=True,
            )
            times.append(time.perf_counter() - begin)
    return args.sac_steps / (times[1] - times[0])


def compare(args: Args) -> None:
    """Print the speed of both scripts, and its ratio, in each round."""
    root = Path(__file__).resolve().parent.parent
    ours = [sys.executable, str(root / "fmer_continuous.py"), "--eval-interval", "0"]
    ours += ["--num-threads", str(args.num_threads), *args.flags.split()]
    theirs = [args.sac_python, str(args.sac.resolve())]
    print("| round | learning steps per second | CleanRL's SAC | ratio |")
    print("|---|--:|--:|--:|")
    for number in range(1, args.sac_rounds + 1):
        first = learning_steps_per_second(ours, args, root)
        second = learning_steps_per_second(theirs, args, args.sac.resolve().parents[1])
        ratio = first / second
        print(f"| {number} | {first:.1f} | {second:.1f} | {ratio:.2f} |", flush=True)


def main(args: Args) -> None:
    """Print the table; draw the picture, if it has a name."""
    if args.sac:
        compare(args)
        return
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(1)
    device = "cuda" if args.cuda and torch.cuda.is_available() else "cpu"
    env = fmer.make_env(args.env_id)
    print(f"{args.env_id}, {hardware(args, device)}, torch {torch.__version__}\n")
    print("| | steps per second | learner's steps per second | act / learn / simulate |")
    print("|---|--:|--:|--:|")
    for name, changes in ROWS.items():
        print(row(name, changes, env, args, device), flush=True)
    if device == "cuda":
        for name in GRAPH_ROWS:
            title = f"{name}, CUDA graphs"
            print(row(title, ROWS[name], env, args, device, GraphAgent), flush=True)
    if args.out:
        with matplotlib.style.context(Path(__file__).with_name("style.mplstyle")):
            draw(args, device).savefig(args.out)


if __name__ == "__main__":
    main(tyro.cli(Args))
