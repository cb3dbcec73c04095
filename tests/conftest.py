"""For all tests: the repository on the path, and both scripts, one after the other."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(params=["fmer_continuous", "fmer_kitchen"])
def fmer(request):
    """The module under test: what holds for one script holds for the other."""
    return importlib.import_module(request.param)
