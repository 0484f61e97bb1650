"""What is built and installed: wheel and sdist contents, import names, building with and without native kernels."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCES = shutil.ignore_patterns(
    ".*_cache", ".git", ".venv*", "__pycache__", "build", "dist", "*.egg-info", "*.so", "*.pyd", "demo-output"
)
QUICK = "-DCMAKE_CXX_FLAGS_RELEASE=-O0 -DBNB_CORE_LEVELS=scalar"
LAUNCHER = Path(__file__).with_name("object_cache.py")
TOOLS = ("setuptools", "cmake", "ninja", "pybind11")

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, TOOLS)), reason=f"building without isolation needs {', '.join(TOOLS)}"
)


@pytest.fixture(scope="session", autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Builds that are quick: without optimization, for one level, each source compiled once for all of them."""
    objects = tmp_path_factory.mktemp("objects")
    launcher = f"-DCMAKE_CXX_COMPILER_LAUNCHER={sys.executable};-IS;{LAUNCHER};{objects}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMAKE_ARGS", QUICK if sys.platform == "win32" else f"{QUICK} {shlex.quote(launcher)}")
        yield


def run(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs to success; on failure the test shows all that was printed."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **env},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def pip(*arguments: object, cwd: Path, **env: str) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd, **env)


def build_wheel(source: Path, out: Path, **env: str) -> Path:
    pip("wheel", "--no-build-isolation", "--no-deps", "--no-cache-dir", "-w", out, source, cwd=out.parent, **env)
    (wheel,) = out.glob("*.whl")
    return wheel


def contents(archive: Path) -> list[str]:
    """The files of a wheel or sdist; of an sdist without the folder that holds them all."""
    if archive.suffix == ".whl":
        return [name for name in zipfile.ZipFile(archive).namelist() if not name.endswith("/")]
    with tarfile.open(archive) as tar:
        return [member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()]


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with the development links in place."""
    tree = tmp_path_factory.mktemp("packaging") / "tree"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=NOT_SOURCES)
    run(sys.executable, "ci/dev_links.py", cwd=tree)
    assert (tree / "bnb_core/backends/cpu").is_dir()
    return tree


@pytest.fixture(scope="session")
def wheel(tree: Path) -> Path:
    return build_wheel(tree, tree.parent / "wheel")


@pytest.fixture(scope="session")
def sdist(tree: Path) -> Path:
    out = tree.parent / "sdist"
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    run(sys.executable, "-c", code, cwd=tree)
    (sdist,) = out.glob("*.tar.gz")
    return sdist


@pytest.fixture(scope="session")
def installed(wheel: Path) -> Path:
    target = wheel.parents[1] / "installed"
    pip("install", "--no-deps", "--target", target, wheel, cwd=target.parent)
    return target


def modules(tree: Path) -> set[str]:
    """What a wheel must hold of the sources, by the path it has there."""
    roots = {"bnb_core": "bnb_core", "ops_registry": "bnb_core/ops_registry", "backends": "bnb_core/backends"}
    kept = {".py", ".pyi", ".typed", ".txt", ".json"}
    return {
        f"{installed}/{path.relative_to(tree / root).as_posix()}"
        for root, installed in roots.items()
        for folder, _, files in os.walk(tree / root)  # does not follow the development links
        for path in (Path(folder, file) for file in files)
        if path.suffix in kept and path.name != "CMakeLists.txt"
    }


def test_wheel_holds_every_module_once_and_nothing_else(wheel: Path, tree: Path) -> None:
    found = contents(wheel)
    assert [name for name, times in Counter(found).items() if times > 1] == []
    packaged = {name for name in found if ".dist-info/" not in name}
    native = {name for name in packaged if "/_native." in name and not name.endswith(".pyi")}
    assert packaged - native == modules(tree)
    assert [name.rpartition("/")[0] for name in native] == ["bnb_core/backends/cpu"]


def test_sdist_holds_the_sources_once_and_no_tests(sdist: Path, tree: Path) -> None:
    found = contents(sdist)
    assert [name for name, times in Counter(found).items() if times > 1] == []
    assert {name.partition("/")[0] for name in found} == {
        *("bnb_core", "ops_registry", "backends", "native", "bnb_core.egg-info"),
        *("CMakeLists.txt", "MANIFEST.in", "pyproject.toml", "setup.py", "setup.cfg"),
        *("CHANGELOG.md", "LICENSE", "README.md", "PKG-INFO"),
    }
    assert not [name for name in found if name.startswith(("bnb_core/backends/", "bnb_core/ops_registry/"))]
    native = {path.relative_to(tree).as_posix() for path in tree.glob("**/*.[ch]*") if path.is_file()}
    native = {name for name in native if name.startswith(("backends/", "native/"))}
    assert {name.rpartition(".")[2] for name in native} == {"h", "cpp", "cu", "cuh"}
    assert native <= set(found)


def test_a_wheel_from_the_sdist_is_the_same(sdist: Path, wheel: Path) -> None:
    assert sorted(contents(build_wheel(sdist, sdist.parents[1] / "wheel_of_sdist"))) == sorted(contents(wheel))


@pytest.mark.usefixtures("nothing_forced")
def test_without_native_kernels_the_wheel_is_pure_and_the_cpu_backend_says_why(
    tree: Path, wheel: Path, tmp_path: Path
) -> None:
    # A compiler that does not work shows that none is called.
    pure = build_wheel(tree, tmp_path / "wheel", BNB_CORE_NO_NATIVE="1", CXX="/nonexistent")
    assert pure.name.endswith("-py3-none-any.whl")
    assert set(contents(pure)) == {name for name in contents(wheel) if not name.endswith((".so", ".pyd"))}
    pip("install", "--no-deps", "--target", tmp_path / "pure", pure, cwd=tmp_path)
    code = (
        "import bnb_core, torch; from bnb_core.ops_registry import backends, kernel_counts;"
        "print(*[(r.name, r.status, r.reason) for r in backends() if r.name == 'cpu']);"
        "code = torch.linspace(-1, 1, 256); one = torch.ones(1);"
        "torch.ops.bnb_core.dequantize_blockwise(one.byte(), one, code, 64, torch.float32)"
    )
    said = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "pure")).stdout
    assert "'unavailable'" in said
    assert "was not built" in said


def test_without_a_compiler_the_build_names_the_way_out(tree: Path, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    shutil.copytree(tree, source, symlinks=True, ignore=NOT_SOURCES)
    with pytest.raises(AssertionError, match=r"need a C\+\+17 compiler. Set BNB_CORE_NO_NATIVE=1"):
        build_wheel(source, tmp_path / "wheel", CXX="/nonexistent/c++")


def test_a_level_that_does_not_exist_is_refused(tree: Path, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    shutil.copytree(tree, source, symlinks=True, ignore=NOT_SOURCES)
    with pytest.raises(AssertionError, match=r"BNB_CORE_LEVELS has sse9; on \S+ there are \S*scalar"):
        build_wheel(source, tmp_path / "wheel", CMAKE_ARGS="-DBNB_CORE_LEVELS=scalar,sse9")


def test_only_bnb_core_becomes_importable(installed: Path) -> None:
    assert sorted(path.name for path in installed.iterdir() if path.suffix != ".dist-info") == ["bin", "bnb_core"]
    code = (
        "import bnb_core, importlib.util as util, bnb_core.backends.cpu._native as native;"
        "print(bnb_core.__file__); print(native.__file__); print(list(native.LEVELS));"
        "print(util.find_spec('backends'), util.find_spec('ops_registry'))"
    )
    package, native, levels, specs = run(
        sys.executable, "-c", code, cwd=installed.parent, PYTHONPATH=str(installed)
    ).stdout.splitlines()
    assert Path(package).parent == installed / "bnb_core"
    assert Path(native).parent == installed / "bnb_core/backends/cpu"
    assert levels == "['scalar']", "the BNB_CORE_LEVELS of the build"
    assert specs == "None None"


def test_the_command_is_installed(installed: Path) -> None:
    said = run(installed / "bin/bnb-core", "--help", cwd=installed.parent, PYTHONPATH=str(installed)).stdout
    assert "quantize" in said


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without links"])
def test_editable_install(tree: Path, tmp_path: Path, links: bool) -> None:
    source = tmp_path / "tree"
    shutil.copytree(tree, source, symlinks=True, ignore=NOT_SOURCES)
    if not links:
        for link in ("backends", "ops_registry"):
            (source / "bnb_core" / link).unlink()
    site = tmp_path / "site"
    pip("install", "--no-build-isolation", "--no-deps", "--target", site, "--editable", source, cwd=tmp_path)
    # An editable install is a .pth file, which only a site folder runs; -S keeps that of the tested install away.
    torch_site = Path(importlib.util.find_spec("torch").origin).parents[1]
    code = (
        f"import site, sys; site.addsitedir({str(site)!r}); sys.path.append({str(torch_site)!r});"
        "import importlib.util as util, bnb_core;"
        "from bnb_core.ops_registry import op; from bnb_core.backends.cpu import _native as native;"
        "print(bnb_core.__file__, op.__file__, native.__file__, sep='\\n');"
        "print(util.find_spec('backends'), util.find_spec('ops_registry'))"
    )
    *files, specs = run(sys.executable, "-S", "-c", code, cwd=tmp_path).stdout.splitlines()
    assert [str(Path(file).resolve().parent.relative_to(source)) for file in files] == [
        *("bnb_core", "ops_registry", "backends/cpu")
    ]
    assert specs == "None None"


def test_the_drop_in_is_a_distribution_of_its_own(tmp_path: Path) -> None:
    source = tmp_path / "compat"
    shutil.copytree(ROOT / "compat", source, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__", "build"))
    built = build_wheel(source, tmp_path / "wheel")
    assert built.name == "bitsandbytes-0.50.2+bnb.core-py3-none-any.whl"
    packaged = {name for name in contents(built) if ".dist-info/" not in name}
    modules = (source / "bitsandbytes").rglob("*.py")
    assert packaged == {path.relative_to(source).as_posix() for path in modules}


def test_what_the_tests_build_with_is_what_a_build_requires() -> None:
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["build-system"]["requires"]) <= set(project["project"]["optional-dependencies"]["test"])


def test_one_version(wheel: Path, sdist: Path) -> None:
    version: dict[str, str] = {}
    exec((ROOT / "bnb_core/_version.py").read_text(), version)
    assert wheel.name.split("-")[1] == version["__version__"]
    assert sdist.name == f"bnb_core-{version['__version__']}.tar.gz"
