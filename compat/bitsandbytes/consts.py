"""Names that scripts read."""

from __future__ import annotations

import platform
from pathlib import Path

PACKAGE_DIR = Path(__file__).parent
DYNAMIC_LIBRARY_SUFFIX = {"Darwin": ".dylib", "Windows": ".dll"}.get(platform.system(), ".so")
