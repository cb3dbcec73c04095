"""Evaluate the policy.pt of a run, of either script, and record it.

    python figures/watch.py --run-dir runs/hopper --capture-video

prints the mean and standard deviation of what `eval.csv` holds. For a run on the CPU with as many
episodes they are those of its last evaluation. --best was chosen on the same seeds, and so
flatters. Without a display set MUJOCO_GL=egl or MUJOCO_GL=osmesa.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import fmer_continuous
import fmer_kitchen


@dataclass
class Args:
    """Evaluate a trained policy by Eq. (14), on the evaluation's own seeds."""

    run_dir: Path  # holds policy.pt, of the last evaluation, and policy_best.pt
    best: bool = False  # take policy_best.pt
    eval_episodes: int = 10  # episodes, in lockstep
    num_act_candidates: int = 0  # M, candidates of which the best is executed; 0: the run's
    capture_video: bool = False  # write the first episode as an mp4 into run_dir


def task_of(args) -> str | list[str]:
    """What the script of these arguments gives its make_env: the id, or the kitchen's tasks."""
    if isinstance(args, fmer_continuous.Args):
        return args.env_id
    return list(dict.fromkeys(args.tasks or fmer_kitchen.TASKS[: args.num_tasks]))


def load(path: Path):
    """(module, task, agent) of a policy.pt; SystemExit where it is missing or not one."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        fmer = fmer_kitchen if "tasks" in saved["args"] else fmer_continuous
        args = fmer.Args(**saved["args"])
        agent = fmer.Agent(*saved["dims"], args)
        agent.load_state_dict(saved["agent"])
    except Exception as error:
        raise SystemExit(f"error: {path} is no policy: {type(error).__name__}") from None
    return fmer, task_of(args), agent


def main(args: Args) -> list[dict]:
    """Print a line for each metric; the metrics of each episode."""
    if args.eval_episodes < 1 or args.num_act_candidates < 0:
        raise SystemExit("error: --eval-episodes and --num-act-candidates cannot be that small")
    torch.set_num_threads(1)
    fmer, task, agent = load(args.run_dir / ("policy_best.pt" if args.best else "policy.pt"))
    agent.args.num_act_candidates = args.num_act_candidates or agent.args.num_act_candidates
    try:
        envs = [fmer.make_env(task) for _ in range(args.eval_episodes)]
        if args.capture_video:
            camera = fmer.make_env(task, render_mode="rgb_array")
            camera.reset()
            camera.render()
            folder = args.run_dir / f"videos/watch_{int(time.time())}"
            envs[0] = gym.wrappers.RecordVideo(camera, str(folder), lambda episode: True)
    except Exception as error:  # no simulator, no OpenGL, no encoder, …
        raise SystemExit(f"error: cannot make {task!r}: {error!r}") from None
    episodes = fmer.evaluate(agent, envs)
    for env in envs:
        env.close()
    for name in episodes[0]:
        values = np.array([each[name] for each in episodes])
        print(f"{name}: {values.mean():.5g} ± {values.std():.5g} ({len(values)} episodes)")
    return episodes


if __name__ == "__main__":
    main(tyro.cli(Args))
