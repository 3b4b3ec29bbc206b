"""What the README names exists."""

import ast
import re
import tomllib

import pytest
from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"```\w*\n(.*?)```", README, re.DOTALL) + re.findall(r"`([^`\n]+)`", README))
FILES = sorted(
    set(re.findall(r"(?<![\w/>])(?:pipeline|model|train|tests|benchmarks|data_manifests|\.ci)/[\w./*-]*\w", CODE))
)
FLAGS = sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", CODE)))
TARGETS = sorted(set(re.findall(r"^ *make ([a-z-]+)", CODE, re.MULTILINE)))


@pytest.mark.parametrize("path", FILES)
def test_every_file_named_exists(path):
    assert list(REPOSITORY.glob(path)), path


def command_flags():
    """The flags of every command: the fields of the dataclasses that tyro makes flags of, torchrun's, Slurm's and Ray's."""
    flags = {
        "--nproc-per-node",
        "--nnodes",
        "--rdzv-backend",
        "--rdzv-endpoint",
        "--nodes",
        "--ntasks-per-node",
        "--signal",
        "--signals-to-handle",
        "--requeue",
        "--help",
        "--head",
        "--address",
        "--import",
    }
    for path in [*(REPOSITORY / "pipeline").glob("*.py"), *(REPOSITORY / "train").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and re.search("Arguments|Flags|Config", node.name):
                fields = (line.target.id for line in node.body if isinstance(line, ast.AnnAssign))
                flags |= {f"--{field.replace('_', '-')}" for field in fields}
    return flags


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_named_is_known(flag):
    assert flag in command_flags()


@pytest.mark.parametrize("target", TARGETS)
def test_every_make_target_named_exists(target):
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


def test_the_file_map_is_whole():
    for folder in ("pipeline", "model", "train"):
        for path in (REPOSITORY / folder).glob("*.py"):
            assert path.name == "__init__.py" or path.name in README, f"{folder}/{path.name} is not in the README"


def test_every_dependency_has_a_reason():
    text = (REPOSITORY / "pyproject.toml").read_text()
    for dependency in tomllib.loads(text)["project"]["dependencies"]:
        (line,) = [line for line in text.splitlines() if f'"{dependency}"' in line]
        assert "#" in line.split(dependency)[1], dependency


def test_it_names_both_commands():
    assert {"demo", "test"} <= set(TARGETS)
    assert "pipeline/build.py" in FILES
    assert "train/main.py" in FILES
