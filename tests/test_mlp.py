"""Token-wise MLPs: each activation against its formula, what they weigh, and how they are born."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from latelier.blocks import MLP


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


FORMULAS = {"gelu": gelu, "silu": silu, "relu": relu}
seeds, sizes = st.integers(0, 2**31), st.integers(1, 9)


@pytest.mark.parametrize("activation", FORMULAS)
@given(width=sizes, hidden=sizes, seed=seeds)
def test_an_mlp_is_up_activation_down(activation: Any, width: int, hidden: int, seed: int) -> None:
    torch.manual_seed(seed)
    mlp, x = MLP(width, hidden, activation=activation), 3 * torch.randn(2, 5, width)
    expected = FORMULAS[activation](x.double() @ mlp.up.weight.double().mT) @ mlp.down.weight.double().mT
    torch.testing.assert_close(mlp(x).double(), expected, rtol=1e-4, atol=1e-5)


@given(width=sizes, hidden=sizes, seed=seeds)
def test_swiglu_gates_its_second_half_with_its_first(width: int, hidden: int, seed: int) -> None:
    torch.manual_seed(seed)
    mlp, x = MLP(width, hidden, activation="swiglu"), 3 * torch.randn(2, 5, width)
    gate, value = (x.double() @ rows.double().mT for rows in (mlp.up.weight[:hidden], mlp.up.weight[hidden:]))
    expected = (silu(gate) * value) @ mlp.down.weight.double().mT
    torch.testing.assert_close(mlp(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_gelu_is_exact_and_the_default() -> None:
    mlp, x = MLP(1, 1), torch.tensor([[[-2.0], [-0.5], [1.0]]])
    with torch.no_grad():
        mlp.up.weight.fill_(1)
        mlp.down.weight.fill_(1)
    assert mlp.activation == "gelu"
    exact = torch.tensor([-0.0455002639, -0.1542687694, 0.8413447461])[None, :, None]  # the tanh form is 3e-4 away
    torch.testing.assert_close(mlp(x), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("activation", "matrices"), [("gelu", 2), ("silu", 2), ("relu", 2), ("swiglu", 3)])
def test_an_mlp_has_matrices_without_biases_and_swiglu_has_a_third(activation: Any, matrices: int) -> None:
    names, counts = zip(
        *((name, p.numel()) for name, p in MLP(6, 10, activation=activation).named_parameters()), strict=True
    )
    assert names == ("up.weight", "down.weight")
    assert sum(counts) == matrices * 6 * 10


def test_swiglu_at_eight_thirds_weighs_what_the_others_weigh_at_four() -> None:
    swiglu, gelu_ = MLP(96, int(96 * 8 / 3), activation="swiglu"), MLP(96, 96 * 4)
    assert sum(p.numel() for p in swiglu.parameters()) == sum(p.numel() for p in gelu_.parameters())


@pytest.mark.parametrize("activation", [*FORMULAS, "swiglu"])
def test_an_mlp_is_born_within_the_bounds_of_xavier(activation: Any) -> None:
    mlp = MLP(64, 96, activation=activation)
    up = 2 * 96 if activation == "swiglu" else 96
    for weight, ends in ((mlp.up.weight, 64 + up), (mlp.down.weight, 96 + 64)):
        bound = (6 / ends) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_an_mlp_has_at_least_one_hidden_channel() -> None:
    assert MLP(4, 0)(torch.randn(1, 2, 4)).shape == (1, 2, 4)


@pytest.mark.parametrize("activation", ["gelu", "silu", "relu"])
def test_only_memory_that_nobody_else_holds_is_written_over(activation: Any) -> None:
    mlp, x = MLP(6, 6, activation=activation), torch.randn(2, 3, 6)
    before, seen = x.clone(), []

    def see(module: nn.Module, args: Any, out: Tensor) -> None:
        if module is mlp.up:
            seen.append((out, out.clone()))

    with torch.no_grad():
        for register in (mlp.up.register_forward_hook, nn.modules.module.register_module_forward_hook):
            hook = register(see)
            mlp(x)
            hook.remove()
        mlp._modules["up"] = nn.Identity()  # as somebody may who puts a module of his own there
        mlp(x)
    assert torch.equal(x, before)
    assert len(seen) == 2
    assert all(torch.equal(out, as_given) for out, as_given in seen)
