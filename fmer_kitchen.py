"""FMER (see fmer_continuous.py) on FrankaKitchen: tasks, their metrics, sparse-reward defaults.
It differs in 56 lines, counted on both sides; a test holds the rest to the same text."""

import copy
import math
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

BASE_ENTROPY = 0.6698041182  # H_0 of Eq. (8): ½ log 2πe + E[log sech² z], z ~ N(0,1), in nats
TASKS = ["microwave", "kettle", "bottom burner", "light switch"]  # one: the first; four: these
TASKS += ["slide cabinet", "hinge cabinet", "top burner"]  # seven: all. Which ones: our reading
EVAL_SEED = 2**31  # training episodes are seeded below it, evaluation episodes from it upwards


@dataclass
class Args:
    """Train FMER on FrankaKitchen-v1 from scratch, without demonstrations."""

    exp_name: str = "fmer_kitchen"  # names the run directory
    run_dir: str = ""  # where to write; empty: runs/<tasks>__<exp>__<seed>__<time>
    resume: bool = False  # continue the run in run_dir; flags that are not given stay its own
    total_timesteps: int = 1_000_000  # environment steps
    torch_deterministic: bool = True  # reproducible operations, and a warning where there are none
    num_threads: int = 1  # CPU threads: more rarely helps matrices this small, and can stall
    capture_video: bool = False  # write the first episode of each evaluation as an mp4
    log_interval: int = 1_000  # steps between TensorBoard points; each reads the device once
    eval_interval: int = 10_000  # steps between evaluations (one more at step 0); 0: never
    eval_episodes: int = 10  # episodes of each evaluation, on fixed seeds
    checkpoint_interval: int = 100_000  # steps between checkpoints; 0: only at its end or stop
    # The task and the off-policy learner. From here on, no flag can change in a resumed run
    tasks: tuple[Literal[*TASKS], ...] = ()  # tasks by name; empty: the --num-tasks first
    num_tasks: Literal[1, 4, 7] = 7  # the paper's sizes: microwave; D4RL's mixed set; all seven
    seed: int = 1  # seeds networks, noise, replay and environments
    cuda: bool = True  # use a GPU if there is one
    learning_starts: int = 5_000  # steps of uniform random actions before learning
    batch_size: int = 256  # B, transitions in a critic update, Eq. (13)
    buffer_size: int = 1_000_000  # transitions kept for replay
    gamma: float = 0.99  # γ, discount factor, Eq. (12)
    tau: float = 0.005  # τ, Polyak step of the target critics
    policy_frequency: int = 2  # critic updates per policy update
    policy_lr: float = 1e-3  # learning rate of the velocity field
    q_lr: float = 1e-3  # learning rate of the critics, log α and log T
    hidden_dim: int = 256  # width of the two hidden layers of every network
    layer_norm: bool = True  # normalise the critics' layers: tames overestimation on sparse reward
    # FMER
    flow_steps: int = 10  # K, Euler steps from noise to action, Eq. (2)
    num_candidates: int = 16  # N, candidates per state in a policy update, Eq. (4)
    num_act_candidates: int = 16  # M, candidates of which the best is executed, Eq. (14)
    num_target_candidates: int = 1  # M', candidates in the bootstrapped value, Eq. (12)
    actor_batch_size: int = 64  # states in a policy update, at most batch_size, Eq. (10)
    temperature: float = 0.01  # T of Eq. (5); its initial value if tuned
    autotune_temperature: bool = True  # tune T to hold ESS/N at ess_target, Eq. (6)
    ess_target: float = 0.6  # ρ, effective share of the candidates, Eq. (6)
    alpha: float = 0.1  # α of Eq. (10); its initial value if tuned, from 0 it stays 0
    autotune: bool = True  # tune α to hold the entropy at its target, Eq. (11)
    target_entropy_scale: float = 0.0  # H̄ in nats per action dimension, below log 2, Eq. (11)
    exact_entropy: bool = True  # Eq. (8); otherwise its continuous-time limit, Eq. (9)
    stopped = False  # no flag: a signal sets it, and the step in progress is the last

    def __post_init__(self):  # refuses what cannot be trained
        zero = "seed", "eval_interval", "checkpoint_interval", "alpha"
        ranges = dict.fromkeys(zero, (0, 1e12))
        ranges |= dict.fromkeys(("gamma", "tau", "ess_target"), (0, 1))
        ranges |= {"actor_batch_size": (1, self.batch_size), "target_entropy_scale": (-1e3, 0.69)}
        for name, value in vars(self).items():
            low, high = ranges.get(name, (1 if type(value) is int else 1e-9, 1e12))
            if type(value) in (int, float) and not low <= value <= high:
                raise SystemExit(f"error: --{name} must lie in [{low:g}, {high:g}], not {value}")


def make_env(task: list[str], **options) -> gym.Env:
    """FrankaKitchen-v1 rewarding each of the tasks once; its 59 numbers without the goals."""
    env = gym.make("gymnasium_robotics:FrankaKitchen-v1", tasks_to_complete=task, **options)
    env = gym.wrappers.FlattenObservation(gym.wrappers.FilterObservation(env, ["observation"]))
    return gym.wrappers.RecordEpisodeStatistics(env)


def episode_metrics(info: dict) -> dict[str, float]:
    """What is recorded of a finished episode, before reset() empties its list of completions."""
    done = {f"task/{task}": int(task in info["episode_task_completions"]) for task in TASKS}
    number, missing = sum(done.values()), len(info["tasks_to_complete"])
    metrics = {"return": float(info["episode"]["r"]), "length": int(info["episode"]["l"])}
    return metrics | {"tasks_completed": number, "success_rate": number / (number + missing)} | done


class ReplayBuffer:
    """The last `capacity` transitions on `device`, a packed row (s, a, r, s', terminated) each."""

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, device: torch.device | str):
        self.widths = [obs_dim, action_dim, 1, obs_dim, 1]
        self.rows = torch.zeros(capacity, sum(self.widths), device=device)
        self.size = torch.zeros((), dtype=torch.float64, device=device)  # so no draw waits for it
        self.num_added = 0

    def __len__(self) -> int:
        return min(self.num_added, len(self.rows))

    def add(self, s, a, r, next_s, terminated) -> None:
        row = np.concatenate([s, a, [r], next_s, [terminated]], dtype=np.float32)
        self.rows[self.num_added % len(self.rows)] = torch.from_numpy(row)
        self.num_added += 1
        self.size.fill_(len(self))

    def sample(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        """s (B,S), a (B,d), r (B,), s' (B,S), terminated (B,), drawn uniformly with replacement."""
        draw = torch.rand(batch_size, dtype=torch.float64, device=self.rows.device)
        s, a, r, next_s, terminated = self.rows[(draw * self.size).long()].split(self.widths, 1)
        return s, a, r.squeeze(1), next_s, terminated.squeeze(1)


class MLP(nn.Module):
    """Two hidden SiLU layers, (…,in_dims[i]) -> (…,out_dim). Each input has its own first matrix:
    their sum is a layer on the concatenation, but never copies the state for its candidates."""

    def __init__(self, in_dims: list[int], hidden_dim: int, out_dim: int, norm=nn.Identity):
        super().__init__()
        self.inputs = nn.ModuleList(nn.Linear(n, hidden_dim, i == 0) for i, n in enumerate(in_dims))
        self.hidden = nn.Linear(hidden_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, out_dim)
        self.norm1, self.norm2 = norm(hidden_dim), norm(hidden_dim)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        h = sum(layer(each) for layer, each in zip(self.inputs, inputs, strict=True))
        return self.out(F.silu(self.norm2(self.hidden(F.silu(self.norm1(h))))))


class VelocityField(nn.Module):
    """v_θ(s, x, t), Eq. (1): s (…,S), latent x (…,d), flow time t (…,1) -> (…,d)."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int):
        super().__init__()
        self.net = MLP([obs_dim, 8, action_dim], hidden_dim, action_dim)
        nn.init.zeros_(self.net.out.weight)  # v = 0 at first: the policy starts as tanh N(0,I)
        nn.init.zeros_(self.net.out.bias)
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(4), persistent=False)

    def forward(self, s: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        phase = self.frequencies * t
        return self.net(s, torch.cat([phase.cos(), phase.sin()], -1), x)


class TwinQ(nn.Module):
    """Q_1 and Q_2: s (…,S), a (…,d) -> (2,…). The smaller one is the value estimate, Eq. (4)."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int, layer_norm: bool = False):
        super().__init__()
        norm = nn.LayerNorm if layer_norm else nn.Identity
        self.q1, self.q2 = (MLP([obs_dim, action_dim], hidden_dim, 1, norm) for _ in range(2))

    def forward(self, s: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.q1(s, a), self.q2(s, a)]).squeeze(-1)


@torch.no_grad()
def sample_path(velocity, s, num_samples, flow_steps, action_dim, generator=None):
    """x_{k+1} = x_k + h·v(s, x_k, kh), h = 1/K, x_0 ~ N(0,I).  Eq. (2)
    s (B,S) -> (K+1, B, num_samples, d), from the noise [0] to the latent action [-1]."""
    shape = (len(s), num_samples, action_dim)
    path = [torch.randn(shape, device=s.device, dtype=s.dtype, generator=generator)]
    for k in range(flow_steps):
        t = s.new_full((1,), k / flow_steps)
        path.append(path[-1] + velocity(s.unsqueeze(1), path[-1], t) / flow_steps)
    return torch.stack(path)


@torch.no_grad()
def best_of(velocity, critic, s, num_samples, flow_steps, action_dim, generator=None):
    """a = tanh β(s), β(s) the latent of largest min_j Q_j(s, tanh x_1) among M samples.  Eq. (14)
    s (B,S) -> a (B,d) and its value (B,), which Eq. (12) bootstraps from."""
    a = sample_path(velocity, s, num_samples, flow_steps, action_dim, generator)[-1].tanh()
    value, best = critic(s.unsqueeze(1), a).amin(0).max(-1)  # (B,)
    return a[torch.arange(len(s), device=s.device), best], value


def candidate_weights(q, temperature):
    """A_i = Q_i − mean Q, w_i = exp(A_i/T) / Σ_m exp(A_m/T), ESS = 1 / Σ_i w_i².  Eqs. (4)-(6)
    q (B,N) -> weights (B,N), ess (B,) in [1,N]."""
    advantage = q - q.mean(-1, keepdim=True)
    weights = torch.softmax(advantage / temperature, -1)
    return weights, 1 / weights.square().sum(-1)


def flow_matching_loss(velocity, s, x1, weights):
    """L = E Σ_i w_i ‖v(s, x_t^i, t) − (x_1^i − x_0)‖², x_t = (1−t)·x_0 + t·x_1.  Eqs. (3), (7)
    s (B,S), x1 (B,N,d), weights (B,N) -> scalar; x_0 ~ N(0,I) and t ~ U(0,1) are drawn afresh."""
    x0 = torch.randn_like(x1)
    t = torch.rand_like(x1[..., :1])
    xt = (1 - t) * x0 + t * x1
    error = velocity(s.unsqueeze(1), xt, t) - (x1 - x0)  # (B,N,d)
    return (weights * error.square().sum(-1)).sum(-1).mean()


def policy_entropy(velocity, s, path, exact=True):
    """H = d·H_0 + Σ_k E[log|det(I + h ∂v/∂x)| + Σ_j (log sech² x_{k+1} − log sech² x_k)].  Eq. (8)
    The entropy (nats) of tanh x_1 under the Euler sampler, whose every step has a known Jacobian.
    s (B,S), path (K+1,B,N,d) of `sample_path` -> scalar, differentiable in velocity's parameters.
    Unbiased: each state lends one step k of one candidate, times K. With exact=False the limit
    h → 0, d·H_0 + ∫ E[∇·v − 2 tanh(x)·v] dt, Eq. (9), ∇·v ≈ εᵀ(∂v/∂x)ε, ε = ±1 (Hutchinson)."""
    flow_steps, batch_size, d = len(path) - 1, path.shape[1], path.shape[3]
    rows = torch.arange(batch_size, device=s.device)
    k = (rows + torch.randint(flow_steps, (1,), device=s.device)) % flow_steps  # equally often
    x = path[k, rows, 0].detach().requires_grad_()  # (B,d); candidates are i.i.d.: take the first
    v = velocity(s, x, (k / flow_steps).to(s.dtype).unsqueeze(1))
    eye = torch.eye(d, device=s.device, dtype=s.dtype)
    left = eye.unsqueeze(1).expand(d, *v.shape) if exact else torch.randn_like(v).sign()[None]
    (vjps,) = torch.autograd.grad(v, x, left, create_graph=True, is_grads_batched=True)  # (…,B,d)
    if not exact:
        return d * BASE_ENTROPY + ((vjps * left).sum((0, 2)) - 2 * (x.tanh() * v).sum(-1)).mean()
    log_det = torch.linalg.slogdet(eye + vjps.transpose(0, 1) / flow_steps).logabsdet  # (B,)
    ends = torch.stack([x, x + v / flow_steps])
    before, after = F.logsigmoid(2 * ends) + F.logsigmoid(-2 * ends)  # less 2 log 2: it cancels
    return d * BASE_ENTROPY + flow_steps * (log_det + (after - before).sum(-1)).mean()


def td_target(reward, terminated, next_value, gamma):
    """y = r + γ·(1 − terminated)·V(s').  Eq. (12): a time limit is no termination.  All (B,)."""
    return reward + gamma * (1 - terminated) * next_value


class Agent(nn.Module):
    """Alg. 1, lines 1, 3 and 5-10: the networks, the multipliers α and T, and their updates."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args):
        super().__init__()
        self.args, self.target_entropy = args, args.target_entropy_scale * action_dim
        self.solver = dict(flow_steps=args.flow_steps, action_dim=action_dim)
        self.velocity = VelocityField(obs_dim, action_dim, args.hidden_dim)
        self.critic = TwinQ(obs_dim, action_dim, args.hidden_dim, args.layer_norm)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        alpha, temperature = torch.tensor(args.alpha), torch.tensor(args.temperature)
        self.log_alpha = nn.Parameter(alpha.log(), args.autotune)
        self.log_temperature = nn.Parameter(temperature.log(), args.autotune_temperature)
        groups = [{"params": self.velocity.parameters(), "lr": args.policy_lr}]
        groups += [{"params": [*self.critic.parameters(), self.log_alpha, self.log_temperature]}]
        self.optimizer = torch.optim.Adam(groups, args.q_lr, fused=True)

    def act(self, obs: np.ndarray, generator: torch.Generator | None = None) -> np.ndarray:
        """Alg. 1, line 3: the best of M candidates for each state, Eq. (14), (B,S) -> (B,d)."""
        s = torch.as_tensor(obs, dtype=torch.float32, device=self.log_alpha.device)
        num = self.args.num_act_candidates
        a, _ = best_of(self.velocity, self.critic, s, num, generator=generator, **self.solver)
        return a.cpu().numpy()

    def update(self, batch: tuple[torch.Tensor, ...], with_actor: bool) -> dict:
        """Alg. 1, lines 5-10. The metrics stay on the device: nothing here waits for it."""
        metrics = self.update_critic(*batch)
        if with_actor:
            metrics |= self.update_actor(batch[0][: self.args.actor_batch_size])
        with torch.no_grad():  # Alg. 1, line 10: φ̄ + τ(φ − φ̄) = (1−τ)φ̄ + τφ
            averages, sources = self.target_critic.parameters(), self.critic.parameters()
            torch._foreach_lerp_(list(averages), list(sources), self.args.tau)
        return metrics

    def update_critic(self, s, a, r, next_s, terminated) -> dict:
        """Alg. 1, line 5: L_Q = Σ_j E (Q_j(s,a) − y)².  Eqs. (12), (13)"""
        num = self.args.num_target_candidates
        next_value = best_of(self.velocity, self.target_critic, next_s, num, **self.solver)[1]
        y = td_target(r, terminated, next_value, self.args.gamma)  # (B,)
        q = self.critic(s, a)  # (2,B)
        loss = (q - y).square().mean(1).sum()
        self.optimizer.zero_grad()
        loss.backward()  # reaches only the critics: the velocity field has no gradient, no step
        self.optimizer.step()
        return {"critic": loss.detach(), "q_values": q.detach().mean()}

    def update_actor(self, s: torch.Tensor) -> dict:
        """Alg. 1, lines 7-9: L = L_CFM − α·H, and the dual steps on log α and log T.  Eq. (10)"""
        path = sample_path(self.velocity, s, self.args.num_candidates, **self.solver)
        alpha, temperature = self.log_alpha.exp().detach(), self.log_temperature.exp().detach()
        with torch.no_grad():
            q = self.critic(s.unsqueeze(1), path[-1].tanh()).amin(0)  # (B,N), Eq. (4)
        weights, ess = candidate_weights(q, temperature)
        ess_share = ess.mean() / self.args.num_candidates
        flow_matching = flow_matching_loss(self.velocity, s, path[-1], weights)
        entropy = policy_entropy(self.velocity, s, path, self.args.exact_entropy)
        dual_alpha = self.log_alpha * (entropy.detach() - self.target_entropy)  # Eq. (11)
        dual_temperature = self.log_temperature * (ess_share - self.args.ess_target)  # Eq. (6)
        self.optimizer.zero_grad()
        (flow_matching - alpha * entropy + dual_alpha + dual_temperature).backward()
        self.optimizer.step()
        losses = {"flow_matching": flow_matching.detach(), "entropy": entropy.detach()}
        return losses | {"alpha": alpha, "temperature": temperature, "ess": ess_share}


def evaluate(agent: Agent, envs: list[gym.Env]) -> list[dict]:
    """The `episode_metrics` of one episode on a fixed seed in each environment, in lockstep.
    The noise has its own generator: evaluating leaves training as it was, and sees the same."""
    generator = torch.Generator(agent.log_alpha.device).manual_seed(EVAL_SEED)
    obs = np.stack([env.reset(seed=EVAL_SEED + i)[0] for i, env in enumerate(envs)])
    metrics, running = [{}] * len(envs), list(range(len(envs)))
    while running:
        actions = agent.act(obs, generator)
        for i in tuple(running):
            obs[i], _, terminated, truncated, info = envs[i].step(actions[i])
            if terminated or truncated:
                metrics[i] = episode_metrics(info)
                running.remove(i)
    return metrics


def load(run_dir: Path) -> dict:
    """The checkpoint of a run; SystemExit where it is missing, truncated or foreign."""
    try:
        saved = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True)
        return saved | {"args": Args(**saved["args"])}
    except Exception as error:
        raise SystemExit(f"error: cannot resume {run_dir}: {error!r:.200}") from None


def main(args: Args) -> dict:
    """Algorithm 1. Returns eval_returns [(step, mean return)], run_dir, agent and buffer."""
    torch.set_num_threads(args.num_threads)
    torch.use_deterministic_algorithms(args.torch_deterministic, warn_only=True)
    torch.manual_seed(args.seed)
    args.cuda = args.cuda and torch.cuda.is_available()  # kept by a resumed run
    device, noise = ("cuda", torch.cuda) if args.cuda else ("cpu", torch)  # noise: its generator
    task = list(dict.fromkeys(args.tasks or TASKS[: args.num_tasks]))
    label = "FrankaKitchen-v1-" + ("+".join(args.tasks).replace(" ", "-") or str(len(task)))
    run_dir = Path(args.run_dir or f"runs/{label}__{args.exp_name}__{args.seed}__{time.time():.0f}")
    try:
        env, *eval_envs = [make_env(task) for _ in range(1 + args.eval_episodes)]
        if args.capture_video:
            camera = make_env(task, render_mode="rgb_array")
            videos = f"{run_dir}/videos/{time.time_ns()}"  # never over those of an earlier start
            eval_envs[0] = gym.wrappers.RecordVideo(camera, videos, lambda episode: True)
    except Exception as error:  # an unknown id, unbounded actions, no simulator, no OpenGL, …
        raise SystemExit(f"error: cannot make {task!r}: {error!r}") from None
    dims = env.observation_space.shape[0], env.action_space.shape[0]
    buffer = ReplayBuffer(args.buffer_size, *dims, device)
    agent = Agent(*dims, args).to(device)  # Alg. 1, line 1
    policy = {"args": asdict(args), "dims": dims, "agent": agent.state_dict()}  # stays current
    step, episode, actions, eval_returns, metrics, seconds, csv_size = 0, 0, [], [], {}, 0, 0
    if args.resume:
        saved = load(run_dir)
        for name in list(vars(args))[list(vars(args)).index("tasks") :]:
            if getattr(args, name) != getattr(saved["args"], name):
                raise SystemExit(f"error: {run_dir} was started with another {name}")
        agent.load_state_dict(saved["agent"])
        agent.optimizer.load_state_dict(saved["optimizer"])
        noise.set_rng_state(saved["noise"])
        step, episode, actions, eval_returns, metrics, seconds, csv_size = saved["run"]
        buffer.num_added = step
        buffer.size.fill_(len(buffer))
        buffer.rows[: len(buffer)] = saved["rows"]

    run_dir.mkdir(parents=True, exist_ok=True)
    csv = open(run_dir / "eval.csv", "r+" if args.resume else "x", 1)  # "x": never overwrite
    csv.seek(csv.truncate(csv_size))
    writer, start = SummaryWriter(run_dir, purge_step=step + 1), time.time() - seconds
    writer.add_text("hyperparameters", repr(args), step)

    def save(content: dict, name: str) -> None:  # all of it, or what was there before
        try:
            torch.save(content, run_dir / f"{name}.tmp")
        except RuntimeError as error:  # torch's word for a full disk
            raise OSError(f"cannot write {run_dir}/{name}.tmp: {error}") from None
        os.replace(run_dir / f"{name}.tmp", run_dir / f"{name}.pt")

    def run_evaluation() -> None:
        episodes = evaluate(agent, eval_envs)
        if not eval_returns:
            print("step", "episode", *episodes[0], "seconds", sep=",", file=csv)
        for i, each in enumerate(episodes):
            print(step, i, *each.values(), int(time.time() - start), sep=",", file=csv)
        for name in episodes[0]:
            writer.add_scalar(f"eval/{name}", np.mean([each[name] for each in episodes]), step)
        eval_returns.append((step, sum(each["return"] for each in episodes) / len(episodes)))
        save(policy, "policy")
        if eval_returns[-1][1] == max(mean for _, mean in eval_returns):
            save(policy, "policy_best")

    def save_checkpoint() -> None:
        writer.flush()
        run = step, episode, actions, eval_returns, metrics, time.time() - start, csv.tell()
        learner = {"optimizer": agent.optimizer.state_dict(), "noise": noise.get_rng_state()}
        learner |= {"rows": buffer.rows[: len(buffer)].clone(), "run": run}
        save(policy | learner, "checkpoint")

    if args.eval_interval and not (step or eval_returns):
        run_evaluation()
    obs, _ = env.reset(seed=(args.seed + 1_000_003 * episode) % EVAL_SEED)
    for action in actions:  # the episode up to the checkpoint, replayed
        obs = env.step(np.array(action, np.float32))[0]
    progress = tqdm(desc=label, total=args.total_timesteps, initial=step, mininterval=1)
    while step < args.total_timesteps and not args.stopped:  # Alg. 1, line 2
        step += 1
        progress.update()
        if step <= args.learning_starts:  # Alg. 1, line 3
            action = (2 * torch.rand(dims[1], device=device) - 1).cpu().numpy()
        else:
            action = agent.act(obs[None])[0]
            # Alg. 1, line 4: launched before the simulator steps, so that a GPU learns meanwhile
            batch, with_actor = buffer.sample(args.batch_size), step % args.policy_frequency == 0
            metrics |= agent.update(batch, with_actor)

        next_obs, reward, terminated, truncated, info = env.step(action)  # Alg. 1, line 11
        buffer.add(obs, action, float(reward), next_obs, terminated)
        obs = next_obs
        actions.append(action.tolist())
        if terminated or truncated:
            episode, actions = episode + 1, []
            for name, value in episode_metrics(info).items():
                writer.add_scalar(f"charts/episodic_{name}", value, step)
            progress.set_postfix({"return": info["episode"]["r"]}, refresh=False)
            obs, _ = env.reset(seed=(args.seed + 1_000_003 * episode) % EVAL_SEED)

        if step % args.log_interval == 0:
            for name, value in metrics.items():
                writer.add_scalar(f"losses/{name}", value.item(), step)
                if not value.isfinite():  # the last checkpoint stays
                    writer.flush()
                    raise SystemExit(f"error: losses/{name} is {value.item()} at step {step}")
            writer.add_scalar("charts/SPS", step / (time.time() - start), step)
        if args.eval_interval and (step % args.eval_interval == 0 or step == args.total_timesteps):
            run_evaluation()
        if step % (args.checkpoint_interval or math.inf) == 0 and step < args.total_timesteps:
            save_checkpoint()

    save_checkpoint()
    for resource in (env, *eval_envs, csv, writer):
        resource.close()
    return dict(eval_returns=eval_returns, run_dir=str(run_dir), agent=agent, buffer=buffer)


if __name__ == "__main__":
    args = tyro.cli(Args)
    if args.resume:
        args = tyro.cli(Args, default=load(Path(args.run_dir))["args"])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(Args, "stopped", True))
    try:
        result = main(args)
    except OSError as error:  # a full disk, no permission, a run directory that is in use, …
        raise SystemExit(f"error: {error}") from None
    if Args.stopped:
        raise SystemExit(f"stopped; to continue: --run-dir {result['run_dir']} --resume")
    print("done:", result["run_dir"])
