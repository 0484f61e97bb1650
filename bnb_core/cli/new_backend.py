"""`bnb-core new-backend`: the beginning of a backend, which imports, registers two operators and conforms.

The texts stand in `scaffold/`, as the files that they become, with `$name`s of `string.Template`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from .console import CommandError, console

__all__ = ["FLAVOURS", "add_arguments", "run"]

TEMPLATES = Path(__file__).parent / "scaffold"


@dataclass(frozen=True)
class Flavour:
    """What the kernels are written in. Files are paths → templates.

    summary: for the help. kernels_are: a line of the README. table: the template of the backend's table. files: beside
    it. in_tree: more beside it, in a clone. package: more in a package of its own. build, dependencies: requirements of
    the package.
    """

    summary: str
    kernels_are: str
    table: str
    files: Mapping[str, str]
    in_tree: Mapping[str, str] = field(default_factory=dict)
    package: Mapping[str, str] = field(default_factory=dict)
    build: tuple[str, ...] = ("setuptools>=77",)
    dependencies: tuple[str, ...] = ("bnb-core",)


FLAVOURS = {
    "python": Flavour(
        summary="kernels in torch's operations (the default)",
        kernels_are="`$package/kernels.py` are the kernels.",
        table="python/table",
        files={"kernels.py": "python/kernels.py"},
    ),
    "native": Flavour(
        summary="kernels in C++ over pointers and sizes, built without torch",
        kernels_are="`$package/csrc` are the kernels, `$package/kernels.py` calls them; `pip install` builds them.",
        table="native/table",
        files={
            "kernels.py": "native/kernels.py",
            "_native.pyi": "native/stub",
            **{f"csrc/{file}": f"native/csrc/{file}" for file in ("kernels.h", "kernels.cpp", "bindings.cpp")},
        },
        in_tree={"CMakeLists.txt": "native/cmake"},
        package={"setup.py": "native/setup.py"},
        build=("setuptools>=77", "pybind11>=2.13"),
    ),
    "triton": Flavour(
        summary="kernels in Triton",
        kernels_are="`$package/kernels.py` are the kernels. With `TRITON_INTERPRET=1` they run on a CPU.",
        table="triton/table",
        files={"kernels.py": "triton/kernels.py"},
        dependencies=("bnb-core", "triton>=3"),
    ),
}

# The files of every package of its own.
PACKAGE = {
    "pyproject.toml": "package/pyproject.toml",
    "README.md": "package/README.md",
    ".github/workflows/test.yml": "package/test.yml",
    "tests/test_conformance.py": "package/test_conformance.py",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name, device, place, flavour."""
    parser.add_argument("name", help="of the backend, as `acme`")
    parser.add_argument("--device", help="device type that torch knows (the name)")
    parser.add_argument("--out-of-tree", type=Path, metavar="DIR", help="a package of its own in DIR, with its tests")
    flavours = parser.add_mutually_exclusive_group()
    for name, flavour in FLAVOURS.items():
        flavours.add_argument(
            f"--{name}", dest="flavour", action="store_const", const=name, default="python", help=flavour.summary
        )


def run(args: argparse.Namespace) -> int:
    """Writes the files; status 0."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", args.name):
        raise CommandError(f"the name is {args.name!r}, expected small letters, digits and underscores")
    if args.device is not None and not re.fullmatch(r"[a-z][a-z0-9_]*", args.device):
        raise CommandError(f"the device is {args.device!r}, expected a type as `cuda`, without an index")
    flavour = FLAVOURS[args.flavour]
    words = _words(args.name, args.device or args.name, args.flavour, args.out_of_tree is not None)
    if args.out_of_tree is None:
        files = _in_tree(args.name, flavour)
    else:
        files = _package(args.out_of_tree, words["package"], flavour)
    texts = {path: _filled(_template(name), words) for path, name in files.items()}
    present = [path for path in texts if path.exists()]
    if present:
        raise CommandError(f"{present[0]} is there already")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        console().print(f"wrote {path}", markup=False)
    return 0


def _in_tree(name: str, flavour: Flavour) -> dict[Path, str]:
    backends = Path("backends")
    if not (backends / "reference").is_dir():
        raise CommandError("there is no backends/reference here: call it in a clone of bnb_core, or with --out-of-tree")
    files = {"__init__.py": flavour.table, **flavour.files, **flavour.in_tree}
    return {backends / name / file: template for file, template in files.items()}


def _package(folder: Path, package: str, flavour: Flavour) -> dict[Path, str]:
    inside = {"__init__.py": "package/__init__.py", "backend.py": flavour.table, **flavour.files}
    files = {**PACKAGE, **flavour.package, **{f"{package}/{file}": template for file, template in inside.items()}}
    return {folder / file: template for file, template in files.items()}


def _template(name: str) -> str:
    return (TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")


def _filled(text: str, words: Mapping[str, str]) -> str:
    return Template(text).substitute(words)


def _words(name: str, device: str, flavour: str, out_of_tree: bool) -> dict[str, str]:
    """What the texts call things."""
    found, package = FLAVOURS[flavour], f"bnb_core_{name}"
    # A machine without a card tries the CPU, and Triton in its interpreter.
    tried = "cpu" if flavour == "triton" else device
    return {
        "name": name,
        "device": device,
        "package": package,
        "project": package.replace("_", "-"),
        "module": f"{package}.kernels" if out_of_tree else ".kernels",
        "kernels_are": _filled(found.kernels_are, {"package": package}),
        "build": _quoted(found.build),
        "dependencies": _quoted(found.dependencies),
        "tried": tried,
        "runner": "ubuntu-latest" if tried == "cpu" else f"[self-hosted, {device}]",
        "interpreted": "TRITON_INTERPRET=1 " if flavour == "triton" else "",
    }


def _quoted(requirements: tuple[str, ...]) -> str:
    return ", ".join(f'"{requirement}"' for requirement in requirements)
