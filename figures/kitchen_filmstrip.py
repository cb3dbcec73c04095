"""Train on FrankaKitchen, then draw one evaluation episode as a filmstrip (the paper's Fig. 5).

    python figures/kitchen_filmstrip.py --num-tasks 7 --run-dir runs/film

takes every flag of fmer_kitchen.py and writes figures/kitchen_filmstrip.png: of the evaluation
episodes the one with most tasks done, at even times and at the moment of each completion.
Without a display set MUJOCO_GL=egl or MUJOCO_GL=osmesa.
"""

import sys
from pathlib import Path

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import fmer_kitchen
from figures.watch import task_of


class Film(gym.Wrapper):
    """Keeps (step, picture, tasks just done) every `interval` steps and at every completion."""

    def __init__(self, env: gym.Env, interval: int = 70):
        super().__init__(env)
        self.interval, self.frames, self.steps, self.done = interval, [], 0, set()

    def step(self, action):
        result = self.env.step(action)
        completed = set(result[-1]["episode_task_completions"])
        new, self.done, self.steps = sorted(completed - self.done), completed, self.steps + 1
        if new or self.steps % self.interval == 1:
            self.frames.append((self.steps, self.env.render(), new))
        return result


def draw(film: Film, path: Path) -> None:
    """One row of pictures in order of time; completions are framed and named."""
    figure, axes = plt.subplots(1, len(film.frames), figsize=(2.2 * len(film.frames), 2.7))
    for axis, (step, picture, new) in zip(axes, film.frames, strict=True):
        axis.imshow(picture)
        axis.set_title(", ".join(new) or " ", fontsize=10, color="#00705a", fontweight="bold")
        axis.set_xlabel(f"step {step}", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set(color="#00a37a" if new else "#bbbbbb", linewidth=4 if new else 1)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=110)


def main(args: fmer_kitchen.Args) -> None:
    result = fmer_kitchen.main(args)
    tasks = task_of(args)
    films = [
        Film(fmer_kitchen.make_env(tasks, render_mode="rgb_array"))
        for _ in range(args.eval_episodes)
    ]
    fmer_kitchen.evaluate(result["agent"], films)
    best = max(films, key=lambda film: len(film.done))
    path = Path(__file__).with_suffix(".png")
    draw(best, path)
    print(f"{path}: {len(best.done)} of {len(tasks)} tasks in {best.steps} steps")


if __name__ == "__main__":
    main(tyro.cli(fmer_kitchen.Args))
