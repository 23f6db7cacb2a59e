"""What a bridge learns by: its tokens p against a teacher's t, in named terms with explicit reductions, float32.

================ ======================================================================== ======
term             definition                                                               weight
================ ======================================================================== ======
cosine           mean over tokens of 1 - cos(p, t)                                        1.0
mse_unit         mean over tokens of the sum over channels of (p/|p| - t/|t|)², 2(1-cos)  0.25
mse_raw          mean over everything of (p - t)²                                         0.05
mse_standardised the same of p and t divided by the teacher's deviation of each channel   0
relational       mean over pairs of tokens of an image of ReLU(|cos pp' - cos tt'| - m)   0
cls              1 - cos of the class token                                               0
================ ======================================================================== ======

The weights are those of the card of kingsidharth/sd_vae_2_dino_v2_bridge. Its six published losses follow only if
``mse_unit`` is a *mean* over channels: 2(1 - cos)/768, which adds 0.06 % to the loss and teaches nothing. The preset
"card" has that mean; "default" has the sum, which pulls as the card's author seems to have meant. "translation", for
bridges to another latent space, is ``mse_raw`` alone: lengths of latents mean as much as their directions.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .losses import Scalar, negative_cosine
from .shapes import Tokens
from .slots import TeacherOutput
from .token_losses import marginal_distances, square_error

UnitReduction = Literal["sum", "mean"]
"""Over the channels of ``mse_unit``."""

BridgePreset = Literal["default", "card", "translation"]

_CARD = {"cosine": 1.0, "mse_unit": 0.25, "mse_raw": 0.05, "mse_standardised": 0.0, "relational": 0.0, "cls": 0.0}
BRIDGE_WEIGHTS: dict[BridgePreset, dict[str, float]] = {
    "default": _CARD,
    "card": _CARD,
    "translation": dict.fromkeys(_CARD, 0.0) | {"mse_raw": 1.0},
}
BRIDGE_REDUCTION: dict[BridgePreset, UnitReduction] = {"default": "sum", "card": "mean", "translation": "sum"}


def cosine_distance(prediction: Tokens, target: Tokens) -> Scalar:
    """1 - cos of each predicted token with its target, averaged over tokens and batch; in [0, 2]."""
    return 1 + negative_cosine(prediction, target)


def unit_square_error(prediction: Tokens, target: Tokens, *, reduction: UnitReduction = "sum") -> Scalar:
    """Squared difference of unit tokens, summed or averaged over channels, averaged over tokens and batch.

    The sum is 2(1 - cos); the mean is that divided by the width, which makes it inert beside a cosine.
    """
    p, t = (F.normalize(x.float(), dim=-1) for x in (prediction, target))
    error = (p - t).square()
    return (error.sum(dim=-1) if reduction == "sum" else error.mean(dim=-1)).mean()


def standardised_square_error(prediction: Tokens, target: Tokens, std: Float[Tensor, "c"]) -> Scalar:
    """Squared difference in units of ``std`` of each channel, averaged over everything.

    Raises:
        ValueError: ``std`` has another width than the tokens.
    """
    if std.shape != prediction.shape[-1:]:
        raise ValueError(f"std: needs one number for each of {prediction.shape[-1]} features, got {std.numel()}")
    return square_error(prediction.float() / std, target.float() / std)


def class_distance(prediction: TeacherOutput, target: TeacherOutput) -> Scalar:
    """1 - cos of the class tokens, averaged over the batch.

    Raises:
        ValueError: the prediction or the target has no class token.
    """
    if prediction.cls is None:
        raise ValueError("cls: the bridge predicts no class token; take 'feature_head/tokens', or leave the term out")
    if target.cls is None:
        raise ValueError("cls: the teacher gives no class token; choose one that does, or leave the term out")
    return cosine_distance(prediction.cls[:, None], target.cls[:, None])


def bridge_loss(
    prediction: TeacherOutput | Tokens,
    target: TeacherOutput | Tokens,
    *,
    cosine: float | None = None,
    mse_unit: float | None = None,
    mse_raw: float | None = None,
    mse_standardised: float | None = None,
    relational: float | None = None,
    cls: float | None = None,
    unit_reduction: UnitReduction | None = None,
    margin: float = 0.0,
    std: Float[Tensor, "c"] | None = None,
    preset: BridgePreset = "default",
) -> tuple[Scalar, dict[str, Scalar]]:
    """Return the weighted sum of the terms, and the unweighted value of each whose weight is not 0, by its name.

    Args:
        prediction, target: tokens ``[b, n, f]``, or what a bridge and a teacher give.
        cosine, mse_unit, mse_raw, mse_standardised, relational, cls: weights; None is the preset's.
        unit_reduction: over the channels of ``mse_unit``; None is the preset's.
        margin: difference of two cosines that ``relational`` leaves in peace.
        std: deviation of each of the teacher's channels, for ``mse_standardised``.
        preset: "default"; "card", which reproduces the published losses; or "translation".

    Raises:
        ValueError: the two do not lie on one grid, or a term lacks what it needs.
    """
    p, t = _described(prediction), _described(target)
    _check_alike(p, t)
    given: dict[str, float | None] = {
        "cosine": cosine,
        "mse_unit": mse_unit,
        "mse_raw": mse_raw,
        "mse_standardised": mse_standardised,
        "relational": relational,
        "cls": cls,
    }
    weights = {name: BRIDGE_WEIGHTS[preset][name] if weight is None else weight for name, weight in given.items()}
    values: dict[str, Tensor] = {}
    if weights["cosine"]:
        values["cosine"] = cosine_distance(p.patches, t.patches)
    if weights["mse_unit"]:
        reduction = unit_reduction or BRIDGE_REDUCTION[preset]
        values["mse_unit"] = unit_square_error(p.patches, t.patches, reduction=reduction)
    if weights["mse_raw"]:
        values["mse_raw"] = square_error(p.patches, t.patches)
    if weights["mse_standardised"]:
        if std is None:
            raise ValueError("mse_standardised: needs std, the deviation of each of the teacher's channels")
        values["mse_standardised"] = standardised_square_error(p.patches, t.patches, std)
    if weights["relational"]:
        values["relational"] = marginal_distances(p.patches, t.patches, margin=margin)
    if weights["cls"]:
        values["cls"] = class_distance(p, t)
    if not values:
        raise ValueError("bridge_loss: every weight is 0; give one term a weight")
    total = sum((weights[name] * value for name, value in values.items()), start=p.patches.new_zeros(()).float())
    return total, values


def _described(tokens: TeacherOutput | Tokens) -> TeacherOutput:
    """Tokens without a grid as one row of them."""
    return tokens if isinstance(tokens, TeacherOutput) else TeacherOutput(tokens, (1, tokens.shape[1]))


def _check_alike(prediction: TeacherOutput, target: TeacherOutput) -> None:
    ours, theirs = prediction.patches.shape, target.patches.shape
    if ours != theirs:
        raise ValueError(
            f"bridge_loss: the prediction is {list(ours)} and the target {list(theirs)}; both are [b, n, f]"
        )
    grids = {o.grid for o in (prediction, target) if o.grid != (1, o.patches.shape[1])}
    if len(grids) > 1:
        raise ValueError(
            f"bridge_loss: the prediction lies on a grid of {prediction.grid}, the target on {target.grid}; "
            "choose a teacher whose grid is the bridge's"
        )
