"""float32 islands on small modules: what stays float32 when a model is cast, and to the last bit."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from latelier.blocks import Float32Buffers, Float32Islands


class Table(Float32Buffers):
    """A persistent table, one that is not saved, a count, and a weight."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 7, dtype=dtype) ** 2)
        self.register_buffer("scratch", torch.rand(3, dtype=dtype), persistent=False)
        self.register_buffer("count", torch.tensor(300))
        self.register_buffer("nothing", None)
        self.proj = nn.Linear(2, 3)


class Model(Float32Islands):
    """A norm and a scale are islands, a linear map is not; one table of its own, one inside."""

    islands = ("*norm.*", "scale")

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(3) + 0.1)
        self.proj = nn.Linear(3, 3)
        self.inner_norm = nn.LayerNorm(3)
        self.rope = Table()
        self.register_buffer("mean", torch.rand(3))
        with torch.no_grad():
            self.inner_norm.weight.uniform_()
        self.find_ordinary()

    def forward(self, x: Tensor) -> Tensor:
        with self.autocast():
            return self.proj(self.inner_norm(x) * self.scale)


ISLANDS = {"scale", "inner_norm.weight", "inner_norm.bias"}
HALVES = [torch.bfloat16, torch.float16]
CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to(bfloat16)": lambda m: m.to(torch.bfloat16),
    "to(cpu, float16)": lambda m: m.to("cpu", torch.float16),
    "bfloat16()": lambda m: m.bfloat16(),
    "half()": lambda m: m.half(),
    "half, then bfloat16": lambda m: m.half().bfloat16(),
    "inside another model": lambda m: nn.Sequential(nn.Sequential(m)).bfloat16(),
}
every_cast = pytest.mark.parametrize("cast", CASTS.values(), ids=list(CASTS))


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def assert_identical(after: Tensor, before: Tensor) -> None:
    assert after.dtype == before.dtype
    assert torch.equal(after, before)


# --- buffers ----------------------------------------------------------------------------------------------------------


@every_cast
def test_own_buffers_keep_every_bit_of_float32(cast: Callable[[nn.Module], nn.Module]) -> None:
    module = Table()
    before = values(module)
    cast(module)
    after = values(module)
    for name in ("table", "scratch", "count"):
        assert_identical(after[name], before[name])
    assert after["proj.weight"].dtype in HALVES
    assert module.nothing is None


def test_float64_buffers_stay_float64() -> None:
    module = Table(torch.float64)
    before = values(module)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        module.to(dtype)
        assert_identical(module.get_buffer("table"), before["table"])


def test_a_wider_model_does_not_widen_the_buffers() -> None:
    module = Table()
    before = values(module)
    assert_identical(module.double().get_buffer("table"), before["table"])
    assert module.proj.weight.dtype == torch.float64


def test_buffers_move_between_devices_in_float32_while_the_weights_are_cast() -> None:
    module = Table().to("meta", torch.bfloat16)
    for name in ("table", "scratch"):
        buffer = module.get_buffer(name)
        assert (buffer.device.type, buffer.dtype) == ("meta", torch.float32)
    assert module.proj.weight.dtype == torch.bfloat16
    with torch.device("meta"):
        born = Table()
    assert born.half().get_buffer("table").dtype == torch.float32
    empty = born.to_empty(device="cpu")
    assert (empty.get_buffer("table").device.type, empty.get_buffer("table").dtype) == ("cpu", torch.float32)


# --- parameters -------------------------------------------------------------------------------------------------------


@every_cast
def test_islands_keep_every_bit_of_float32_and_the_rest_is_cast(cast: Callable[[nn.Module], nn.Module]) -> None:
    model = Model()
    before = values(model)
    cast(model)
    for name, after in values(model).items():
        if name in ISLANDS or not before[name].is_floating_point() or name in ("mean", "rope.table", "rope.scratch"):
            assert_identical(after, before[name])
        else:
            assert after.dtype in HALVES, name


def test_names_say_which_parameters_are_islands() -> None:
    model = Model()
    assert {name for name, _ in model.named_parameters() if model.is_island(name)} == ISLANDS
    assert not Float32Islands().is_island("anything")


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_islands_come_back_unharmed_and_the_rest_rounded(half: torch.dtype) -> None:
    model = Model()
    before = values(model)
    model.to(half).to(torch.float32)
    for name, after in values(model).items():
        ordinary = name in ("proj.weight", "proj.bias", "rope.proj.weight", "rope.proj.bias")
        assert_identical(after, before[name].to(half).float() if ordinary else before[name])


def test_a_float64_model_is_float64_throughout_its_parameters() -> None:
    model = Model().double()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    before = values(model)
    model.bfloat16()
    assert_identical(model.scale.detach(), before["scale"].float())
    assert model.proj.weight.dtype == torch.bfloat16


def test_a_cast_keeps_the_parameters_that_optimisers_hold() -> None:
    model = Model()
    before = dict(model.named_parameters())
    model.bfloat16()
    for name, parameter in model.named_parameters():
        assert parameter is before[name]
        assert parameter.requires_grad


def test_a_cast_keeps_frozen_parameters_frozen_and_shared_ones_shared() -> None:
    model = Model()
    model.scale.requires_grad_(False)
    model.inner_norm.bias = model.inner_norm.weight
    model.bfloat16()
    assert not model.scale.requires_grad
    assert model.inner_norm.bias is model.inner_norm.weight
    assert model.inner_norm.weight.dtype == torch.float32


def test_gradients_of_islands_follow_them() -> None:
    model = Model()
    model(torch.randn(4, 3)).square().sum().backward()
    assert model.scale.grad is not None
    expected = model.scale.grad.clone()
    model.bfloat16()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.dtype == parameter.dtype, name
    assert_identical(model.scale.grad, expected)


def test_islands_on_meta_are_float32_too() -> None:
    with torch.device("meta"):
        born = Model()
    for model in (Model().to("meta", torch.bfloat16), born.bfloat16()):
        for name, parameter in model.named_parameters():
            assert parameter.device.type == "meta"
            assert parameter.dtype == (torch.float32 if name in ISLANDS else torch.bfloat16), name


def test_a_half_model_saves_and_loads_its_islands_exactly() -> None:
    model, other = Model().bfloat16(), Model().bfloat16()
    other.load_state_dict(model.state_dict())
    for name, after in values(other).items():
        if name != "rope.scratch":
            assert_identical(after, values(model)[name])


# --- where it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
def test_the_dtype_of_a_model_is_that_of_its_ordinary_parameters(dtype: torch.dtype) -> None:
    model = Model().to(dtype)
    assert model.dtype == dtype
    assert model.wide_dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_storage_computes_under_autocast_from_float32_inputs(dtype: torch.dtype) -> None:
    model, x = Model(), torch.randn(4, 3)
    reference = model(x)
    out = model.to(dtype)(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), reference, rtol=0.05, atol=0.05)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wide_storage_leaves_the_autocast_around_it_in_force(dtype: torch.dtype) -> None:
    model = Model().to(dtype)
    assert isinstance(model.autocast(), contextlib.nullcontext)
    with torch.autocast("cpu", dtype=torch.bfloat16), model.autocast():
        assert torch.is_autocast_enabled("cpu")
    with model.autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_another_dtype_than_that_of_storage_may_be_asked_for() -> None:
    model = Model()
    with model.autocast(torch.float16):
        assert torch.get_autocast_dtype("cpu") == torch.float16
        assert torch.is_autocast_enabled("cpu")
    with model.bfloat16().autocast(torch.float32):
        assert not torch.is_autocast_enabled("cpu")


def test_a_model_on_meta_has_no_autocast() -> None:
    with torch.device("meta"):
        model = Model().bfloat16()
    assert isinstance(model.autocast(), contextlib.nullcontext)
