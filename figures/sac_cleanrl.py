"""CleanRL's sac_continuous_action.py, unmodified, evaluated as fmer_continuous.py is:

    git clone https://github.com/vwxyzjn/cleanrl && git -C cleanrl checkout fe8d8a0
    python figures/sac_cleanrl.py --sac cleanrl/cleanrl/sac_continuous_action.py \\
        --env-id Hopper-v4 --run-dir runs/benchmark/Hopper-v4/sac-cleanrl/seed_1

The script runs as it is. What is ours hangs on its environment, between two steps: its
actor, by the mean, plays the evaluation's episodes. With --tasks it trains in the kitchen
of fmer_kitchen.py, and its networks see observations on one scale.
"""

import os
import runpy
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import gymnasium as gym
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import fmer_continuous
import fmer_kitchen


@dataclass
class Args:
    """Train CleanRL's SAC and evaluate it as FMER is."""

    sac: Path  # CleanRL's script; its cleanrl_utils are one folder above
    run_dir: Path  # a new folder for eval.csv, train.csv in the kitchen, and CleanRL's runs
    env_id: str = "Hopper-v4"  # Gymnasium id
    tasks: tuple[str, ...] = ()  # FrankaKitchen-v1 with these tasks instead
    seed: int = 1
    total_timesteps: int = 1_000_000  # environment steps
    eval_interval: int = 10_000  # steps between evaluations
    eval_episodes: int = 10  # in each evaluation, on fixed seeds
    warmup_repeat: int = 1  # steps that the script's random actions are repeated for
    flags: str = "--no-cuda"  # others of the script: --flags="--no-cuda --gamma 0.97"


class Mean:
    """tanh of the mean, in place of Eq. (14): what `evaluate` needs of an agent."""

    def __init__(self, actor):
        self.actor = actor
        self.args = SimpleNamespace(num_act_candidates=1)
        self.log_alpha = torch.zeros(())  # evaluate() looks for the device here

    @torch.no_grad()
    def act(self, obs, num_samples, generator):
        device = next(self.actor.parameters()).device
        mean, _ = self.actor(torch.Tensor(obs).to(device))
        return mean.tanh().cpu().numpy(), None


class Repeating(gym.spaces.Box):
    """A box whose samples are repeated, as warm-up's actions in fmer_continuous.py."""

    def __init__(self, box: gym.spaces.Box, repeat: int):
        super().__init__(box.low, box.high, dtype=box.dtype)
        self.repeat = repeat
        self.num_samples = 0  # in this episode

    def sample(self):
        if self.num_samples % self.repeat == 0:
            self.action = super().sample()
        self.num_samples += 1
        return self.action.copy()


class Watched(gym.Wrapper):
    """The script's environment. Before each of its steps all updates so far are made."""

    def __init__(self, args: Args):
        self.args = args
        self.fmer = fmer_kitchen if args.tasks else fmer_continuous
        task = list(args.tasks) or args.env_id
        self.eval_envs = [self.fmer.make_env(task) for _ in range(args.eval_episodes)]
        super().__init__(self.fmer.make_env(task) if args.tasks else gym.make(task))
        self.action_space = Repeating(self.env.action_space, args.warmup_repeat)
        self.eval_rows = self.train_rows = ""
        self.num_steps = 0
        self.started = time.time()
        self.scale = None
        if args.tasks:
            dims = self.observation_space.shape[0], self.action_space.shape[0]
            self.scale = fmer_kitchen.Agent(*dims, fmer_kitchen.Args())

    def reset(self, **options):
        self.obs, _ = self.env.reset(**options)
        self.action_space.num_samples = 0
        return self.obs, {}

    def step(self, action):
        """The script's own wrapper records the episode, so `info` is not handed on."""
        if self.num_steps % self.args.eval_interval == 0:
            self.evaluate(sys.modules["__main__"].actor)
        if self.scale:
            self.scale.observe(self.obs)
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        self.num_steps += 1
        if self.args.tasks and (terminated or truncated):
            episode = self.fmer.episode_metrics(info)
            row = [self.num_steps, episode["tasks_completed"], episode["length"], "nan"]
            self.train_rows += ",".join(map(str, row)) + "\n"
        return self.obs, reward, terminated, truncated, {}

    def evaluate(self, actor) -> None:
        """As run_evaluation() in fmer_continuous.py."""
        seconds = int(time.time() - self.started)
        episodes = self.fmer.evaluate(Mean(actor), self.eval_envs)
        header = ",".join(["step", "episode", *episodes[0], "seconds"]) + "\n"
        for i, metrics in enumerate(episodes):
            row = [self.num_steps, i, *metrics.values(), seconds]
            self.eval_rows += ",".join(map(str, row)) + "\n"
        self.fmer.save_file(self.args.run_dir / "eval.csv", header + self.eval_rows)
        if self.args.tasks:
            text = "step,tasks_completed,length,q_bias\n" + self.train_rows
            self.fmer.save_file(self.args.run_dir / "train.csv", text)
        mean = sum(metrics["return"] for metrics in episodes) / len(episodes)
        print(f"step {self.num_steps:,}: return {mean:.1f}", flush=True)


class SyncVectorEnv(gym.vector.SyncVectorEnv):
    """Of Gymnasium 1.x, with the autoreset and names of 0.29, which the script knows."""

    def __init__(self, env_fns):
        same_step = gym.vector.AutoresetMode.SAME_STEP
        super().__init__(env_fns, autoreset_mode=same_step)
        (watched,) = [env.get_wrapper_attr("scale") for env in self.envs]
        if watched:  # its networks are classes by now, but nothing is made of them yet
            script = sys.modules["__main__"]
            for network in (script.Actor, script.SoftQNetwork):
                network.forward = scaled(network.forward, watched.normalize)

    def step(self, actions):
        *result, infos = super().step(actions)
        if "final_obs" in infos:
            infos["final_observation"] = infos.pop("final_obs")
            episode = infos["final_info"]["episode"]
            infos["final_info"] = [{"episode": {key: episode[key] for key in "rl"}}]
        return *result, infos


def scaled(forward, normalize):
    return lambda self, x, *others: forward(self, normalize(x), *others)


def main(args: Args) -> None:
    """Run the script to its end; evaluate before, during and after it."""
    script = args.sac.resolve()
    if not script.exists():
        raise SystemExit(f"error: no script {args.sac}")
    args.run_dir = args.run_dir.resolve()
    try:
        args.run_dir.mkdir(parents=True)
    except FileExistsError:
        raise SystemExit(f"error: {args.run_dir} is there already") from None
    watched = Watched(args)
    flags = f"--env-id {args.env_id} --seed {args.seed}"
    flags += f" --total-timesteps {args.total_timesteps} {args.flags}"
    os.chdir(args.run_dir)  # where CleanRL makes runs/
    with (
        patch.object(sys, "argv", [str(script), *shlex.split(flags)]),
        patch.object(sys, "path", [str(script.parents[1]), *sys.path]),
        patch.object(gym, "make", lambda *_, **options: watched),
        patch.object(gym.vector, "SyncVectorEnv", SyncVectorEnv),
    ):
        end = runpy.run_path(str(script), run_name="__main__")
    watched.evaluate(end["actor"])


if __name__ == "__main__":
    main(tyro.cli(Args))
