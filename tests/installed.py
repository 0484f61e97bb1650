"""Packages with a backend as they are once installed, and Python with them on its path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["install", "python"]


def install(site: Path, name: str, module: str) -> Path:
    """What installing a package with the entry point `name = module` leaves beside its modules; returns `site`."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[bnb_core.backends]\n{name} = {module}\n")
    return site


def python(
    *arguments: object, path: tuple[Path, ...], cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python with the folders of `path` before the others."""
    folders = os.pathsep.join(filter(None, [*map(str, path), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": folders} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
