"""figures/diagnose.py against what is known exactly of small runs."""

import numpy as np
import pytest
import torch

import fmer_continuous as fmer
from envs import SMALL
from figures import diagnose


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("diagnose") / "constant"
    settings = SMALL | dict(env_id="Constant-v0", eval_interval=97, gamma=0.5)
    fmer.main(fmer.Args(**settings, run_dir=str(directory)))
    return directory


def test_a_run_from_before_observations_were_scaled_is_read_as_it_was(run_dir, tmp_path):
    saved = torch.load(run_dir / "policy.pt", weights_only=True)
    del saved["args"]["normalize_observations"]
    for name in ("count", "mean", "variance"):
        del saved["agent"][name]
    torch.save(saved, tmp_path / "policy.pt")
    _, agent, _ = diagnose.load(tmp_path)
    assert not agent.args.normalize_observations and agent.count == 0
    torch.save(saved | {"agent": {}}, tmp_path / "policy.pt")
    with pytest.raises(RuntimeError, match="Missing key"):
        diagnose.load(tmp_path)


def test_the_critics_are_asked_about_scaled_observations(run_dir):
    _, agent, env = diagnose.load(run_dir)
    raw = diagnose.episode(agent, env, 11, 5)[1]
    agent.args.normalize_observations = True
    agent.mean.fill_(3.0)
    scaled = diagnose.episode(agent, env, 11, 5)[1]
    torch.testing.assert_close(scaled, agent.normalize(raw))
    assert not torch.equal(scaled, raw)


def test_discounted_returns():
    np.testing.assert_allclose(diagnose.discounted_returns([1, 2, 4], 0.5), [3, 4, 4])


def test_an_episode_compares_q_with_the_return_that_followed(run_dir, monkeypatch):
    """Reward 1 in each of 7 steps, γ = 0.5, and critics that always say 3 and 5."""
    monkeypatch.setattr(diagnose, "CUT", 2)
    _, agent, env = diagnose.load(run_dir)
    for q, value in ((agent.critic.q1, 3.0), (agent.critic.q2, 5.0)):
        torch.nn.init.zeros_(q.out.weight)
        torch.nn.init.constant_(q.out.bias, value)
    total, states, errors = diagnose.episode(agent, env, 11, 5)
    assert total == 7 and states.shape == (7, 3)
    expected = [4 - 2 * (1 - 0.5 ** (7 - t)) for t in range(5)]  # the last 2 do not count
    np.testing.assert_allclose(errors, expected, rtol=1e-5)


def test_twins_that_agree_and_twins_that_do_not(run_dir):
    _, agent, _ = diagnose.load(run_dir)
    s = torch.randn(5, 3)
    first, second = agent.critic.q1, agent.critic.q2
    second.load_state_dict(first.state_dict())
    assert diagnose.twins(agent, s, 11)[0] == pytest.approx(1, abs=1e-5)
    second.out.weight.data.neg_()
    assert diagnose.twins(agent, s, 11)[0] == pytest.approx(-1, abs=1e-5)


class Apart(torch.nn.Module):
    """Q_1 = s_0 + 3 a_0, Q_2 = a_0: the smaller changes with s."""

    def forward(self, s, a):
        s, a = torch.broadcast_tensors(s[..., 0], a[..., 0])
        return torch.stack([s + 3 * a, a])


def test_uphill_is_along_the_gradient_of_the_mean_and_stays_in_the_box(run_dir):
    _, agent, _ = diagnose.load(run_dir)
    agent.critic = Apart()  # their mean: s_0/2 + 2 a_0
    d = agent.dims[1]
    s, a = torch.full((1, 3), 7.0), torch.full((1, d), 0.1)
    moved, q = diagnose.move_uphill(agent, s, a, 5)
    expected = a.clone()
    expected[0, 0] = 0.2
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(q, torch.tensor([3.9]))
    assert diagnose.move_uphill(agent, s, a, 53)[0][0, 0] == 1


def test_how_far_twins_are_apart_is_a_deviation_over_states(run_dir):
    _, agent, _ = diagnose.load(run_dir)
    agent.critic = Apart()
    s = torch.randn(1009, 3)
    correlation, apart, deviation, _ = diagnose.twins(agent, s, 101)
    assert correlation == pytest.approx(1, abs=1e-5)
    a = agent.sample(s, 101)[-1].tanh()[..., 0]
    between = (s[:, 0] + 2 * a.mean(1)).std().item()
    assert apart == pytest.approx(between, rel=0.02), "over states, not candidates"
    assert deviation == pytest.approx(2 * a.std(1).mean().item(), rel=0.02), "of the mean"


def test_an_episode_executes_the_best_of_so_many_moved_uphill_if_asked(
    run_dir, monkeypatch
):
    _, agent, env = diagnose.load(run_dir)
    agent.critic = Apart()
    asked, executed = [], []
    act, step = agent.act, env.step
    monkeypatch.setattr(agent, "act", lambda obs, m: (asked.append(m), act(obs, m))[1])
    monkeypatch.setattr(env, "step", lambda a: (executed.append(a), step(a))[1])
    torch.manual_seed(3)
    diagnose.episode(agent, env, 11, 4)
    torch.manual_seed(3)
    diagnose.episode(agent, env, 11, 4, uphill=5)
    assert asked == [4] * 14
    plain, moved = np.stack(executed[:7]), np.stack(executed[7:])
    np.testing.assert_allclose(moved[:, 0], np.minimum(plain[:, 0] + 0.1, 1), rtol=1e-5)
    np.testing.assert_array_equal(moved[:, 1:], plain[:, 1:])


def test_both_tables(run_dir, capsys):
    diagnose.main(diagnose.Args(run_dirs=(run_dir,), best_of=(1, 3), episodes=2))
    first, second = capsys.readouterr().out.strip().split("\n\n")
    rows = [line.split(" | ") for line in first.splitlines()[2:]]
    trials = [("1", "0"), ("3", "0"), ("5", "20")]  # M, steps uphill
    assert [row[:6] for row in rows] == [
        ["| constant", *trial, "7", "0", "7"] for trial in trials
    ]
    assert len(second.splitlines()) == 3
    target = second.splitlines()[2].split(" | ")[5]
    assert float(target) == -3.0  # −1.5 for each of 2 dimensions
