"""The scaffold of a backend: what it writes imports, is found, and conforms."""

from __future__ import annotations

from pathlib import Path

import pytest
from installed import install, python

from bnb_core import cli

pytestmark = pytest.mark.usefixtures("nothing_forced")


def test_a_package_is_found_and_passes_its_own_tests(tmp_path: Path) -> None:
    folder = tmp_path / "acme"
    assert cli.main(["new-backend", "acme", "--device", "cpu", "--out-of-tree", str(folder)]) == 0
    assert 'acme = "bnb_core_acme.backend"' in (folder / "pyproject.toml").read_text()
    path = (install(tmp_path / "site", "acme", "bnb_core_acme.backend"), folder)
    done = python("-m", "pytest", "-q", "tests", path=path, cwd=folder)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    listed = python("-m", "bnb_core", path=path, cwd=folder).stdout
    assert ["acme", "loaded", "2"] in [line.split()[:3] for line in listed.splitlines()]


def test_a_folder_in_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backends" / "reference").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new-backend", "acme"]) == 0
    table = (tmp_path / "backends" / "acme" / "__init__.py").read_text()
    assert 'device="acme"' in table and 'fn=".kernels:dequantize_blockwise"' in table
    compile(table, "table", "exec")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["Acme"], "the name is 'Acme', expected small letters, digits and underscores"),
        (["acme"], "there is no backends/reference here"),
        (["acme", "--device", "cuda:0"], "the device is 'cuda:0', expected a type as `cuda`, without an index"),
    ],
)
def test_wrong_use_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new-backend", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["new-backend", "acme", "--out-of-tree", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert cli.main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
