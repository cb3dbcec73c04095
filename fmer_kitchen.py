"""FMER on sparse, multi-task FrankaKitchen-v1, from scratch and without demonstrations.

The algorithm is that of fmer_continuous.py, whose docstring has Algorithm 1. Own to this
script: tasks, their metrics, and defaults for sparse reward, where finding the first is
luck (20,000 random actions, H̄ = 0), few transitions in a batch are rewarded (256 of them),
critics overestimate (γ = 0.97, layer norm), advantages are small (T starts at 0.01,
ρ = 0.6), and what is to be moved moves less than the arm (observations on one scale).
"""

import copy
import json
import os
import signal
import sys
import time
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import gymnasium as gym
import numpy as np
import psutil
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from filelock import FileLock
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

BASE_ENTROPY = 0.6698041182  # H_0 in Eq. (8), by quadrature: nats of tanh N(0,1)
TASKS = ["microwave", "kettle", "bottom burner", "light switch"]  # --num-tasks 4
TASKS += ["slide cabinet", "hinge cabinet", "top burner"]  # 7; --num-tasks 1: the first
EVAL_SEED = 2**31  # evaluation's seeds start here, training's stay below
OPTIMIZERS = ["policy_optimizer", "q_optimizer"]
MAY_CHANGE = {"total_timesteps", "run_dir", "resume", "checkpoint_minutes", "num_threads"}


@dataclass
class Args:
    """Train FMER on FrankaKitchen-v1."""

    tasks: list[Literal[*TASKS]] = field(default_factory=list)  # by name, or by --num-tasks
    num_tasks: Literal[1, 4, 7] | None = None  # microwave; D4RL's mixed set; 7, None: all
    seed: int = 1  # of networks, noise, replay and environments
    total_timesteps: int = 1_000_000  # environment steps
    cuda: bool = True  # use a GPU if there is one
    run_dir: str = ""  # empty: runs/<task>__<exp_name>__<seed>__<time>
    resume: bool = False  # continue the run in run_dir, with its own flags
    exp_name: str = "fmer_kitchen"  # part of the run directory's name
    eval_interval: int = 10_000  # steps between evaluations; 0: none, and no policy.pt
    eval_episodes: int = 10  # in each evaluation, on fixed seeds
    log_interval: int = 1_000  # steps between the points of a curve
    checkpoint_minutes: float = 5.0  # minutes between checkpoints: what a crash can cost
    num_threads: int = 1  # CPU threads; more of them rarely help, and can stall
    # Replay and critics
    learning_starts: int = 20_000  # steps of random actions before learning
    warmup_repeat: int = 1  # steps that each random action is held for
    buffer_size: int = 1_000_000  # transitions kept for replay
    batch_size: int = 256  # B, transitions in a critic update
    normalize_observations: bool = True  # by their mean and deviation so far
    gamma: float = 0.97  # γ, discount factor, Eq. (12)
    tau: float = 0.005  # τ, Polyak step of the target critics
    q_lr: float = 1e-3  # learning rate of the critics, log α and log T
    hidden_dim: int = 128  # width of the two hidden layers of a network
    layer_norm: bool = True  # in the critics, against overestimation
    # Policy and its entropy
    policy_lr: float = 1e-3  # learning rate of the velocity field
    policy_frequency: int = 2  # critic updates per policy update (CleanRL: in effect 1)
    actor_batch_size: int = 64  # states in a policy update, the first of the batch
    flow_steps: int = 5  # K, Euler steps from noise to action, Eq. (2)
    num_candidates: int = 16  # N, candidates to be weighted, Eq. (4)
    num_act_candidates: int = 16  # M in evaluation: the best acts, Eq. (14)
    num_explore_candidates: int = 1  # M in training; 1: a plain sample of π acts
    temperature: float = 0.01  # T of Eq. (5); its first value if tuned
    autotune_temperature: bool = True  # tune T: hold ESS/N at ess_target, Eq. (6)
    ess_target: float = 0.6  # ρ, effective share of the candidates, Eq. (6)
    alpha: float = 0.1  # α of Eq. (10); if tuned its first value, which must not be 0
    autotune: bool = True  # tune α: hold the entropy at its target, Eq. (11)
    target_entropy_scale: float = 0.0  # H̄ per action dimension, nats, Eq. (11)
    exact_entropy: bool = True  # Eq. (8); otherwise the ODE's, Eq. (9)


def check(args: Args) -> None:
    """Raise SystemExit with one line if a flag is out of its known limits."""
    limits = {
        "total-timesteps learning-starts buffer-size log-interval": (1, np.inf),
        "batch-size actor-batch-size hidden-dim flow-steps policy-frequency": (1, 2**14),
        "num-act-candidates num-explore-candidates eval-episodes warmup-repeat": (1, 2**14),
        "num-candidates": (2, 2**14),
        "num-threads": (1, os.cpu_count()),
        "seed eval-interval checkpoint-minutes": (0, 1e9),
        "q-lr policy-lr temperature": (1e-6, 1e6),
        "alpha": (1e-6 if args.autotune else 0, 1e6),  # tuned, 0 would stay 0 for long
        "gamma tau ess-target": (0, 1),
        "target-entropy-scale": (-1e9, 0.69),  # log 2: the entropy of U(-1,1)
    }
    for flags, (low, high) in limits.items():
        for flag in flags.split():
            if not low <= getattr(args, flag.replace("-", "_")) <= high:
                raise SystemExit(f"error: --{flag} must lie between {low} and {high}")
    if args.autotune_temperature and args.ess_target * args.num_candidates < 1:
        raise SystemExit("error: --ess-target must be at least 1/N, --num-candidates N")


def chosen_tasks(args: Args) -> list[str]:
    """Those named, or the first num_tasks. SystemExit if both are given."""
    if args.tasks and args.num_tasks:
        raise SystemExit("error: --tasks goes without --num-tasks")
    return list(dict.fromkeys(args.tasks or TASKS[: args.num_tasks]))


def make_env(task: list[str], **options) -> gym.Env:
    """FrankaKitchen-v1, which rewards each task once; observed without the goals."""
    env = gym.make("gymnasium_robotics:FrankaKitchen-v1", tasks_to_complete=task, **options)
    env = gym.wrappers.FilterObservation(env, ["observation"])
    env = gym.wrappers.FlattenObservation(env)
    return gym.wrappers.RecordEpisodeStatistics(env)


def episode_metrics(info: dict) -> dict[str, float]:
    """Of a finished episode, from its last `info`, before reset() empties that."""
    done = {f"task/{task}": int(task in info["episode_task_completions"]) for task in TASKS}
    number = sum(done.values())
    share = number / (number + len(info["tasks_to_complete"]))  # the paper's %
    metrics = {"return": float(info["episode"]["r"]), "length": int(info["episode"]["l"])}
    return metrics | {"tasks_completed": number, "success_rate": share} | done


def q_bias(episode: list[tuple], gamma: float) -> float:
    """Mean of Q(s_t, a_t) − G_t, G_t = r_t + γ·G_{t+1}, of steps (action, Q, reward)."""
    total = return_to_go = 0.0  # G after the last step, a time limit too: Q looks beyond
    for _, q, reward in reversed(episode):
        return_to_go = reward + gamma * return_to_go
        total += q - return_to_go
    return total / len(episode)


def require_finite(name: str, value) -> None:
    """SystemExit that names a value, in dicts too, which is not finite in float32."""
    if isinstance(value, dict):
        for key, part in value.items():
            require_finite(f"{name} {key}", part)
    elif isinstance(value, float | np.floating | np.ndarray | torch.Tensor):
        if not torch.as_tensor(value).float().sum(-1).isfinite().all():  # copies no buffer
            raise SystemExit(f"error: {name} is not finite")


class ReplayBuffer:
    """The last `capacity` transitions, each a row (s, a, r, s', terminated)."""

    def __init__(self, capacity, obs_dim, action_dim, device):
        self.widths = [obs_dim, action_dim, 1, obs_dim, 1]
        self.rows = torch.zeros(capacity, sum(self.widths), device=device)
        self.num_added = 0

    def __len__(self) -> int:
        return min(self.num_added, len(self.rows))

    def add(self, s, a, r, next_s, terminated) -> None:
        new = {"observation": s, "action": a, "reward": r, "next observation": next_s}
        require_finite(f"step {self.num_added + 1}:", new)
        row = np.concatenate([s, a, [r], next_s, [terminated]], dtype=np.float32)
        self.rows[self.num_added % len(self.rows)] = torch.from_numpy(row)
        self.num_added += 1

    def sample(self, batch_size: int) -> list[torch.Tensor]:
        """s (B,S), a (B,d), r (B,), s' (B,S), terminated (B,), with replacement."""
        i = torch.randint(len(self), (batch_size,), device=self.rows.device)
        s, a, r, next_s, terminated = self.rows[i].split(self.widths, dim=1)
        return [s, a, r.squeeze(1), next_s, terminated.squeeze(1)]


class MLP(nn.Module):
    """Two hidden SiLU layers. One matrix per input, so that N candidates share one W·s."""

    def __init__(self, in_dims, hidden_dim, out_dim, layer_norm=False):
        super().__init__()
        norm = nn.LayerNorm if layer_norm else nn.Identity
        self.inputs = nn.ModuleList([nn.Linear(in_dims[0], hidden_dim)])
        self.inputs += [nn.Linear(dim, hidden_dim, bias=False) for dim in in_dims[1:]]
        self.norm1 = norm(hidden_dim)
        self.hidden = nn.Linear(hidden_dim, hidden_dim)
        self.norm2 = norm(hidden_dim)
        self.out = nn.Linear(hidden_dim, out_dim)

    def forward(self, *inputs):
        z = sum(layer(x) for layer, x in zip(self.inputs, inputs, strict=True))
        z = F.silu(self.norm1(z))
        return self.out(F.silu(self.norm2(self.hidden(z))))


class VelocityField(nn.Module):
    """v_θ(s, x, t), Eq. (1): s (…,S), latent x (…,d), time t (…,1) -> (…,d)."""

    def __init__(self, obs_dim, action_dim, hidden_dim):
        super().__init__()
        self.net = MLP([obs_dim, 8, action_dim], hidden_dim, action_dim)  # 8 features of t
        nn.init.zeros_(self.net.out.weight)  # v = 0: π starts as tanh N(0,I)
        nn.init.zeros_(self.net.out.bias)
        self.register_buffer("omega", np.pi * 2.0 ** torch.arange(4), persistent=False)

    def forward(self, s, x, t):
        phase = self.omega * t  # (…,4); π and not 2π: t = 0 and 1 must differ
        return self.net(s, torch.cat([phase.cos(), phase.sin()], -1), x)


class TwinQ(nn.Module):
    """Q_1 and Q_2: s (…,S), a (…,d) -> (2,…). Eqs. (4), (14): mean; (12): the smaller."""

    def __init__(self, obs_dim, action_dim, hidden_dim, layer_norm=False):
        super().__init__()
        self.q1 = MLP([obs_dim, action_dim], hidden_dim, 1, layer_norm)
        self.q2 = MLP([obs_dim, action_dim], hidden_dim, 1, layer_norm)

    def forward(self, s, a):
        return torch.stack([self.q1(s, a), self.q2(s, a)]).squeeze(-1)


@torch.no_grad()
def sample_path(velocity, s, x0, flow_steps):
    """x_{(k+1)h} = x_{kh} + h·v_θ(s, x_{kh}, kh), h = 1/K.  Eq. (2)
    s (B,S), x0 (B,N,d) -> (K+1,B,N,d), noise [0] to latent action [-1]; no gradient."""
    h = 1 / flow_steps  # another step than Euler's must enter sampler_entropy too
    path = [x0]
    for k in range(flow_steps):
        t = x0.new_full((1,), k * h)
        path.append(path[-1] + h * velocity(s.unsqueeze(1), path[-1], t))
    return torch.stack(path)


@torch.no_grad()
def best_of(critic, s, a):
    """argmax_i Q(s, a^i), Q = (Q_1 + Q_2)/2.  Eq. (14)
    s (B,S), a (B,M,d) -> the best action (B,d) and its Q (B,)."""
    q, i = critic(s.unsqueeze(1), a).mean(0).max(-1)  # (2,B,M) -> (B,M) -> (B,)
    return a[torch.arange(len(s), device=s.device), i], q


def candidate_weights(q, temperature):
    """A_i = q_i − mean q, w_i = exp(A_i/T) / Σ_m exp(A_m/T), ESS = 1/Σ_i w_i²
    Eqs. (4)-(6): q (B,N) -> weights (B,N), effective sample size ess (B,) in [1,N]."""
    advantage = q - q.mean(-1, keepdim=True)  # Eq. (4); the mean cancels in Eq. (5)
    weights = torch.softmax(advantage / temperature, -1)
    return weights, 1 / weights.square().sum(-1)


def flow_matching_loss(velocity, s, x0, x1, t, weights):
    """L_CFM = E Σ_i w_i ‖v_θ(s, x_t^i, t^i) − (x_1^i − x_0^i)‖², x_t = (1−t)·x_0 + t·x_1
    Eqs. (3), (7): s (B,S), x0, x1 (B,N,d), t (B,N,1), weights (B,N) -> scalar."""
    xt = (1 - t) * x0 + t * x1
    error = velocity(s.unsqueeze(1), xt, t) - (x1 - x0)  # (B,N,d)
    return (weights * error.square().sum(-1)).sum(-1).mean()


def sampler_entropy(velocity, s, path, k):
    """H = d·H_0 + Σ_k E[log|det(I + h·∂v/∂x)| + Σ_dims (log sech² x' − log sech² x)]
    Eq. (8): entropy (nats) of tanh x_1 if each Euler step x -> x' = x + h·v is one-to-one.
    s (B,S), path (K+1,B,d), k (B,) -> scalar: for Σ_k, K times the term of a random k.
    A semi-gradient: x_k is held fixed, so no step sees its effect on the later ones."""
    h = 1 / (len(path) - 1)
    batch_size, d = path.shape[1:]
    x = path[k, torch.arange(batch_size, device=s.device)].detach().requires_grad_()
    v = velocity(s, x, h * k.unsqueeze(1))  # (B,d)
    next_x = x + h * v  # the step of sample_path
    eye = torch.eye(d, device=s.device, dtype=s.dtype)
    rows = eye.unsqueeze(1).expand(d, batch_size, d)  # (d,B,d): row i asks for ∂v_i/∂x
    (jacobian,) = torch.autograd.grad(v, x, rows, create_graph=True, is_grads_batched=True)
    log_det = torch.linalg.slogdet(eye + h * jacobian.transpose(0, 1)).logabsdet  # (B,)
    before = F.logsigmoid(2 * x) + F.logsigmoid(-2 * x)  # log ¼ sech² x, the ¼ cancels
    after = F.logsigmoid(2 * next_x) + F.logsigmoid(-2 * next_x)
    return d * BASE_ENTROPY + (log_det + (after - before).sum(-1)).mean() / h  # 1/h = K


def ode_entropy(velocity, s, path, k, probe):
    """H = d·H_0 + ∫ E[∇·v − 2 tanh(x)·v] dt, ∇·v ≈ εᵀ(∂v/∂x)ε.  Eq. (9)
    The limit of (8) for h → 0. Arguments as there, and Hutchinson's probe ε = ±1 (B,d)."""
    batch_size, d = path.shape[1:]
    x = path[k, torch.arange(batch_size, device=s.device)].detach().requires_grad_()
    v = velocity(s, x, k.unsqueeze(1) / (len(path) - 1))  # (B,d)
    (vjp,) = torch.autograd.grad(v, x, probe, create_graph=True)  # εᵀ(∂v/∂x), (B,d)
    return d * BASE_ENTROPY + (vjp * probe - 2 * x.tanh() * v).sum(-1).mean()  # E_k = ∫ dt


class Agent(nn.Module):
    """Alg. 1, lines 1, 3, 5-10: networks, dual variables α and T, their updates."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args):
        super().__init__()
        self.args = args
        self.dims = (obs_dim, action_dim)
        self.target_entropy = args.target_entropy_scale * action_dim
        self.register_buffer("count", torch.zeros(()).double())  # of observations
        self.register_buffer("mean", torch.zeros(obs_dim).double())
        self.register_buffer("variance", torch.ones(obs_dim).double())
        self.velocity = VelocityField(obs_dim, action_dim, args.hidden_dim)
        self.critic = TwinQ(obs_dim, action_dim, args.hidden_dim, args.layer_norm)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(args.alpha).log().clamp(-200))  # not −∞
        self.log_temperature = nn.Parameter(torch.tensor(args.temperature).log())
        self.q_optimizer = torch.optim.Adam(self.critic.parameters(), args.q_lr, fused=True)
        duals = {"params": [self.log_alpha, self.log_temperature], "lr": args.q_lr}
        groups = [{"params": self.velocity.parameters()}, duals]  # θ; α, T
        self.policy_optimizer = torch.optim.Adam(groups, args.policy_lr, fused=True)

    def sample(self, s, num_samples, generator=None):
        """Eq. (2) from fresh noise: s (B,S) -> path (K+1,B,num_samples,d)."""
        shape = (len(s), num_samples, self.dims[1])
        x0 = torch.randn(shape, device=s.device, generator=generator)  # N(0,I), as in H_0
        return sample_path(self.velocity, s, x0, self.args.flow_steps)

    def observe(self, obs: np.ndarray) -> None:
        """Welford: one more observation (S,) in running mean and variance, in double."""
        s = torch.as_tensor(obs).to(self.mean)
        self.count += 1
        error = s - self.mean
        self.mean += error / self.count
        self.variance += (error * (s - self.mean) - self.variance) / self.count

    def normalize(self, s):
        """(s − mean)/(σ + 0.01) in ±10, if asked to; 0.01 for components at rest. (B,S)"""
        if not self.args.normalize_observations:
            return s
        return ((s - self.mean) / (self.variance.sqrt() + 0.01)).clamp(-10, 10).float()

    def act(self, obs: np.ndarray, num_samples: int, generator=None):
        """Eq. (14), M = num_samples: obs (B,S) -> the best action (B,d), its Q (B,)."""
        s = self.normalize(torch.as_tensor(obs).to(self.log_alpha))  # dtype and device
        a = self.sample(s, num_samples, generator)[-1].tanh()
        action, q = best_of(self.critic, s, a)
        return action.cpu().numpy(), q.cpu().numpy()

    def update(self, batch: list[torch.Tensor], with_actor: bool) -> dict:
        """Alg. 1, lines 5-10. The losses stay on the device: the CPU does not wait."""
        s, a, r, next_s, terminated = batch
        s = self.normalize(s)
        losses = self.update_critic(s, a, r, self.normalize(next_s), terminated)
        if with_actor:
            losses |= self.update_actor(s[: self.args.actor_batch_size])
        pairs = zip(self.target_critic.parameters(), self.critic.parameters(), strict=True)
        for target, online in pairs:
            target.lerp_(online.detach(), self.args.tau)  # line 10
        return losses

    def update_critic(self, s, a, r, next_s, terminated) -> dict:
        """Alg. 1, line 5: a step on L_Q = Σ_j E (Q_j(s,a) − y)².  Eqs. (12), (13)"""
        next_a = self.sample(next_s, 1)[-1].squeeze(1).tanh()  # (B,d)
        next_value = self.target_critic(next_s, next_a).amin(0)  # (B,), without gradient
        y = r + self.args.gamma * (1 - terminated) * next_value  # (B,), Eq. (12)
        q = self.critic(s, a)  # (2,B)
        q_loss = (q - y).square().mean(1).sum()  # Eq. (13); logged: the twins' mean
        self.q_optimizer.zero_grad()
        q_loss.backward()
        self.q_optimizer.step()
        return {"qf_loss": q_loss.detach() / len(q), "qf_values": q.detach().mean()}

    def update_actor(self, s) -> dict:
        """Alg. 1, lines 7-9: steps on L_π = L_CFM − α·H, log α and log T."""
        alpha = self.log_alpha.detach().exp()
        temperature = self.log_temperature.detach().exp()
        path = self.sample(s, self.args.num_candidates)  # (K+1,B,N,d), Eq. (2)
        x1 = path[-1]
        with torch.no_grad():
            q = self.critic(s.unsqueeze(1), x1.tanh()).mean(0)  # (B,N), Eq. (4)
        weights, ess = candidate_weights(q, temperature)  # Eqs. (4)-(6)
        ess_share = ess.mean() / self.args.num_candidates
        x0 = torch.randn_like(x1)  # distributed as in sample, independent of x1's noise
        t = torch.rand_like(x1[..., :1])  # (B,N,1)
        flow_matching = flow_matching_loss(self.velocity, s, x0, x1, t, weights)  # Eq. (7)
        k = torch.randint(self.args.flow_steps, (len(s),), device=s.device)  # per state
        if self.args.exact_entropy:  # both on candidate 0 of each state
            entropy = sampler_entropy(self.velocity, s, path[:, :, 0], k)  # Eq. (8)
        else:
            probe = torch.randn_like(x1[:, 0]).sign()
            entropy = ode_entropy(self.velocity, s, path[:, :, 0], k, probe)  # Eq. (9)
        actor_loss = flow_matching - alpha * entropy  # Eq. (10)
        self.policy_optimizer.zero_grad()  # grad None: Adam skips an untuned α or T
        actor_loss.backward()
        if self.args.autotune:  # Eq. (11)
            (self.log_alpha * (entropy.detach() - self.target_entropy)).backward()
        if self.args.autotune_temperature:  # Eq. (6)
            (self.log_temperature * (ess_share - self.args.ess_target)).backward()
        self.policy_optimizer.step()  # θ, log α and log T
        self.log_alpha.data.clamp_(max=21)  # α < 1.4e9
        self.log_temperature.data.clamp_(-14, 14)  # T > 8e-7: no 0/0 in Eq. (5)
        losses = {"actor_loss": actor_loss.detach(), "entropy": entropy.detach()}
        losses |= {"flow_matching": flow_matching.detach(), "ess": ess_share}
        return losses | {"alpha": alpha, "temperature": temperature}


def evaluate(agent: Agent, envs: list[gym.Env], signals=()) -> list[dict]:
    """Metrics of one episode per env, by Eq. (14), seeds and noise fixed; [] if stopped."""
    generator = torch.Generator(agent.log_alpha.device).manual_seed(EVAL_SEED)
    obs = [env.reset(seed=EVAL_SEED + i)[0] for i, env in enumerate(envs)]
    metrics = [{} for _ in envs]  # empty: still running
    while not all(metrics) and not signals:
        actions, _ = agent.act(np.stack(obs), agent.args.num_act_candidates, generator)
        for i, env in enumerate(envs):
            if not metrics[i]:
                obs[i], _, terminated, truncated, info = env.step(actions[i])
                if terminated or truncated:
                    metrics[i] = episode_metrics(info)
    return metrics if all(metrics) else []


def save_file(path: Path, content: dict | str) -> None:
    """Write the whole file, or raise SystemExit and leave the old one as it was."""
    require_finite(f"{path} stays as it was:", content)
    temporary = path.with_name(path.name + ".tmp")
    try:
        if isinstance(content, str):
            temporary.write_text(content)
        else:
            torch.save(content, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # the second: torch on a full disk
        raise SystemExit(f"error: cannot write {path}: {error}") from None


def save_checkpoint(run_dir: Path, agent, buffer, progress) -> None:
    """All that a resumed run needs to go on as if never stopped; of the buffer, rows."""
    content = {"args": asdict(agent.args), "agent": agent.state_dict()}
    content |= {name: getattr(agent, name).state_dict() for name in OPTIMIZERS}
    content["rows"] = buffer.rows[: len(buffer)].to("cpu", copy=True)  # a view saves all
    noise = [torch.cuda.get_rng_state()] if agent.args.cuda else []
    content |= {"progress": vars(progress), "noise": [torch.get_rng_state(), *noise]}
    save_file(run_dir / "checkpoint.pt", content)


def load_checkpoint(run_dir: Path, agent, buffer) -> SimpleNamespace:
    """Restore agent, buffer, random states; return progress. SystemExit if it cannot."""
    try:
        if zipfile.ZipFile(run_dir / "checkpoint.pt").testzip():
            raise ValueError("a wrong checksum")
        saved = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True)
        for flag, was in (dict.fromkeys(vars(agent.args), "unset") | saved["args"]).items():
            if flag not in MAY_CHANGE and getattr(agent.args, flag) != was:
                raise ValueError(f"--{flag.replace('_', '-')} was {was} at its start")
        agent.load_state_dict(saved["agent"])
        for name in OPTIMIZERS:
            getattr(agent, name).load_state_dict(saved[name])
        torch.set_rng_state(saved["noise"][0])
        torch.cuda.set_rng_state_all(saved["noise"][1:])
        progress = SimpleNamespace(**saved["progress"])
        buffer.rows[: len(saved["rows"])] = saved["rows"]
    except Exception as error:
        raise SystemExit(f"error: cannot resume {run_dir}: {str(error)!r:.150}") from None
    buffer.num_added = progress.step  # a transition in each step
    return progress


def log(writer: SummaryWriter, prefix: str, values: dict, step: int) -> None:
    """Write to TensorBoard. SystemExit that names a value which is not finite."""
    for name, value in values.items():
        writer.add_scalar(prefix + name, value, step)
    require_finite(f"step {step}: {prefix}", values)


def run_evaluation(agent, envs, progress, run_dir, writer, signals) -> None:
    """Evaluate; record it in eval.csv, TensorBoard, policy.pt and the terminal."""
    episodes = evaluate(agent, envs, signals)
    if not episodes:  # stopped: a resumed run evaluates again
        return
    means = {name: np.mean([each[name] for each in episodes]) for name in episodes[0]}
    log(writer, "eval/", means, progress.step)
    header = ",".join(["step", "episode", *episodes[0], "seconds"]) + "\n"
    rows = progress.eval_rows
    for i, metrics in enumerate(episodes):
        row = [progress.step, i, *metrics.values(), int(progress.seconds)]
        rows += ",".join(map(str, row)) + "\n"
    save_file(run_dir / "eval.csv", header + rows)
    policy = {"args": asdict(agent.args), "dims": agent.dims, "agent": agent.state_dict()}
    save_file(run_dir / "policy.pt", policy)
    progress.eval_rows = rows  # done once both files are written
    progress.eval_returns[progress.step] = float(means["return"])
    tqdm.write(f"step {progress.step:,}: return {means['return']:.1f}")


def main(args: Args, signals: list | tuple = ()) -> dict:
    """Algorithm 1, to its end or a signal. Returns run_dir, agent, buffer, progress."""
    check(args)
    args.cuda = args.cuda and torch.cuda.is_available()  # a resumed run keeps its device
    device = "cuda" if args.cuda else "cpu"
    torch.set_num_threads(args.num_threads)
    torch.set_flush_denormal(True)  # else tiny gradients halve Humanoid's speed on a CPU
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(args.seed)
    task = chosen_tasks(args)
    label = "FrankaKitchen-v1-" + ("+".join(args.tasks).replace(" ", "-") or str(len(task)))
    name = f"{label}__{args.exp_name}__{args.seed}__{int(time.time())}"
    run_dir = Path(args.run_dir or f"runs/{name}").absolute()  # an environment may chdir
    if os.path.exists(run_dir) != args.resume:
        raise SystemExit(f"error: {run_dir} must exist with --resume, and not without")
    try:
        env = make_env(task)
    except (gym.error.Error, ImportError) as error:
        raise SystemExit(f"error: cannot make {task!r}: {error}") from None
    eval_envs = [make_env(task) for _ in range(args.eval_episodes) if args.eval_interval]
    (obs_dim,), (action_dim,) = env.observation_space.shape, env.action_space.shape
    total = args.total_timesteps
    needed = 8e-9 * min(args.buffer_size, total) * (2 * obs_dim + action_dim + 2)  # GB
    if needed > psutil.virtual_memory().available / 1e9:  # a checkpoint copies it
        raise SystemExit(f"error: --buffer-size needs {needed:.1f} GB, more than is free")
    buffer = ReplayBuffer(min(args.buffer_size, total), obs_dim, action_dim, device)
    agent = Agent(obs_dim, action_dim, args).to(device)  # Alg. 1, line 1
    progress = SimpleNamespace(step=0, seconds=0, losses={}, eval_rows="", eval_returns={})
    progress.episode_seed, progress.episode = args.seed, []  # (action, Q, reward) of a step
    obs, _ = env.reset(seed=args.seed)  # an error in it leaves no directory
    try:  # the lock ends with its process; acquiring it makes the directory
        lock = FileLock(run_dir / "lock").acquire(timeout=0)
    except OSError as error:
        raise SystemExit(f"error: cannot use {run_dir}, perhaps in use: {error}") from None
    if args.resume:  # locked: nobody saves a later checkpoint meanwhile
        progress = load_checkpoint(run_dir, agent, buffer)
        obs, _ = env.reset(seed=progress.episode_seed)
    for action in [np.array(a, np.float32) for a, _, _ in progress.episode]:
        obs, _, *ended, _ = env.step(action)  # replay; the last action may be held
        if any(ended):  # by chance, in a task that is not deterministic
            obs, _ = env.reset(seed=progress.episode_seed)
    writer = SummaryWriter(run_dir, purge_step=progress.step + 1, flush_secs=10)
    flags = json.dumps(asdict(args), indent=4)
    writer.add_text("hyperparameters", f"```\n{flags}\n```")  # Markdown's code block
    save_file(run_dir / "args.json", flags)
    print(f"{run_dir}: {obs_dim} observations, {action_dim} actions, on the {device}")
    started, last_save = time.monotonic() - progress.seconds, -np.inf  # first save at once
    bar = tqdm(total=total, initial=progress.step, mininterval=1)
    try:
        while True:  # Alg. 1, line 2
            progress.seconds = time.monotonic() - started
            if args.eval_interval and progress.step not in progress.eval_returns:
                if progress.step % args.eval_interval == 0 or progress.step == total:
                    run_evaluation(agent, eval_envs, progress, run_dir, writer, signals)
            if progress.step >= total or signals:
                break
            if time.monotonic() - last_save >= 60 * args.checkpoint_minutes:
                writer.flush()  # a resumed run does not log these again
                save_checkpoint(run_dir, agent, buffer, progress)
                last_save = time.monotonic()
            step = progress.step + 1  # the one being taken
            if step <= args.learning_starts:  # Alg. 1, line 3
                if len(progress.episode) % args.warmup_repeat == 0:
                    action = (2 * torch.rand(action_dim, device=device) - 1).cpu().numpy()
                q = 0.0  # not asked: q_bias is minus the mean return-to-go
            else:
                (action,), (q,) = agent.act(obs[None], args.num_explore_candidates)
                with_actor = step % args.policy_frequency == 0  # Alg. 1, lines 4, 6
                progress.losses |= agent.update(buffer.sample(args.batch_size), with_actor)
            next_obs, reward, terminated, truncated, info = env.step(action)  # line 11
            buffer.add(obs, action, reward, next_obs, terminated)  # resume: one row a step
            agent.observe(obs)  # used with --normalize-observations
            obs = next_obs
            progress.step = step
            progress.episode.append((action.tolist(), float(q), float(reward)))
            if terminated or truncated:
                episode, progress.episode = progress.episode, []
                progress.episode_seed = (progress.episode_seed + 1_000_003) % EVAL_SEED
                log(writer, "charts/episodic_", episode_metrics(info), step)
                log(writer, "charts/", {"q_bias": q_bias(episode, args.gamma)}, step)
                bar.set_postfix({"return": info["episode"]["r"]}, refresh=False)
                obs, _ = env.reset(seed=progress.episode_seed)  # seeded: resume replays it
            if step % args.log_interval == 0:
                log(writer, "charts/", {"SPS": step / (time.monotonic() - started)}, step)
                log(writer, "losses/", progress.losses, step)
            bar.update()
    finally:  # after an error too: whole steps, the agent perhaps one update ahead
        with bar, lock, writer, env:  # closed whatever fails, the bar last
            save_checkpoint(run_dir, agent, buffer, progress)
            for eval_env in eval_envs:
                eval_env.close()
    return dict(run_dir=run_dir, agent=agent, buffer=buffer, progress=progress)


if __name__ == "__main__":
    signals = []  # an Event's set() waits for ever on a set() that it interrupts

    def on_signal(number, frame):
        if signals or number == 1:  # a third signal kills, but no SIGHUP (1)
            signal.signal(number, signal.SIG_DFL if number > 1 else signal.SIG_IGN)
        signals.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGINT)):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, on_signal)
    sys.path.append(os.getcwd())  # where module:id looks for a module of the user's
    args = tyro.cli(Args)
    if args.resume:
        try:
            saved = Args(**json.loads(Path(args.run_dir, "args.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise SystemExit(f"error: cannot resume {args.run_dir!r}: {error}") from None
        args = tyro.cli(Args, default=saved)  # flags given now override the saved ones
    run_dir = str(main(args, signals)["run_dir"])
    if signals:
        raise SystemExit(f"stopped; to continue: --run-dir {run_dir!r} --resume")
    print("done:", run_dir)
