"""Links bnb_core/ops_registry and bnb_core/backends to their folders, so that mypy and editors resolve those names.

An install does not need them, setup.py maps the folders; but an editable install made while they are there relies on
them. Git ignores them.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

for name in ("ops_registry", "backends"):
    link = ROOT / "bnb_core" / name
    if not link.is_symlink():
        link.symlink_to(Path("..", name), target_is_directory=True)
