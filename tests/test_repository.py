"""The promises of the README: size, imports, equations, commands, one text in two scripts."""

import ast
import dataclasses
import difflib
import importlib.util
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tyro

import fmer_continuous
import fmer_kitchen
from figures import kitchen_random, learning_curves, multigoal, speed, watch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SCRIPTS = {"fmer_continuous.py": fmer_continuous, "fmer_kitchen.py": fmer_kitchen}
FIGURES = {
    "figures/kitchen_filmstrip.py": fmer_kitchen, "figures/kitchen_random.py": kitchen_random,
    "figures/learning_curves.py": learning_curves, "figures/multigoal.py": multigoal,
    "figures/speed.py": speed, "figures/watch.py": watch,
}  # fmt: skip
PACKAGES = {"torch", "gymnasium", "gymnasium_robotics", "mujoco", "tyro", "tensorboard", "numpy"}
PACKAGES |= {"tqdm"}


def definitions(name):
    """{name: (source, line)} of every function and class, methods included."""
    source, found = (ROOT / name).read_text(), {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = (ast.get_source_segment(source, node), node.lineno)
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_line_budget(name):
    lines = (ROOT / name).read_text().splitlines()
    assert len(lines) <= 450
    assert max(map(len, lines)) <= 100
    assert re.search(rf"^    {len(lines)} {name}$", README, re.M), "the README states the size"


@pytest.mark.parametrize("name", SCRIPTS)
def test_imports_nothing_local(name):
    imported = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported <= PACKAGES | sys.stdlib_module_names


@pytest.mark.parametrize("name", SCRIPTS)
def test_public_names_are_documented(name):
    for node in ast.parse((ROOT / name).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert ast.get_docstring(node), node.name


def test_equation_table_points_at_the_code_and_at_tests():
    rows = re.findall(r"^\| \((\d+)\) \|.*\| `(\w+)` \| (\d+) \| `(\w+)` \|$", README, re.M)
    assert [int(row[0]) for row in rows] == list(range(1, 15))
    tests = "".join(each.read_text() for each in (ROOT / "tests").glob("test_*.py"))
    code = definitions("fmer_continuous.py")
    for number, function, line, test in rows:
        source, first_line = code[function]
        assert int(line) == first_line, f"Eq. ({number}): {function} is at line {first_line}"
        tags = re.findall(r"Eqs?\. ([^.]*)", ast.get_docstring(ast.parse(source).body[0]))
        numbers = set(re.findall(r"\((\d+)\)", " ".join(tags)))
        for low, high in re.findall(r"\((\d+)\)-\((\d+)\)", " ".join(tags)):
            numbers |= {str(n) for n in range(int(low), int(high) + 1)}
        assert number in numbers | set(re.findall(r"Eq\. \((\d+)\)", source)), (number, function)
        assert f"def {test}(" in tests


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_line_of_algorithm_1_is_tagged(name):
    tagged = set()
    for low, high in re.findall(r"Alg\. 1, lines? (\d+)(?:-(\d+))?", (ROOT / name).read_text()):
        tagged |= set(range(int(low), int(high or low) + 1))
    assert tagged == set(range(1, 12))
    assert re.findall(r"^    ( \d|\d\d)  ", README, re.M) == [f"{n:2d}" for n in range(1, 12)]


def test_shared_definitions_are_the_same_text():
    continuous, kitchen = definitions("fmer_continuous.py"), definitions("fmer_kitchen.py")
    different = {"Args", "make_env", "episode_metrics", "main"}
    assert set(continuous) == set(kitchen)
    for name in set(continuous) - different:
        assert continuous[name][0] == kitchen[name][0], name
    texts = [(ROOT / name).read_text().splitlines() for name in SCRIPTS]
    changes = [line for line in difflib.ndiff(*texts) if line[0] in "+-"]
    for text in (README, fmer_kitchen.__doc__):
        assert len(changes) == int(re.search(r"differs in (\d+) lines", text)[1]) <= 70
    mains = [definitions(name)["main"][0].splitlines() for name in SCRIPTS]
    assert sum(line[0] in "+-" for line in difflib.ndiff(*mains)) <= 8


def commands():
    """Every command line of a code block, and every one in backticks within a table."""
    blocks = re.findall(r"^    (.+)$", README, re.M) + re.findall(r"`(python [^`]+)`", README)
    lines = [part.strip() for line in blocks for part in line.split("&&")]
    return [line for line in lines if re.match(r"python3? |pip |source |(\w+=.*)?\./bench", line)]


def test_readme_commands_parse():
    trained = set()
    for command in commands():
        words = shlex.split(command)
        if words[1] in SCRIPTS:
            module = SCRIPTS[words[1]]
            tyro.cli(module.Args, args=words[2:])
            trained.add(words[1])
        elif words[0] in ("python", "python3") and words[1] != "-m":
            tyro.cli(FIGURES[words[1]].Args, args=words[2:])
        elif "./benchmark.sh" in words:
            start = words.index("./benchmark.sh")
            settings = dict(word.split("=", 1) for word in words[:start])
            suites = [word for word in words[start + 1 :] if word != "--dry-run"]
            dry = [str(ROOT / "benchmark.sh"), "--dry-run", *suites]
            assert subprocess.run(dry, env=os.environ | settings, capture_output=True).stdout
        elif words[0] == "pip":
            assert (ROOT / words[-1]).exists()
    assert trained == set(SCRIPTS)
    test_command = "python -m pytest -q tests"
    assert test_command in commands() and test_command in (ROOT / ".ci" / "run").read_text()


def test_kitchen_defaults_are_those_of_the_readme():
    stated = "H̄ = 0, M' = 1, ρ = 0.6, T from 0.01, LayerNorm in the critics"
    assert stated in README and "H̄ = −1.5 nats per action dimension, M' = 4" in README
    kitchen, continuous = fmer_kitchen.Args(), fmer_continuous.Args()
    assert kitchen.target_entropy_scale == 0 and kitchen.num_target_candidates == 1
    assert kitchen.ess_target == 0.6 and kitchen.temperature == 0.01 and kitchen.layer_norm
    assert continuous.target_entropy_scale == -1.5 and continuous.num_target_candidates == 4
    assert (
        continuous.ess_target == 0.3 and continuous.temperature == 1 and not continuous.layer_norm
    )
    named = {field.name for field in dataclasses.fields(kitchen)} - {
        "tasks",
        "num_tasks",
        "exp_name",
    }
    different = {name for name in named if getattr(kitchen, name) != getattr(continuous, name)}
    assert len(different) == 5, "no other default differs"


def test_flags_named_in_the_readme_exist():
    fields = set(fmer_continuous.Args.__dataclass_fields__)
    for module in (fmer_kitchen, *FIGURES.values()):
        fields |= set(module.Args.__dataclass_fields__)
    for flag in re.findall(r"`--([a-z-]+)", README):
        name = flag.removeprefix("no-").replace("-", "_")
        assert name in fields | {"help", "dry_run"}, flag


@pytest.mark.parametrize("folder", ["results", "results/ablations"])
def test_results_tables_are_the_output_of_their_script(folder):
    curves = learning_curves.load(learning_curves.Args(results=ROOT / folder))
    assert learning_curves.table(curves) in README
    for path in (ROOT / folder).glob("*/*/about.json"):
        assert {"command", "commit", "hardware"} <= json.loads(path.read_text()).keys(), path


def test_requirements_are_pinned():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = dict(re.fullmatch(r"([\w-]+)==([\d.]+)(?:  # .*)?", line).groups() for line in lines)
    major, minor, *_ = pins["mujoco"].split(".")
    assert (int(major), int(minor)) < (3, 12)


@pytest.mark.parametrize("script", SCRIPTS)
def test_quick_ablations_apply_and_run(tmp_path, script):
    """Each diff of the README on both scripts; its effect is seen in a tiny real run."""
    diffs = re.findall(r"^```diff\n(.+?)^```$", README, re.M | re.S)
    assert len(diffs) == 2
    modules = []
    for number, diff in enumerate(diffs):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / script).write_text((ROOT / script).read_text())
        diff = diff.replace("fmer_continuous.py", script).replace("step == 10_000", "step == 321")
        command = ["git", "apply", "-"]
        environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
        applied = subprocess.run(
            command, input=diff, text=True, cwd=folder, capture_output=True, env=environment
        )
        assert applied.returncode == 0, applied.stderr
        name = f"ablation_{number}_{Path(script).stem}"
        spec = importlib.util.spec_from_file_location(name, folder / script)
        modules.append(importlib.util.module_from_spec(spec))
        sys.modules[name] = modules[-1]  # dataclasses look their module up
        spec.loader.exec_module(modules[-1])

    weights, ess = modules[0].candidate_weights(torch.tensor([[1.0, 3.0]]), torch.tensor(2.0))
    torch.testing.assert_close(weights, torch.tensor([[math.exp(-0.5), math.exp(0.5)]]))
    assert ess.item() == pytest.approx(
        (math.exp(0.5) + math.exp(-0.5)) ** 2 / (math.e + 1 / math.e)
    )
    small = dict(
        cuda=False, total_timesteps=331, learning_starts=311, batch_size=29, actor_batch_size=23,
        hidden_dim=19, flow_steps=3, num_candidates=7, eval_interval=0, eval_episodes=1,
        buffer_size=1009,
    )  # fmt: skip
    for number, module in enumerate(modules):
        args = module.Args(**small, run_dir=str(tmp_path / f"run{number}"))
        agent = module.main(args)["agent"]
        assert {int(s["step"]) for s in agent.optimizer.state.values()} >= {10, 20}
        assert (agent.log_alpha.exp() == 0) == (number == 1)
