"""The kitchen's filmstrip, and its table of random actions."""

import csv

import gymnasium as gym
import numpy as np
import pytest

import fmer_kitchen as fmer
from envs import SMALL, CompletesTasks
from figures import kitchen_filmstrip, kitchen_random

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*share an object"
)  # goals, which are unused


def test_filmstrip_keeps_even_times_and_every_completion(tmp_path):
    env = CompletesTasks(["kettle", "microwave"], {2: ["kettle"], 5: ["microwave"]})
    env.render = lambda: np.full((8, 8, 3), 40 * env.steps, np.uint8)
    film = kitchen_filmstrip.Film(gym.wrappers.RecordEpisodeStatistics(env), interval=3)
    fmer.evaluate(fmer.Agent(3, 2, fmer.Args(**SMALL)), [film])
    shown = [(step, picture.max(), new) for step, picture, new in film.frames]
    assert shown == [
        (1, 40, []),
        (2, 80, ["kettle"]),
        (4, 160, []),
        (5, 200, ["microwave"]),
    ]
    kitchen_filmstrip.draw(film).savefig(tmp_path / "film.png")
    assert (tmp_path / "film.png").stat().st_size > 3_000


def test_random_actions_go_through_the_same_evaluation(tmp_path, capsys):
    kitchen_random.main(kitchen_random.Args(seeds=1, eval_episodes=1, out=tmp_path))
    for number in (1, 4, 7):
        with open(
            tmp_path / f"FrankaKitchen-v1-{number}" / "random" / "seed_1.csv"
        ) as file:
            (row,) = csv.DictReader(file)
        assert row["length"] == "280" and 0 <= float(row["success_rate"]) <= 1
    assert capsys.readouterr().out.count("\n") == 2 + 3
