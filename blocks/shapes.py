"""One vocabulary of axes for every signature.

``b`` batch, ``H W`` pixels, ``h w`` grid, ``n`` tokens, ``c`` width, ``z`` latent channels, ``e`` condition,
``f`` teacher features, ``g`` heads, ``d`` head width. The names mean the same in jaxtyping and einops strings.
They are checked under the import hook (tests, notebooks), never in shipped code.
"""

from jaxtyping import Float
from torch import Tensor

Image = Float[Tensor, "b rgb H W"]
"""NCHW, RGB in everything published; in [-1, 1] at the surface of families, in [0, 1] at the surface of teachers."""

Map = Float[Tensor, "b c h w"]
"""Activations on the patch grid."""

Latent = Float[Tensor, "b z h w"]

Cond = Float[Tensor, "b e"]
"""One condition vector an image, such as a time embedding."""

Tokens = Float[Tensor, "b n c"]
"""Activations as a sequence, grid positions in row-major order."""

Times = Float[Tensor, "b"]
"""Diffusion times in [0, 1]: 0 is clean, 1 is noise."""
