"""The shape of the repository: what would silently break things that a linter doesn't look at."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / name for name in ("operator", "trainer_image", "cli", "local")]
MODULES = sorted(path for source in SOURCES for path in source.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
DOCKERFILES = [ROOT / "operator" / "Dockerfile", ROOT / "trainer_image" / "Dockerfile"]


def test_nothing_shadows_the_standard_librarys_operator() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not [path for path in (ROOT / "tests").rglob("operator*") if path.stem == "operator"]


def test_no_module_is_longer_than_500_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES + TESTS}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_no_function_of_the_trainer_is_longer_than_60_lines() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in (ROOT / "trainer_image").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in TESTS if path.name.startswith("test_")]
    assert sorted(set(names)) == sorted(names)


def test_the_configuration_imports_nothing_heavy() -> None:
    script = "import sys, json, trainingjob_trainer.config; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in json.loads(result.stdout)}
    assert not loaded & {"torch", "ray", "boto3", "numpy", "transformers", "kubernetes", "kopf"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
class TestDockerfile:
    """There is no container engine in the tests: what a build would trip over is looked at here."""

    def test_copies_only_what_exists_and_is_sent(self, dockerfile: Path) -> None:
        sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
        sources = [
            source
            for arguments in re.findall(r"^COPY (?!--from)(.+)$", dockerfile.read_text(), re.MULTILINE)
            for source in [word for word in arguments.split() if not word.startswith("--")][:-1]
        ]
        assert sources
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(Path(source) == Path(path) or Path(path) in Path(source).parents for path in sent), source

    def test_installs_an_extra_and_starts_a_module_that_exist(self, dockerfile: Path) -> None:
        text = dockerfile.read_text()
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"--extra[ =](\w+)", text)) <= set(extras)
        assert len(set(re.findall(r"--extra[ =](\w+)", text))) == 1
        (command,) = re.findall(r"^(?:ENTRYPOINT|CMD) (\[.+\])$", text, re.MULTILINE)
        module = json.loads(command)[json.loads(command).index("-m") + 1]
        path = dockerfile.parent / Path(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()

    def test_ends_as_a_numeric_user_that_is_not_root(self, dockerfile: Path) -> None:
        assert re.findall(r"^USER (.+)$", dockerfile.read_text(), re.MULTILINE)[-1] == "65532:65532"


def test_no_registry_host_or_machine_path_is_in_what_users_read() -> None:
    files = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").glob("*.md")]
    assert [str(path) for path in files if "/work/" in path.read_text()] == []
