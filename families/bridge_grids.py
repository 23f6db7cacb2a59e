"""How latents, tokens and a teacher's patches lie on one another, derived once.

    image / latent stride / stem stride · head factor = the teacher's grid

on both sides of the image. The stem's stride is what is left open where it is not given; a head that upsamples makes
up for latents coarser than the teacher's grid.
"""

from dataclasses import dataclass

from ..blocks.resize import SizeError
from ..blocks.slots import FeatureHeadConfig, LatentStemConfig, TeacherConfig

Grid = tuple[int, int]


@dataclass(frozen=True)
class BridgeGrids:
    """Rows and columns, for the image that a bridge is made for.

    ``stride`` is latent positions a side that become a token of the body, ``factor`` tokens of the head a side of one.
    """

    latent: Grid
    tokens: Grid
    output: Grid
    stride: int
    factor: int


def derive_grids(
    *, image: int, latent_stride: int, stem: LatentStemConfig, head: FeatureHeadConfig, teacher: TeacherConfig
) -> BridgeGrids:
    """Lay out a bridge for square images of ``image`` pixels.

    Raises:
        ValueError: latents and teacher do not meet; the message shows both grids.
    """
    if image % latent_stride:
        fit = max(image // latent_stride, 1) * latent_stride
        raise ValueError(
            f"LatentBridge: an image of {image} pixels has no latents of stride {latent_stride}; "
            f"make the bridge for {fit} pixels"
        )
    side = image // latent_stride
    latents = f"latents of a {image} pixel image are {side}x{side}"
    wanted = _teachers_grid(teacher, image)
    if stem.stride is not None and side % stem.stride:
        raise ValueError(
            f"LatentBridge: {latents}, which the stem's stride {stem.stride} does not divide; "
            f"take a stem stride that divides {side}"
        )
    if wanted is None:
        if stem.stride is None:
            raise ValueError(
                f"LatentBridge: {latents}, and {teacher.kind} tells its grid only once it is built; "
                "give the stem its stride"
            )
        return _grids(side, stem.stride, 1)
    rows, columns = wanted
    stride = stem.stride or (side // rows if side >= rows and side % rows == 0 else 1)
    tokens = side // stride
    factor = rows // tokens if rows == columns and rows % tokens == 0 else 0
    if factor == 1 or (factor > 1 and head.upsamples):
        return _grids(side, stride, factor)
    here = (
        latents if stem.stride is None else f"{latents} and the stem's stride {stride} makes {tokens}x{tokens} tokens"
    )
    advice = _advice(side, wanted, latent_stride * stride, stem, head, factor)
    raise ValueError(f"LatentBridge: {here}, but {teacher.kind} has a grid of {rows}x{columns}; {advice}")


def _teachers_grid(teacher: TeacherConfig, image: int) -> Grid | None:
    try:
        return teacher.grid_of((image, image))
    except SizeError as error:
        raise ValueError(
            f"LatentBridge: {teacher.kind}: {error}; or place it on the grid of tokens with teacher.for_stride(pixels)"
        ) from None


def _advice(side: int, wanted: Grid, pixels: int, stem: LatentStemConfig, head: FeatureHeadConfig, factor: int) -> str:
    """What would fit: a stride of the stem, a head, or the teacher at ``pixels`` a token."""
    ways = []
    square = wanted[0] == wanted[1]
    if stem.stride is not None and square and side % wanted[0] == 0:
        ways.append(f"a stem stride of {side // wanted[0]}")
    if factor > 1 and not head.upsamples:
        ways.append("'feature_head/spatial', which upsamples")
    return "take " + ", or ".join([*ways, f"teacher.for_stride({pixels})"])


def _grids(side: int, stride: int, factor: int) -> BridgeGrids:
    latent, tokens, output = ((n, n) for n in (side, side // stride, side // stride * factor))
    return BridgeGrids(latent=latent, tokens=tokens, output=output, stride=stride, factor=factor)
