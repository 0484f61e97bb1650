"""A compiler launcher for builds of the same sources in several folders: what was compiled before is copied.

python tests/object_cache.py FOLDER COMPILER ARGUMENT... -o OBJECT -c SOURCE
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path


def main(folder: Path, command: list[str]) -> int:
    """Runs a command of CMake, unless folder has what the same one made of the same sources.

    What is not in `backends/` and `native/` (the headers of Python and pybind11) is that of the whole test session.
    """
    if "-c" not in command or "-o" not in command:
        return subprocess.call(command)
    out, tree = command[command.index("-o") + 1], command[-1].rpartition("/backends/")[0]
    key = hashlib.sha256(" ".join(command).replace(tree, "").encode())
    for source in sorted([*Path(tree, "backends").glob("*/csrc/**/*.*"), *Path(tree, "native").glob("*.h")]):
        key.update(source.read_bytes())
    kept = folder / key.hexdigest()
    if kept.exists():
        shutil.copyfile(kept, out)
        return 0
    status = subprocess.call(command)
    if status == 0:
        unfinished = folder / f"{kept.name}.{os.getpid()}"
        shutil.copyfile(out, unfinished)
        unfinished.replace(kept)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
