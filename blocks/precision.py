"""float32 islands: tensors and arithmetic that stay float32 whatever the module's dtype.

The islands are: posterior, whitening and its statistics, noise schedules, sampler state, RoPE tables, the frequencies
of the time embedding, the mean square of RMSNorm and the statistics of GRN. Everything else follows the module.
"""

from collections.abc import Callable

from torch import Tensor, nn


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
