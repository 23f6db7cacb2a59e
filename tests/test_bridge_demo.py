"""The demo of bridges from end to end in small, and what the command line says of bridges."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from latelier.cli import main
from latelier.evaluation import bridge_gain, share_of_gain
from latelier.families import LatentBridge
from latelier.recipes import bridge_demo as demo_of_bridges
from latelier.recipes import sd_to_dinov2, sd_to_flux2
from latelier.training import PairsConfig, load_run, train


def test_the_demo_makes_two_spaces_a_bridge_a_stem_and_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_of_bridges, "AUTOENCODER_STEPS", 2)
    monkeypatch.setattr(demo_of_bridges, "CROPS", 6)
    heard: list[str] = []
    found = demo_of_bridges.bridge_demo(tmp_path, train=partial(train, resume=True), steps=8, say=heard.append)
    assert set(found.results) == {"bridge", "stem"}
    whole, stem = (load_run(tmp_path / name).model for name in ("bridge", "stem"))
    for name, parameter in whole.named_parameters():
        if not name.startswith("stem."):
            assert torch.equal(parameter, stem.get_parameter(name)), name
    page = found.report.read_text()
    assert found.report == tmp_path / "bridge" / "report.html"
    assert "Other latent spaces, the same body" in page
    assert f"{100 * bridge_gain(found.results['stem']):.0f} %" in page
    assert bridge_gain(found.results["bridge"]) < 0, "eight steps teach nothing, and of that there is no share"
    with pytest.raises(ValueError, match="of which there is no share"):
        share_of_gain(found.results["stem"], found.results["bridge"])
    assert heard == [
        "packing crops of 15 photographs: latents of first, and HOG",
        "packing crops of 15 photographs: latents of second, and HOG",
        "measuring bridge",
        "measuring stem",
    ]


def test_the_demo_takes_no_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", "bridge", "--set", "seed=1", "--out", str(tmp_path / "out")])
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        "error: --set: this demo trains four models; change one with `latelier train` instead\n"
    )
    assert not (tmp_path / "out").exists()


def test_show_counts_what_a_bridge_computes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["show", "sd_to_dinov2"])
    assert not caught.value.code
    shown = capsys.readouterr().out.partition("sd_to_dinov2 (")[2]
    assert "61,221,888" in shown
    assert "decode" not in shown
    cost = re.search(r"latents to features at 256 px +([0-9.]+) GFLOP", shown)
    assert cost
    body = 2 * 64 * 8 * 12 * 768**2 / 1e9  # multiplications and additions of eight blocks' matrices for 64 tokens
    assert body < float(cost[1]) < 1.25 * body


def test_train_takes_a_pack_where_a_recipe_learns_from_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "sd_to_dinov2", "--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "run")])
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(f"error: {tmp_path / 'nothing'}: holds no pack of pairs; latelier pack --space SPACE")
    )
    assert sd_to_dinov2().data == PairsConfig(path="pairs/sd_to_dinov2")


def test_the_cards_other_recipes_differ_in_space_and_head() -> None:
    with torch.device("meta"):
        bridge = sd_to_flux2().model.build()
        assert isinstance(bridge, LatentBridge)
        translated = bridge.translate(torch.zeros(1, 4, 32, 32))
    assert translated.shape == (1, 128, 16, 16)
