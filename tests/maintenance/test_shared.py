"""The two scripts are one text but for the task: see shared.py, which copies it."""

import dataclasses

from shared import ROOT, with_shared_text

import fmer_continuous
import fmer_kitchen


def test_the_shared_text_is_the_same():
    kitchen = (ROOT / "fmer_kitchen.py").read_text(encoding="utf-8")
    continuous = (ROOT / "fmer_continuous.py").read_text(encoding="utf-8")
    command = "python tests/maintenance/shared.py copies it"
    assert kitchen == with_shared_text(kitchen, continuous), command


def constants(module):
    named = {name: value for name, value in vars(module).items() if name.isupper()}
    return {
        name: value for name, value in named.items() if "_" in name or name == "OPTIMIZERS"
    }


def test_the_constants_are_the_same():
    """They stand in the header, which the scripts do not share."""
    assert constants(fmer_kitchen) == constants(fmer_continuous)
    assert "BASE_ENTROPY" in constants(fmer_kitchen)


def test_the_flags_are_the_same_but_for_the_task():
    continuous = {each.name: each for each in dataclasses.fields(fmer_continuous.Args)}
    kitchen = {each.name: each for each in dataclasses.fields(fmer_kitchen.Args)}
    assert set(continuous) - set(kitchen) == {"env_id"}
    assert set(kitchen) - set(continuous) == {"tasks", "num_tasks"}
    for name in set(continuous) & set(kitchen):
        assert continuous[name].type == kitchen[name].type, name
