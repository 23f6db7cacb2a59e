"""What every test stands on: the package of this checkout, one thread, fixed seeds, and a registry left as it was."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jaxtyping
import numpy as np
import PIL.Image
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# The tensors of tests are small, and processes that tests start must not fight over the cores. On two busy cores the
# tests of blocks and conformance took 37 s on one thread and 192 s on two.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

hypothesis.settings.register_profile("house", deadline=None, derandomize=True, print_blob=True, max_examples=30)
hypothesis.settings.register_profile("nightly", deadline=None, print_blob=True, max_examples=500)
hypothesis.settings.load_profile("house")  # `pytest --hypothesis-profile=nightly` looks further


class TorchRandom:
    """Torch's global generator as hypothesis seeds and restores it around examples, so that failures repeat."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


torch_random = TorchRandom()  # hypothesis keeps only a weak reference
hypothesis.register_random(torch_random)


def pytest_sessionstart() -> None:
    spec = importlib.util.find_spec("latelier")
    found = Path(spec.origin).parent if spec and spec.origin else None
    if found != ROOT:
        pytest.exit(f"tests: latelier comes from {found}, not from {ROOT}; run `make clean test`", returncode=4)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _forget_parts_that_a_test_declares() -> Iterator[None]:
    from latelier.blocks import discover, registry

    discover()  # what a test is the first to import must stay declared
    before = dict(registry._declared)
    yield
    registry._declared.clear()
    registry._declared.update(before)


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the shape checks of tests, which would refuse some mistakes before the library sees them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight small smooth pictures, for runs that train on something; leave it as it is."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(8):
        small = PIL.Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        small.resize((40, 32), PIL.Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder
