"""float32 islands: tensors and arithmetic that stay float32 whatever the module's dtype.

The islands of arithmetic, in every model: posterior, whitening and its statistics, noise schedules, sampler state,
RoPE tables and rotation, the frequencies of the time embedding, the mean square of RMSNorm and the statistics of GRN.
Their buffers are :class:`Float32Buffers`. A model may keep parameters in float32 too: :class:`Float32Islands` names
them in one place, and the rest of the model then runs under autocast.
"""

import contextlib
import fnmatch
from collections.abc import Callable

import torch
from torch import Tensor, nn


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Compute in the dtypes that are at hand, where autocast is on as well."""
    if not torch.amp.is_autocast_available(device.type):  # the meta device
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


class Float32Buffers(nn.Module):
    """A module whose own floating-point buffers move between devices but keep float32 under ``to(dtype)``."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Buffers":
        kept = {name: b for name, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            if after is not None and after.dtype != before.dtype:
                self._buffers[name] = after.float() if before.is_meta else before.to(after.device)
        return self


class Float32Islands(Float32Buffers):
    """A model that keeps some parameters, named by patterns, in float32 where the others are stored in half precision.

    Then :meth:`autocast` is where it computes: in the storage dtype, the islands apart.
    """

    islands: tuple[str, ...] = ()
    """Shell patterns over parameter names."""

    def is_island(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.islands)

    def find_ordinary(self) -> None:
        """Remember one parameter that is no island; a model calls this once its modules stand."""
        self._ordinary = next(name for name, _ in self.named_parameters() if not self.is_island(name))

    @property
    def dtype(self) -> torch.dtype:
        """In which the parameters are stored, islands apart."""
        return self.get_parameter(self._ordinary).dtype

    @property
    def wide_dtype(self) -> torch.dtype:
        """What goes in and comes out: at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    def autocast(self, dtype: torch.dtype | None = None) -> contextlib.AbstractContextManager[object]:
        """Compute in ``dtype``, by default that of storage; float32 and wider leave what surrounds them in force."""
        dtype, device = dtype or self.dtype, next(self.parameters()).device.type
        if dtype.itemsize >= torch.float32.itemsize or not torch.amp.is_autocast_available(device):
            return contextlib.nullcontext()
        return torch.autocast(device, dtype=dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Islands":
        islands = {name: p for name, p in self.named_parameters() if self.is_island(name)}
        kept = {name: (p.detach(), None if p.grad is None else p.grad.detach()) for name, p in islands.items()}
        super()._apply(fn, recurse)
        for name, parameter in self.named_parameters():
            if name not in kept or parameter.dtype.itemsize >= torch.float32.itemsize:
                continue
            for tensor, before in zip((parameter, parameter.grad), kept[name], strict=True):
                if tensor is not None and before is not None:
                    source = tensor.data if before.is_meta else before
                    tensor.data = source.to(tensor.device, torch.float32)
        return self
