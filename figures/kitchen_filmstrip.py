"""An evaluation episode of a kitchen policy as a filmstrip, after the paper's Fig. 5.

    python fmer_kitchen.py --num-tasks 4 --run-dir runs/kitchen
    python figures/kitchen_filmstrip.py --run-dir runs/kitchen --out filmstrip.png

It is the episode with most tasks done, every 70 steps and at each completion. Without a
display set MUJOCO_GL=egl or MUJOCO_GL=osmesa.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import torch
import tyro
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
import fmer_kitchen as fmer

GREEN = "#009E73"


@dataclass
class Args:
    """List what a policy completes in its best evaluation episode, and draw it."""

    run_dir: Path  # holds policy.pt, the policy of the last evaluation
    eval_episodes: int = 10  # episodes to choose from, on the evaluation's own seeds
    out: Path | None = None  # the picture to write; none: only the list


class Film(gym.Wrapper):
    """Keeps (step, picture, tasks just done) every `interval` steps and at completions."""

    def __init__(self, env: gym.Env, interval: int = 70):
        super().__init__(env)
        self.interval = interval
        self.frames = []
        self.steps = 0
        self.done = set()

    def step(self, action):
        result = self.env.step(action)
        info = result[-1]
        self.steps += 1
        new = sorted(set(info["episode_task_completions"]) - self.done)
        self.done |= set(new)
        if new or self.steps % self.interval == 1:
            self.frames.append((self.steps, self.env.render(), new))
        return result


def draw(film: Film) -> Figure:
    """One row of pictures in order of time; completions are framed and named."""
    figure = Figure((2.2 * len(film.frames), 2.7), layout="tight")
    panels = figure.subplots(1, len(film.frames), squeeze=False)[0]
    for panel, (step, picture, new) in zip(panels, film.frames, strict=True):
        panel.imshow(picture)
        panel.set_title(", ".join(new) or " ", size=10, color=GREEN, weight="bold")
        panel.set_xlabel(f"step {step}", size=9)
        panel.set(xticks=[], yticks=[])
        for spine in panel.spines.values():
            spine.set(color=GREEN if new else "0.75", linewidth=4 if new else 1)
    return figure


def load(path: Path) -> tuple[list[str], fmer.Agent]:
    """The tasks and the policy of a policy.pt."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    args = fmer.Args(**saved["args"])
    agent = fmer.Agent(*saved["dims"], args)
    agent.load_state_dict(saved["agent"])
    return fmer.chosen_tasks(args), agent


def main(args: Args) -> None:
    torch.set_num_threads(1)
    tasks, agent = load(args.run_dir / "policy.pt")
    films = []
    for _ in range(args.eval_episodes):
        films.append(Film(fmer.make_env(tasks, render_mode="rgb_array")))
    fmer.evaluate(agent, films)
    best = max(films, key=lambda film: len(film.done))
    for step, _, new in best.frames:
        for task in new:
            print(f"{task}: done at step {step}")
    print(f"{len(best.done)} of {len(tasks)} tasks in {best.steps} steps")
    if args.out:
        draw(best).savefig(args.out, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Args))
