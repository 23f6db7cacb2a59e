"""latelier: a workshop for image latents.

Typed, composable PyTorch blocks that recipes assemble into published autoencoders and into new ones. Importing the
package is light; ``latelier.blocks``, ``latelier.families`` and ``latelier.recipes`` import torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__version__ = "0.1.0"

__all__ = ["__version__", "load", "save"]


def load(
    path_or_id: str | Path,
    *,
    device: "str | torch.device" = "cpu",
    dtype: "torch.dtype | None" = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Any:
    """Load a model of any family from a folder, a lone safetensors file or a hub repository.

    ``dtype`` None is bfloat16 on CUDA and float32 elsewhere.
    """
    import torch

    from .families.files import load_folder
    from .families.published import read_published

    return load_folder(
        path_or_id,
        torch.nn.Module,
        device=device,
        dtype=dtype,
        revision=revision,
        cache_dir=cache_dir,
        published=read_published,
    )


def save(model: Any, folder: str | Path) -> Path:
    """Write a model of any family as ``config.json`` and ``model.safetensors``; return the folder."""
    from .families.files import save_folder

    return save_folder(model, folder)
