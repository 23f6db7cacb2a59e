"""The space of latents: what a spec says, what it refuses, how long a tensor remembers it, and the fingerprint."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from latelier.blocks import LatentSpec, Part, decode, encode, fingerprint, mark, spec_of

SPEC = LatentSpec(source="family/dinac_ae", channels=128, stride=16, normalisation="0123456789ab")

specs = st.builds(
    LatentSpec,
    source=st.text(max_size=20),
    channels=st.integers(1, 512),
    stride=st.integers(1, 64),
    normalisation=st.text("0123456789abcdef", min_size=12, max_size=12) | st.just("none"),
)


def refusal(ours: LatentSpec, theirs: LatentSpec, *, where: str = "decode") -> str:
    with pytest.raises(ValueError) as error:
        ours.check(theirs, where=where)
    assert type(error.value) is ValueError
    return str(error.value)


def changed(**values: object) -> LatentSpec:
    return decode(encode(SPEC) | values, LatentSpec)


# --- the check --------------------------------------------------------------------------------------------------------


@given(spec=specs)
def test_a_space_takes_its_own_latents(spec: LatentSpec) -> None:
    spec.check(copy.deepcopy(spec), where="decode")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"source": "family/semdisdiffae"}, "source: 'family/semdisdiffae', not 'family/dinac_ae'"),
        ({"channels": 384}, "channels: 384, not 128"),
        ({"stride": 32}, "stride: 32, not 16"),
        ({"normalisation": "none"}, "normalisation: 'none', not '0123456789ab'"),
        ({"channels": 384, "stride": 32}, "channels: 384, not 128, stride: 32, not 16"),
    ],
)
def test_latents_of_another_space_are_refused_with_what_differs(values: dict[str, object], found: str) -> None:
    assert refusal(SPEC, changed(**values)) == (
        f"decode: these latents are of another space ({found}); use the model that encoded them"
    )


def test_the_refusal_says_where() -> None:
    text = refusal(SPEC, changed(stride=8), where="cache.safetensors")
    assert text.startswith("cache.safetensors: these latents are of another space (stride")


# --- on a tensor ------------------------------------------------------------------------------------------------------


@given(spec=specs)
def test_a_marked_tensor_is_the_same_tensor_and_knows_its_space(spec: LatentSpec) -> None:
    latents = torch.randn(1, 2, 3, 4)
    assert spec_of(latents) is None
    assert mark(latents, spec) is latents
    assert spec_of(latents) == spec
    assert mark(latents, SPEC) is latents
    assert spec_of(latents) == SPEC


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_files_of_latents_keep_the_space_and_load_without_running_code(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    latents = mark(torch.randn(1, 2, 3, 4).to(dtype), SPEC)
    torch.save({"latents": latents, "names": ["a"]}, tmp_path / "latents.pt")
    loaded = torch.load(tmp_path / "latents.pt", weights_only=True)["latents"]
    assert torch.equal(loaded, latents)
    assert spec_of(loaded) == SPEC


def test_copies_in_memory_keep_the_space() -> None:
    assert spec_of(copy.deepcopy(mark(torch.randn(1, 2, 3, 4), SPEC))) == SPEC


@pytest.mark.parametrize(
    "operation",
    [
        lambda z: 2 * z,
        lambda z: z + 0,
        lambda z: z.clone(),
        lambda z: z.detach(),
        lambda z: z.bfloat16(),
        lambda z: z[:1],
        lambda z: z.view(z.shape),
        lambda z: torch.cat([z, z]),
    ],
    ids=["times", "plus", "clone", "detach", "bfloat16", "slice", "view", "cat"],
)
def test_what_an_operation_makes_of_latents_names_no_space(operation: Callable[[Tensor], Tensor]) -> None:
    latents = mark(torch.randn(2, 2, 3, 4), SPEC)
    assert spec_of(operation(latents)) is None
    assert spec_of(latents) == SPEC


# --- the part ---------------------------------------------------------------------------------------------------------


@given(spec=specs)
def test_a_spec_survives_json(spec: LatentSpec) -> None:
    text = json.dumps(encode(spec))
    assert decode(json.loads(text), LatentSpec) == spec
    assert decode(json.loads(text), Part) == spec
    assert json.loads(text)["kind"] == "latent_spec/model"


def test_a_spec_may_have_no_normalisation() -> None:
    assert LatentSpec(source="family/x", channels=1, stride=1).normalisation == "none"


# --- the fingerprint --------------------------------------------------------------------------------------------------


def test_no_statistics_have_no_fingerprint() -> None:
    assert fingerprint({}) == "none"


def test_the_fingerprint_is_the_beginning_of_a_hash_of_names_and_values_and_never_changes() -> None:
    statistics = {"var": torch.tensor([1.0, 2.0]), "mean": torch.tensor([0.5, -0.25])}
    mean, var = (statistics[name].numpy().tobytes() for name in ("mean", "var"))
    expected = hashlib.sha256(b"mean" + mean + b"var" + var).hexdigest()[:12]
    assert fingerprint(statistics) == expected == "07cfa6d50ad8"


@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5))
def test_the_fingerprint_sees_values_not_how_they_are_stored(values: list[float]) -> None:
    mean = torch.tensor(values, dtype=torch.float32)
    stored = [mean.double(), mean.repeat_interleave(2)[::2], mean.clone().requires_grad_(), torch.nn.Parameter(mean)]
    assert {fingerprint({"mean": value}) for value in stored} == {fingerprint({"mean": mean})}
    halves = mean.bfloat16()
    assert fingerprint({"mean": halves}) == fingerprint({"mean": halves.float()})


def test_the_order_of_statistics_does_not_matter() -> None:
    mean, var = torch.randn(3), torch.rand(3)
    assert fingerprint({"mean": mean, "var": var}) == fingerprint({"var": var, "mean": mean})


def test_names_and_every_bit_of_float32_matter() -> None:
    mean, var = torch.ones(3), torch.zeros(3)
    nearly = torch.nextafter(mean, var)
    statistics = [
        {"mean": mean, "var": var},
        {"mean": var, "var": mean},
        {"mean": mean, "variance": var},
        {"mean": nearly, "var": var},
        {"mean": mean},
    ]
    assert len({fingerprint(each) for each in statistics}) == len(statistics)
    assert fingerprint({"mean": mean.double() + 1e-12}) == fingerprint({"mean": mean})


def test_the_fingerprint_does_not_depend_on_the_device() -> None:
    mean = torch.randn(4)
    devices = ["cuda"] if torch.cuda.is_available() else ["cpu"]
    assert {fingerprint({"mean": mean.to(device)}) for device in devices} == {fingerprint({"mean": mean})}
