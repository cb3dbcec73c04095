"""fmer_continuous.py on a GPU by CUDA graphs: the same losses, faster.

    python figures/cuda_graphs.py --env-id HalfCheetah-v4

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
import fmer_continuous as fmer


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


class GraphAgent(fmer.Agent):
    """An agent whose exploring actions and updates are replays, from fixed addresses."""

    def __init__(self, *args):
        super().__init__(*args)
        self.batch = None  # what the updates read
        self.updates = {}  # by with_actor
        self.acting = None

    def update(self, batch, with_actor):
        if not self.batch:
            self.batch = [x.clone() for x in batch]
            for name in fmer.OPTIMIZERS:  # here, since load_state_dict would undo it
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
                return fmer.best_of(self.critic, s, self.sample(s, num_samples)[-1].tanh())

            self.acting = fixed, *record(best)
        fixed, graph, results = self.acting
        fixed.copy_(obs)
        graph.replay()
        action, value = results
        return action.cpu().numpy(), value.cpu().numpy()


def main(args: fmer.Args) -> dict:
    """fmer_continuous.py's main, with the other agent."""
    if not (args.cuda and torch.cuda.is_available()):
        raise SystemExit("error: CUDA graphs need a GPU")
    fmer.Agent = GraphAgent
    return fmer.main(args)


if __name__ == "__main__":
    print("done:", main(tyro.cli(fmer.Args))["run_dir"])
