"""Where the time of a training step goes, and how it grows: a table and a figure.

    python figures/speed.py

Clocked around Agent.act, Agent.update and env.step, at the defaults of fmer_continuous.py but for
what a row changes. Steps per second come from the loop itself, shares from each part on its own.
"""

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
import fmer_continuous as fmer
from figures.learning_curves import COLOURS, STYLE

SMALL = dict(hidden_dim=128, flow_steps=5, batch_size=128, actor_batch_size=64)
ROWS = {"N = 4": dict(num_candidates=4), "N = 16, the defaults": {}}
ROWS |= {"N = 64": dict(num_candidates=64), "N = 16, actor batch 256": dict(actor_batch_size=256)}
ROWS |= {"small: hidden 128, K = 5, batch 128, actor batch 64": SMALL}
GROWTH = {
    "candidates N": ([4, 8, 16, 32, 64], lambda n: dict(num_candidates=n)),
    "Euler steps K": ([1, 2, 5, 10, 20], lambda k: dict(flow_steps=k)),
    "batch = actor batch": ([32, 64, 128, 256], lambda b: dict(batch_size=b, actor_batch_size=b)),
    "observation size": ([3, 17, 59, 376], lambda size: dict(obs_dim=size)),
}


@dataclass
class Args:
    """Print a table of training speed, and draw how the learner's step grows."""

    env_id: str = "HalfCheetah-v4"  # the task of the table
    device: str = "cuda"  # or cpu; without a GPU both are the CPU
    steps: int = 30  # steps of each measurement; the median of three is taken
    num_threads: int = 1  # CPU threads
    out: Path = Path("figures/speed.png")  # the figure to write


def hardware(device: torch.device, num_threads: int) -> str:
    """The processor that does the learning, as its driver names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""
    _, found, rest = info.partition("model name")
    name = rest.splitlines()[0].strip("\t: ") if found else platform.processor()
    return f"{name}, {num_threads} thread{'s' if num_threads > 1 else ''}"


def seconds(function: Callable, device: torch.device, repeats: int) -> float:
    """Median over three of the mean time of function(), the device's work included."""
    function()

    def once():
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats

    return median(once() for _ in range(3))


def peak_memory(device: torch.device) -> int:
    """Bytes at most in use since the last call: the GPU's, or all of this process's on the CPU."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")  # Linux starts to count anew
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return 0


def learner(device: torch.device, obs_dim: int = 17, action_dim: int = 6, **changes):
    """An agent and a replay buffer of noise, as large as they need be: (agent, buffer)."""
    torch.manual_seed(1)
    agent = fmer.Agent(obs_dim, action_dim, fmer.Args(**changes)).to(device)
    buffer = fmer.ReplayBuffer(10_007, obs_dim, action_dim, device)
    buffer.rows.normal_().clamp_(-1, 1)
    buffer.num_added = len(buffer.rows)
    buffer.size.fill_(len(buffer))
    return agent, buffer


def update_seconds(agent, buffer, device, repeats: int) -> float:
    """Mean of a learner's step over a cycle of `policy_frequency` of them."""
    frequency = agent.args.policy_frequency

    def cycle():
        for i in range(frequency):
            agent.update(buffer.sample(agent.args.batch_size), with_actor=i == 0)

    return seconds(cycle, device, max(1, repeats // frequency)) / frequency


def row(name: str, args: Args, device: torch.device, changes: dict) -> str:
    """One line of the table: the loop's speed, the learner's, the shares, the peak memory."""
    env = fmer.make_env(args.env_id)
    peak_memory(device)
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    agent, buffer = learner(device, obs_dim, action_dim, **changes)
    state = {"obs": env.reset(seed=1)[0], "step": 0}

    def simulate(action=np.zeros(action_dim, np.float32)):  # noqa: B008  never written to
        obs, reward, terminated, truncated, _ = env.step(action)
        buffer.add(state["obs"], action, reward, obs, terminated)
        state["obs"] = env.reset()[0] if terminated or truncated else obs

    def step():
        state["step"] += 1
        action = agent.act(state["obs"][None])[0]
        with_actor = state["step"] % agent.args.policy_frequency == 0
        agent.update(buffer.sample(agent.args.batch_size), with_actor)
        simulate(action)

    whole = seconds(step, device, args.steps)
    acting = seconds(lambda: agent.act(state["obs"][None]), device, args.steps)
    learning = update_seconds(agent, buffer, device, args.steps)
    simulating = seconds(simulate, device, args.steps)
    parts = [
        100 * each / (acting + learning + simulating) for each in (acting, learning, simulating)
    ]
    peak = peak_memory(device) / 2**20
    shares = " / ".join(f"{part:.0f}" for part in parts)
    return f"| {name} | {1 / whole:.1f} | {1 / learning:.1f} | {shares} % | {peak:.0f} MiB |"


def draw(costs: dict[str, tuple[list[int], list[float]]], title: str) -> Figure:
    """A panel for each quantity: milliseconds of a learner's step, both axes logarithmic."""
    figure = Figure((3 * len(costs), 2.7), layout="constrained")
    every = [1000 * each for _, y in costs.values() for each in y]
    for i, (name, (x, y)) in enumerate(costs.items()):
        panel = figure.add_subplot(1, len(costs), i + 1)
        panel.loglog(x, [1000 * each for each in y], "o-", color=COLOURS[0], lw=1.5, ms=4)
        panel.set(title=name, xticks=x, xticklabels=x)
        panel.margins(x=0.08)
        panel.minorticks_off()
        panel.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        panel.set_ylim(min(1, min(every) / 2), 2 * max(every))
        if not i:
            panel.set_ylabel("ms per learner's step")
    figure.supxlabel(title, size="medium")
    return figure


def main(args: Args) -> None:
    """Print the table, then write the figure."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.num_threads)
    gym.logger.min_level = gym.logger.ERROR
    device = torch.device("cuda" if args.device == "cuda" and torch.cuda.is_available() else "cpu")
    name = hardware(device, args.num_threads)
    print(f"{args.env_id} on {name}, torch {torch.__version__}, eager\n")
    print(
        "| | steps per second | learner's steps per second | acting / learner / simulator ", end=""
    )
    print("| peak memory |\n|---|--:|--:|--:|--:|")
    for title, changes in ROWS.items():
        print(row(title, args, device, changes), flush=True)
    costs = {}
    for quantity, (values, changes) in GROWTH.items():
        agents = [learner(device, **changes(value)) for value in values]
        costs[quantity] = values, [update_seconds(*each, device, args.steps) for each in agents]
    with matplotlib.rc_context(STYLE):
        draw(costs, f"others at their defaults; {name}").savefig(args.out, dpi=160)


if __name__ == "__main__":
    main(tyro.cli(Args))
