"""Who may import whom, read from the sources and from running processes."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGES = ("pipeline", "model", "train")
FILES = [path for package in PACKAGES for path in sorted((REPOSITORY / package).glob("*.py"))]
ENTRY_POINTS = {"pipeline.build", "train.main"}
STANDARD = set(sys.stdlib_module_names)


def imports(path):
    """Every module that a file imports, anywhere in it; `from a import b` counts as a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def name(path):
    return str(path.relative_to(REPOSITORY)).removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_one_way(path):
    found = imports(path)
    top = {module.split(".")[0] for module in found}
    assert not found & ENTRY_POINTS, "entry points are imported by nobody"
    if path.parent.name == "pipeline":
        assert not top & {"torch", "model", "train"}
    if path.parent.name == "model":
        assert top - STANDARD <= {"torch", "model", "flash_attn"}  # the last where it is installed
    if path.parent.name == "train":
        assert {module for module in found if module.startswith("pipeline.")} <= {
            module
            for allowed in ("pipeline.dataset", "pipeline.storage", "pipeline.tokenizer")
            for module in found
            if module == allowed or module.startswith(f"{allowed}.")
        }


def test_the_import_graph_has_no_cycle():
    graph = {}
    names = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in FILES}
    for path in FILES:
        module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        graph[module] = imports(path) & names - {module}
    while graph:
        leaves = {module for module, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"a cycle among {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in leaves}


def third_party(code):
    """The top-level modules outside the standard library and this project that `code` loads."""
    script = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); before = set(sys.modules); {code}\n"
    script += "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {module for module in result.stdout.split() if module not in STANDARD and module not in PACKAGES}


def needed_by(*libraries):
    return third_party("; ".join(f"import {library}" for library in libraries))


def test_reading_a_dataset_needs_numpy_alone():
    assert third_party("import pipeline.dataset, pipeline.tokenizer") <= needed_by("numpy") | {"__mp_main__"}


def test_training_needs_numpy_torch_and_tyro_alone():
    torch = ("torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp")  # what these load is torch's
    assert third_party("import train.main") - needed_by("numpy", "tyro", *torch) == set()


def test_no_file_is_longer_than_can_be_read_in_one_sitting():
    # A compiled kernel and all that it calls must stand in one file: numba's cache does not see changes elsewhere.
    has_kernels = re.compile(r"^@(njit|compiled)", re.MULTILINE)
    most_lines = {path: 350 if has_kernels.search(path.read_text()) else 300 for path in FILES}
    num_lines = {path: path.read_text().count("\n") for path in FILES}
    assert {name(path): num_lines[path] for path in FILES if num_lines[path] > most_lines[path]} == {}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_commands_run_as_scripts_and_as_modules_from_anywhere(tmp_path):
    for command in ([str(REPOSITORY / "pipeline/build.py")], ["-m", "pipeline.build"]):
        folder = tmp_path if len(command) == 1 else REPOSITORY
        result = subprocess.run([sys.executable, *command, "--help"], cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "--mix" in result.stdout
    assert not (Path(tmp_path) / "data").exists()


def test_every_command_of_the_pipeline_is_installed_by_its_name():
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    has_main = re.compile(r"^def main\(", re.MULTILINE)
    commands = [path.stem for path in (REPOSITORY / "pipeline").glob("*.py") if has_main.search(path.read_text())]
    assert scripts == {f"tokenmill-{command}": f"pipeline.{command}:main" for command in commands}
