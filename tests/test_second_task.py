"""figures/second_task.py against critics and episodes that are known."""

from dataclasses import asdict

import pytest
import torch

import fmer_kitchen as fmer
from envs import SMALL
from figures import second_task

S, D = 59, 9


@pytest.fixture
def agent():
    torch.manual_seed(0)
    return fmer.Agent(S, D, fmer.Args(**SMALL))


class Linear(torch.nn.Module):
    """Q_1 = 5 + a_0 and Q_2 = Q_1 − 0.4."""

    def forward(self, s, a):
        return torch.stack([5 + a[..., 0], 4.6 + a[..., 0]])


def test_the_first_two_rewards_of_each_episode_that_has_two():
    r = torch.zeros(3 * 280 + 100)
    r[[7, 290, 300, 310, 3 * 280, 3 * 280 + 99]] = 1
    assert second_task.second_tasks(r, 280) == [(290, 300), (840, 939)]
    assert second_task.second_tasks(r, 20) == [(300, 310)]


def test_actions_that_a_known_critic_prefers_and_does_not(agent):
    agent.critic = Linear()
    agent.log_temperature.data.fill_(-9.0)  # the best candidate has all the weight
    a = torch.zeros(23, D)
    for toward in (0.9, -0.9):
        a[:, 0] = toward
        q, deviation, taken, twins, cosine = second_task.look(
            agent, torch.randn(23, S), a, 4001
        )
        assert q == pytest.approx(4.8, abs=0.02)  # π is tanh N(0,I)
        assert deviation == pytest.approx(0.628, abs=0.01)
        assert taken == pytest.approx(4.8 + toward) and twins == pytest.approx(0.4)
        assert cosine * toward > 0.2  # of the nine dimensions one is alike


def test_new_critics_learn_and_the_policy_stays(agent):
    """Reward 1 and an end: Q = 1."""
    buffer = fmer.ReplayBuffer(101, S, D, "cpu")
    buffer.rows, buffer.num_added = torch.randn(101, 2 * S + D + 2), 101
    buffer.rows[:, [S + D, -1]] = 1
    policy = {k: v.clone() for k, v in agent.velocity.state_dict().items()}
    args = second_task.Args(run_dirs=(), updates=300, hidden_dim=31, batch_size=23)
    second_task.learn_anew(agent, buffer, args)
    s, a, _, _, _ = buffer.rows.split(buffer.widths, dim=1)
    assert agent.critic(s, a).mean().item() == pytest.approx(1, abs=0.1)
    assert agent.critic.q1.hidden.weight.shape == (31, 31)
    assert all(torch.equal(v, policy[k]) for k, v in agent.velocity.state_dict().items())


def test_the_table_is_of_episodes_after_warm_up(agent, tmp_path, capsys):
    args = asdict(fmer.Args(**(SMALL | dict(learning_starts=281, gamma=0.5))))
    policy = {"args": args, "dims": agent.dims, "agent": agent.state_dict()}
    torch.save(policy, tmp_path / "policy.pt")
    rows = torch.zeros(4 * 280, 2 * S + D + 2)
    rows[[3, 9, 2 * 280 + 50, 2 * 280 + 60, 3 * 280 + 70, 3 * 280 + 71], S + D] = 1
    content = {"args": args, "agent": agent.state_dict(), "rows": rows}
    torch.save(content, tmp_path / "checkpoint.pt")
    for length, expected in (
        (280, [[0, 2, 1.0], [2, 1, 0.25]]),
        (5, [[0, 1, 1.0]]),
    ):
        args = second_task.Args((tmp_path,), lags=(0, 2, 10), episode_length=length)
        second_task.main(args)
        lines = capsys.readouterr().out.splitlines()[2:]
        table = [[float(cell) for cell in line.split("|")[2:5]] for line in lines]
        assert table == expected
