"""One attention call over several backends: softmax(q k^T / sqrt(d)) v, every query sees every key.

- ``sdpa``: ``torch.nn.functional.scaled_dot_product_attention``, the default; runs everywhere.
- ``math``: the formula itself in float32, the reference of the tests.
- ``flex``: ``torch.nn.attention.flex_attention``, compiled on a GPU; on a CPU without gradients only.
- ``xformers``: memory-efficient attention of MSLK or xFormers, CUDA only; imported when it is first asked for.

A backend is chosen by call, for a while (:func:`use_attention`), or by the environment variable LATELIER_ATTENTION,
which is read when the package is imported. One that cannot run says why; none is ever replaced by another in silence.
Under autocast every backend computes in its dtype, as ``sdpa`` does by itself.
"""

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .precision import without_autocast

Heads = Float[Tensor, "b g n d"]
"""Queries: batch, heads, tokens, head width."""

Keys = Float[Tensor, "b g m d"]

VARIABLE = "LATELIER_ATTENTION"
XFORMERS = ("mslk.attention.fmha", "xformers.ops")
"""Where the operator may live: MSLK is taking it over from xFormers."""

_chosen = os.environ.get(VARIABLE) or "sdpa"
_chosen_by = VARIABLE if os.environ.get(VARIABLE) else "attention"


def attend(q: Heads, k: Keys, v: Keys, *, backend: str | None = None) -> Heads:
    """Attend with ``backend``, or the one that is in use; the result has the dtype of ``q``, or that of autocast.

    Raises:
        ValueError: no backend has that name, or it cannot run on such a device, dtype or head width.
        ImportError: its package is not installed.
    """
    name, where = (_chosen, _chosen_by) if backend is None else (backend, "attention")
    _known(name, where)
    device = q.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and q.dtype != torch.float64:
        q, k, v = (x.to(torch.get_autocast_dtype(device)) for x in (q, k, v))
    refusal = why_not(name, q, k, v)
    if refusal is not None:
        raise (ImportError if refusal.startswith("it needs the package") else ValueError)(
            f"{where}: {name!r} cannot run here: {refusal}; 'sdpa' can"
        )
    return BACKENDS[name](q, k, v)


@contextmanager
def use_attention(name: str) -> Iterator[None]:
    """Use a backend for every attention call of this process inside a ``with`` block.

    Raises:
        ValueError: no backend has that name.
        ImportError: its package is not installed. A device or dtype that it cannot serve shows at the call.
    """
    global _chosen, _chosen_by
    _known(name, "use_attention")
    if name == "xformers":
        missing = _missing_package()
        if missing is not None:
            raise ImportError(f"use_attention: {name!r} cannot run here: {missing}; 'sdpa' can")
    before = _chosen, _chosen_by
    _chosen, _chosen_by = name, "attention"
    try:
        yield
    finally:
        _chosen, _chosen_by = before


def why_not(name: str, q: Heads, *keys_and_values: Keys) -> str | None:
    """Why a backend cannot serve queries like ``q``, or None where it can."""
    if name == "flex":
        if q.device.type not in ("cpu", "cuda", "xpu"):
            return f"it has no kernel for the device {q.device.type!r}"
        learning = torch.is_grad_enabled() and any(x.requires_grad for x in (q, *keys_and_values))
        if q.device.type == "cpu" and learning:
            return "on a CPU it has no gradients"
        if q.device.type != "cpu" and q.shape[-1] < 16:
            return f"its head width must be at least 16, got {q.shape[-1]}"
    if name == "xformers":
        if q.device.type != "cuda":
            return f"it has no operator for the device {q.device.type!r}"
        if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"it has no operator for {q.dtype}"
        if q.shape[-1] % 8:
            return f"its head width must be divisible by 8, got {q.shape[-1]}"
        return _missing_package()
    return None


def _known(name: str, where: str) -> None:
    if name not in BACKENDS:
        close = get_close_matches(str(name), BACKENDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(map(repr, BACKENDS))}"
        raise ValueError(f"{where}: no attention backend is named {name!r}; {hint}")


# --- the backends ---------------------------------------------------------------------------------------------------


def _sdpa(q: Heads, k: Keys, v: Keys) -> Heads:
    return F.scaled_dot_product_attention(q, k, v)


def _math(q: Heads, k: Keys, v: Keys) -> Heads:
    with without_autocast(q.device):
        scores = q.float() @ k.float().mT / q.shape[-1] ** 0.5
        return (scores.softmax(dim=-1) @ v.float()).to(q.dtype)


def _flex(q: Heads, k: Keys, v: Keys) -> Heads:
    from torch.nn.attention.flex_attention import flex_attention

    if torch.compiler.is_compiling():  # whoever compiles us compiles it too
        if q.device.type == "cpu":
            q, k, v = (_packed(x) for x in (q, k, v))
        return _one(flex_attention(q, k, v))
    if q.device.type != "cpu":
        return _one(_compiled_flex()(q, k, v))
    if not torch.is_grad_enabled():  # it refuses parameters even then
        q, k, v = (x.detach() for x in (q, k, v))
    with warnings.catch_warnings():  # it tells at every eager call that it is slow
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return _one(flex_attention(q, k, v))


@torch.library.custom_op("latelier::packed", mutates_args=())
def _packed(x: Tensor) -> Tensor:
    """A contiguous copy that torch.compile cannot see through.

    On a CPU its version of flex attention gives wrong numbers, in silence, for keys and values of different strides,
    and fails for queries that are a view of more axes (torch 2.15).
    """
    return x.clone(memory_format=torch.contiguous_format)


@_packed.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _one(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def _xformers(q: Heads, k: Keys, v: Keys) -> Heads:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # it takes [b, n, g, d]
    return _xformers_operator()(q, k, v).transpose(1, 2)


@functools.cache
def _xformers_operator() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    failures = []
    for module in XFORMERS:
        try:
            return importlib.import_module(module).memory_efficient_attention
        except (ImportError, OSError, AttributeError) as error:  # a wheel for another CUDA fails with an OSError
            failures.append(f"{module}: {error}")
    raise ImportError("; ".join(failures))


def _missing_package() -> str | None:
    try:
        _xformers_operator()
    except ImportError as error:
        return f'it needs the package xformers, pip install "latelier[xformers]" ({error})'
    return None


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sdpa": _sdpa,
    "math": _math,
    "flex": _flex,
    "xformers": _xformers,
}
