"""What is promised of the scripts' text: size, imports, help, docstrings, tags of the
lines of Algorithm 1. Tests of what they do are in tests/."""

import ast
import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parents[2]
SCRIPTS = ["fmer_continuous", "fmer_kitchen"]
PACKAGES = {"torch", "gymnasium", "gymnasium_robotics", "mujoco", "tyro", "tensorboard"}
PACKAGES |= {"numpy", "tqdm", "filelock", "psutil"}


@pytest.fixture(params=SCRIPTS)
def script(request):
    return request.param


def source(script):
    return (ROOT / f"{script}.py").read_text(encoding="utf-8")


def test_sizes(script):
    lines = source(script).splitlines()
    assert len(lines) <= 600
    assert max(map(len, lines)) <= 92


def test_one_statement_a_line(script):
    statements = [node for node in ast.walk(ast.parse(source(script))) if is_simple(node)]
    starts = [node.lineno for node in statements]
    assert len(starts) == len(set(starts)) > 200


def is_simple(node):
    return isinstance(node, ast.stmt) and not hasattr(node, "body")


def test_imports_nothing_local(script):
    imported = set()
    for node in ast.walk(ast.parse(source(script))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported <= PACKAGES | sys.stdlib_module_names


def test_top_level_definitions_are_documented(script):
    for node in ast.parse(source(script)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert ast.get_docstring(node), node.name


def test_every_flag_has_a_help_sentence(script, capsys):
    """tyro reads the comment at the end of a field's line."""
    module = importlib.import_module(script)
    with pytest.raises(SystemExit):
        tyro.cli(module.Args, args=["--help"])
    shown = "".join(capsys.readouterr().out.replace("│", " ").split())
    lines = source(script).splitlines()
    for field in dataclasses.fields(module.Args):
        (line,) = [line for line in lines if line.startswith(f"    {field.name}: ")]
        sentence = line.split("  # ")[1]
        assert f"--{field.name.replace('_', '-')}" in shown
        assert "".join(sentence.split()) in shown


def test_every_line_of_algorithm_1_is_tagged_in_the_code(script):
    docstring = ast.get_docstring(ast.parse(source("fmer_continuous")))
    lines = [int(number) for number in re.findall(r"^ ?(\d+)  ", docstring, re.MULTILINE)]
    assert lines == list(range(1, 12))
    code = source(script).split('"""', 2)[2]
    tagged = set()
    for match in re.finditer(r"(?:Alg\. 1, |# )lines? ([\d, -]+)", code):
        for low, high in re.findall(r"(\d+)(?:-(\d+))?", match[1]):
            tagged |= set(range(int(low), int(high or low) + 1))
    assert tagged == set(lines)


def test_every_equation_is_cited_in_the_code(script):
    code = source(script).split('"""', 2)[2]
    assert cited(code) == set(range(1, 15))


def cited(text):
    """The numbers in `Eq. (4)`, `Eqs. (3), (7)` and `Eqs. (4)-(6)`."""
    numbers = set()
    for tag in re.findall(r"Eqs?\. (\(\d+\)(?:(?:, |-)\(\d+\))*)", text):
        for low, high in re.findall(r"\((\d+)\)(?:-\((\d+)\))?", tag):
            numbers |= set(range(int(low), int(high or low) + 1))
    return numbers


def test_requirements_are_pinned():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [re.fullmatch(r"([\w-]+)==([\d.]+)(?:  # .*)?", line) for line in lines]
    versions = dict(pin.groups() for pin in pins)
    major, minor, *_ = versions["mujoco"].split(".")
    assert (int(major), int(minor)) < (3, 12)
