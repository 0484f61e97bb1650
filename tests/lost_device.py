"""A kernel that went astray ends the work of its whole process: what runs after it on that GPU fails too.

So after each test the device is asked. One that takes no more work ends the process: with xdist a new one goes on, and
the test that it was counts as failed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator

import pytest
import torch


def lost() -> str | None:
    """What the GPU says that takes no more work from this process; None where it does."""
    if not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    result = yield
    if (sentence := lost()) is not None:
        sentence = f"after {item.nodeid} the GPU takes no more work from this process: {sentence}"
        if not hasattr(item.config, "workerinput"):
            pytest.exit(sentence, returncode=1)
        capture = item.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\n{sentence}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(1)
    return result
