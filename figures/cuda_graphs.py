"""Either script on a GPU by CUDA graphs: the same losses, faster.

    python figures/cuda_graphs.py --env-id HalfCheetah-v4
    python figures/cuda_graphs.py kitchen --tasks kettle

A learner's step is hundreds of small kernels, each launched by Python, and the GPU waits
for that. Here they are recorded once and replayed by one launch; evaluations run as before.
What it costs: before each of the two recordings come three ordinary steps, so that a run
makes six learner's steps more than it counts, and six more when it is resumed, which is
therefore not bit for bit. --resume wants the run's other flags again; Ctrl-C saves, SIGTERM
does not.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import fmer_continuous
import fmer_kitchen


def record(function: Callable):
    """A graph of function(), and the tensors into which each replay writes its results."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # PyTorch's rule: a few ordinary calls come first
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


class Replayed:
    """Of an agent: exploring actions and updates are replays, from fixed addresses."""

    def __init__(self, *args):
        super().__init__(*args)
        self.batch = None  # what the updates read
        self.updates = {}  # by with_actor
        self.acting = None

    def update(self, batch, with_actor):
        if not self.batch:
            self.batch = [x.clone() for x in batch]
            for name in fmer_continuous.OPTIMIZERS:  # load_state_dict would undo it
                for group in getattr(self, name).param_groups:
                    group["capturable"] = True
        for fixed, new in zip(self.batch, batch, strict=True):
            fixed.copy_(new)
        if with_actor not in self.updates:
            update = super().update
            self.updates[with_actor] = record(lambda: update(self.batch, with_actor))
        graph, losses = self.updates[with_actor]
        graph.replay()
        return losses

    def act(self, obs, num_samples, generator=None):
        if generator is not None:  # an evaluation
            return super().act(obs, num_samples, generator)
        obs = torch.as_tensor(obs).to(self.log_alpha)
        if not self.acting:
            fixed = obs.clone()

            def best():
                s = self.normalize(fixed)
                a = self.sample(s, num_samples)[-1].tanh()
                return fmer_continuous.best_of(self.critic, s, a)

            self.acting = fixed, *record(best)
        fixed, graph, results = self.acting
        fixed.copy_(obs)
        graph.replay()
        action, q = results
        return action.cpu().numpy(), q.cpu().numpy()


class GraphAgent(Replayed, fmer_continuous.Agent):
    """For any task."""


class KitchenGraphAgent(Replayed, fmer_kitchen.Agent):
    """For the kitchen, whose Args differ."""


def main(args: fmer_continuous.Args | fmer_kitchen.Args) -> dict:
    """The script's main, with the other agent."""
    if not (args.cuda and torch.cuda.is_available()):
        raise SystemExit("error: CUDA graphs need a GPU")
    if isinstance(args, fmer_kitchen.Args):
        fmer_kitchen.Agent = KitchenGraphAgent
        return fmer_kitchen.main(args)
    fmer_continuous.Agent = GraphAgent
    return fmer_continuous.main(args)


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["kitchen"]:
        flags = tyro.cli(fmer_kitchen.Args, args=words[1:])
    else:
        flags = tyro.cli(fmer_continuous.Args, args=words)
    print("done:", main(flags)["run_dir"])
