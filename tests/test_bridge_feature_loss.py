"""A frozen bridge as a loss: whose gradients, which targets, noise, and one compiled graph."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from latelier.blocks import (
    HOGConfig,
    LinearNoiseConfig,
    ResidualStemConfig,
    TeacherOutput,
    TokensHeadConfig,
    TransformerBodyConfig,
    bridge_loss,
    mark,
    space_config,
)
from latelier.families import BridgeFeatureLoss, LatentBridge, LatentBridgeConfig

TINY = LatentBridgeConfig(
    space=space_config("sd"),
    teacher=HOGConfig(patch=32),
    stem=ResidualStemConfig(mid=8, out=16),
    body=TransformerBodyConfig(width=16, depth=1, heads=2, table=4, dropout=0.5),
    head=TokensHeadConfig(head_width=8),
    noise=LinearNoiseConfig(),
    image=64,
)


def awake() -> LatentBridge:
    bridge = TINY.build()
    with torch.no_grad():
        for parameter in bridge.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return bridge


class Generator(nn.Module):
    """Somebody else's model, of which the loss is a part."""

    def __init__(self, loss: BridgeFeatureLoss) -> None:
        super().__init__()
        self.layer, self.loss = nn.Conv2d(4, 4, 1), loss


def test_gradients_reach_the_latents_and_the_model_before_them_and_never_the_bridge() -> None:
    bridge = awake().train()
    model = Generator(BridgeFeatureLoss(bridge)).train()
    before = {name: value.clone() for name, value in bridge.state_dict().items()}
    assert model.training
    assert not any(module.training for module in bridge.modules())
    assert not any(p.requires_grad for p in bridge.parameters())
    latents = torch.randn(2, 4, 8, 8, requires_grad=True)
    loss = model.loss(model.layer(latents), torch.randn(2, 4, 36), torch.rand(2))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    loss.backward()
    for tensor in (latents, *model.layer.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any()
    assert all(p.grad is None for p in bridge.parameters())
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert all(torch.equal(bridge.state_dict()[name], value) for name, value in before.items())
    again = [model.loss(latents, latents) for _ in range(2)]
    assert torch.equal(*again)  # nothing is dropped


def test_the_loss_is_bridge_loss_of_what_the_bridge_says() -> None:
    bridge = awake()
    z, tau = torch.randn(3, 4, 8, 8), torch.rand(3)
    target = TeacherOutput(torch.randn(3, 4, 36), (2, 2), torch.randn(3, 36))
    std = torch.rand(36) + 0.5
    loss = BridgeFeatureLoss(
        bridge, cosine=0.5, mse_standardised=0.3, relational=0.2, cls=2.0, margin=0.1, std=std, unit_reduction="mean"
    )
    expected, values = bridge_loss(
        bridge(z, tau),
        target,
        cosine=0.5,
        mse_standardised=0.3,
        relational=0.2,
        cls=2.0,
        margin=0.1,
        std=std,
        unit_reduction="mean",
    )
    total, named = loss.terms(z, target, tau)
    assert torch.equal(total, expected)
    assert named.keys() == values.keys() == {"cosine", "mse_unit", "mse_raw", "mse_standardised", "relational", "cls"}
    assert torch.equal(loss(z, target, tau), expected)
    assert set(BridgeFeatureLoss(bridge, preset="translation").terms(z, target)[1]) == {"mse_raw"}


def test_clean_latents_as_a_target_are_described_without_gradient() -> None:
    bridge = awake()
    loss = BridgeFeatureLoss(bridge)
    z, clean = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(2, 4, 8, 8, requires_grad=True)
    value = loss(z, clean, torch.rand(2))
    value.backward()
    assert z.grad is not None and z.grad.any()
    assert clean.grad is None
    tau = torch.tensor([0.2, 0.9])
    torch.testing.assert_close(loss(z, clean, tau), loss(z, bridge(clean), tau))
    assert loss(clean, clean).item() == pytest.approx(0, abs=1e-6)
    assert loss(z, clean, tau).item() != pytest.approx(loss(z, clean).item(), abs=1e-4)


def test_it_leads_latents_to_those_of_the_target() -> None:
    loss = BridgeFeatureLoss(awake())
    target = torch.randn(1, 4, 8, 8)
    z = torch.randn(1, 4, 8, 8, requires_grad=True)
    optimiser = torch.optim.Adam([z], lr=0.05)
    first = loss(z, target).item()
    for _ in range(60):
        optimiser.zero_grad()
        loss(z, target).backward()
        optimiser.step()
    assert loss(z, target).item() < 0.3 * first


def test_what_the_bridge_refuses_the_loss_refuses() -> None:
    loss = BridgeFeatureLoss(replace(TINY, noise=None).build())
    z = torch.randn(1, 4, 8, 8)
    with pytest.raises(ValueError, match="LatentBridge: was made without noise and takes no tau"):
        loss(z, z, torch.zeros(1))
    with pytest.raises(ValueError, match="LatentBridge: these latents are of another space"):
        loss(z, mark(z.clone(), space_config("sdxl").spec))
    with pytest.raises(ValueError, match=r"bridge_loss: the prediction is \[1, 4, 36\] and the target \[1, 9, 36\]"):
        loss(z, torch.randn(1, 9, 36))


PROGRAM = """
import functools
from dataclasses import replace
import torch
torch.compile = functools.partial(torch.compile, backend="eager")
from latelier.blocks import *
from latelier.families import BridgeFeatureLoss, LatentBridgeConfig

def check(name, config):
    bridge = config.build()
    with torch.no_grad():
        for parameter in bridge.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    side = 64 // config.stride
    shape = (2, config.latent_channels, side, side)
    z, clean = torch.randn(shape), torch.randn(shape)
    tau = torch.rand(2) if config.noise else None
    results = []
    for compile in (False, True):
        loss = BridgeFeatureLoss(bridge, compile=compile)
        latents = mark(z.clone().requires_grad_(), bridge.latent_spec)
        value = loss(latents, clean, tau)
        value.backward()
        results.append((value.detach(), latents.grad))
    for plain, fused in zip(*results):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-6)
    torch.compiler.reset()
    print(name)

torch.manual_seed(0)
tiny = LatentBridgeConfig(
    space=space_config("sd"), teacher=HOGConfig(patch=32), stem=PatchifyStemConfig(), image=64,
    body=TransformerBodyConfig(width=64, depth=1, heads=2, table=4),
)
for cls in parts(LatentStemConfig):
    check(cls.kind, replace(tiny, stem=cls()))
for cls in parts(FeatureHeadConfig):
    check(cls.kind, replace(tiny, head=cls(), noise=LinearNoiseConfig()))
rope = TransformerBodyConfig(width=16, depth=1, heads=2, positions="rope")
flux2 = replace(tiny, body=rope, space=space_config("flux2"), teacher=HOGConfig(patch=8), head=SpatialHeadConfig())
check("rope", flux2)
bridge = tiny.build().eval()
whole = torch.compile(bridge, fullgraph=True)
torch.testing.assert_close(whole(torch.ones(1, 4, 8, 8)).patches, bridge(torch.ones(1, 4, 8, 8)).patches)
"""


def test_compiled_as_one_graph_the_loss_is_what_it_is() -> None:
    """In a process of its own: the shape checks of tests are on in this one, and break graphs."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=os.environ | {"JAXTYPING_DISABLE": "1"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert {"stem/residual", "feature_head/tokens", "rope"} <= set(run.stdout.split())
