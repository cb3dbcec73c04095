"""What README.md tells a reader to type, open and believe: commands, flags, names, links,
diffs and the program under "Use a policy"."""

import importlib
import importlib.util
import inspect
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tyro
from test_scripts import cited

import fmer_continuous
import fmer_kitchen
from envs import SMALL

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = {"fmer_continuous.py": fmer_continuous, "fmer_kitchen.py": fmer_kitchen}
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`([^`\n]+)`", PROSE)
TESTS = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


def commands():
    """Every command of an indented block or in backticks, one by one."""
    blocks = re.findall(r"^    (.+)$", PROSE, re.MULTILINE) + INLINE
    lines = [block.split("  #")[0] for block in blocks]  # without a comment at the end
    return [part.strip() for line in lines for part in line.split("&&")]


def fenced(language):
    return re.findall(rf"^```{language}\n(.+?)^```$", README, re.MULTILINE | re.DOTALL)


def test_commands_parse():
    trained = set()
    for command in commands():
        words = shlex.split(command)
        if words[0] == "python" and words[1:] and words[1] in SCRIPTS:
            args = tyro.cli(SCRIPTS[words[1]].Args, args=words[2:])
            SCRIPTS[words[1]].check(args)
            trained.add(words[1])
        elif words[0] == "python" and words[1:3] == ["-m", "pytest"]:
            assert all((ROOT / word).exists() for word in words[3:] if word[0] != "-")
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).exists(), command
        elif words[:2] == ["pip", "install"]:
            assert (ROOT / words[-1]).exists(), command
    assert trained == set(SCRIPTS)


def test_the_command_of_the_tests_is_that_of_ci():
    assert "python -m pytest -q -n2 tests" in commands()
    assert "python -m pytest -q -n2 tests" in (ROOT / ".ci" / "run").read_text()


def test_flags_exist():
    fields = {"help"}
    for module in SCRIPTS.values():
        fields |= set(module.Args.__dataclass_fields__)
    flags = [word for code in INLINE if code.startswith("--") for word in code.split()]
    names = [flag[2:].replace("-", "_") for flag in flags if flag.startswith("--")]
    assert len(names) > 5
    for name in names:
        assert name.removeprefix("no_") in fields, name


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", PROSE)
    local = [target for target in targets if "://" not in target]
    assert len(local) >= 2
    for target in local:
        assert (ROOT / target).exists(), target
    headings = re.findall(r"^#+ (.+)$", PROSE, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", PROSE)) <= anchors


def test_the_table_of_equations_names_code_that_cites_them_and_tests():
    lines = [line for line in PROSE.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    (head,) = [row for row in rows if row[0] == "Eq."]
    equations = [dict(zip(head, row, strict=True)) for row in rows if row[0][:1] == "("]
    assert [row["Eq."] for row in equations] == [f"({number})" for number in range(1, 15)]
    for number, row in enumerate(equations, start=1):
        functions = re.findall(r"`(\w+)`", row["function"])
        assert functions and re.search(r"`test_\w+`", row["test"])
        for name, module in itertools.product(functions, SCRIPTS.values()):
            code = getattr(module, name, None) or getattr(module.Agent, name)
            assert number in cited(inspect.getsource(code)), (number, name)


def test_every_named_test_exists():
    names = re.findall(r"`(test_\w+)`", PROSE)
    assert len(set(names)) >= 12
    for name in names:
        assert f"def {name}(" in TESTS, name


def test_the_defaults_are_those_of_the_text():
    args, kitchen = fmer_continuous.Args(), fmer_kitchen.Args()
    section = PROSE.split("Defaults of `fmer_continuous.py`.")[1].split("\n\n")[0]
    text = re.sub(r"\s+", " ", section)
    for said in (
        f"N = {args.num_candidates}.",
        f"K = {args.flow_steps} ",
        f"M = {args.num_act_candidates}, but {args.num_explore_candidates} in training",
        f"H̄ = −{-args.target_entropy_scale}·d, ρ = {args.ess_target},",
        f"width and batch {args.hidden_dim}, policy learning rate 1e-3",
        f"{args.actor_batch_size} states in a policy update",
    ):
        assert said in text, said
    assert args.batch_size == args.hidden_dim
    assert args.policy_lr == 1e-3 and args.policy_frequency == 2
    cleanrl = args.gamma, args.tau, args.buffer_size, args.learning_starts, args.q_lr
    assert cleanrl == (0.99, 0.005, 1_000_000, 5_000, 1e-3)
    assert args.exact_entropy and args.autotune and args.autotune_temperature
    text = re.sub(r"\s+", " ", fmer_kitchen.__doc__)
    for said in (
        f"({kitchen.learning_starts:,} random actions, ",
        f"H̄ = {kitchen.target_entropy_scale:.0f})",
        f"({kitchen.batch_size} of them)",
        f"γ = {kitchen.gamma}, layer norm)",
        f"T starts at {kitchen.temperature}, ρ = {kitchen.ess_target})",
    ):
        assert said in text, said
    assert kitchen.layer_norm and kitchen.normalize_observations


def test_it_is_short():
    assert len(README.split()) <= 1_500


def load(path):
    """The module of an edited script, under a name of its own."""
    name = f"edited_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def trained(path):
    """The agent after a few dozen steps on a tiny task, whichever script it is."""
    module = load(path)
    module.make_env = lambda task: fmer_continuous.make_env("Target-v0")
    module.episode_metrics = fmer_continuous.episode_metrics
    agent = module.main(module.Args(**SMALL, run_dir=str(path.parent / "run")))["agent"]
    assert len(agent.q_optimizer.state) > 0 and len(agent.policy_optimizer.state) > 0
    return agent.state_dict()


def assert_changes_the_training(plain, edited):
    before, after = trained(plain), trained(edited)
    assert after.keys() == before.keys()
    assert not all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_diff_applies_runs_and_changes_the_training(tmp_path, script):
    for folder in ("plain", "edited"):
        (tmp_path / folder).mkdir()
        shutil.copy(ROOT / script, tmp_path / folder)
    (diff,) = fenced("diff")
    diff = diff.replace("fmer_continuous.py", script)
    diff = re.sub(r"step >= [\d_]+", "step >= 51", diff)  # within a short run
    applied = subprocess.run(
        ["git", "apply", "-"],
        input=diff,
        text=True,
        capture_output=True,
        cwd=tmp_path / "edited",
        env=os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)},
    )
    assert applied.returncode == 0, applied.stderr + diff
    assert_changes_the_training(tmp_path / "plain" / script, tmp_path / "edited" / script)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_edits_of_one_word_change_the_training(tmp_path, script):
    edits = re.findall(r"`(\.\w+\(0\))`\s+for\s+`(\.\w+\(0\))`\s+in\s+`(\w+)`", README)
    assert len(edits) == 2
    whole = (ROOT / script).read_text()
    for new, old, function in edits:
        text = inspect.getsource(getattr(fmer_continuous.Agent, function))
        assert text.count(old) == 1 and text in whole
        paths = [tmp_path / function / name / script for name in ("plain", "edited")]
        for path, change in zip(paths, (old, new), strict=True):
            path.parent.mkdir(parents=True)
            path.write_text(whole.replace(text, text.replace(old, change)))
        assert_changes_the_training(*paths)


def test_the_program_that_uses_a_policy_runs_in_another_directory(tmp_path):
    (program,) = fenced("python")
    (policy,) = re.findall(r"\"(.+?/policy\w*\.pt)\"", program)
    env_id = fmer_continuous.Args.env_id
    settings = SMALL | dict(env_id=env_id, total_timesteps=40, eval_interval=40)
    run_dir = str((tmp_path / policy).parent)
    fmer_continuous.main(fmer_continuous.Args(**settings, run_dir=run_dir))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "'return':" in done.stdout, done.stderr
