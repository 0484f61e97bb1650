"""A compiler launcher for builds of the same sources in several folders: what was compiled before is copied.

python tests/object_cache.py FOLDER COMPILER ARGUMENT...
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path


def main(folder: Path, command: list[str]) -> int:
    """Runs a command of GCC or Clang, unless folder has what it made of the same preprocessed text and options."""
    if "-c" not in command or "-o" not in command:
        return subprocess.call(command)
    place = command.index("-o")
    out = Path(command[place + 1])
    # The list of headers, which -MF asks for, is written here too.
    preprocess = [*command[:place], *command[place + 2 :], "-E", "-P"]
    preprocess.remove("-c")
    text = subprocess.run(preprocess, stdout=subprocess.PIPE, check=False)
    if text.returncode:
        return text.returncode
    options = [command[0], *(argument for argument in command if argument.startswith(("-f", "-g", "-m", "-O", "-s")))]
    kept = folder / hashlib.sha256("\0".join(options).encode() + text.stdout).hexdigest()
    if not kept.exists():
        if status := subprocess.call(command):
            return status
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{kept.name}.{os.getpid()}"
        shutil.copyfile(out, unfinished)
        unfinished.replace(kept)
    else:
        shutil.copyfile(kept, out)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
