"""Attention: every backend that can run here against the formula, and the words of each that cannot."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from latelier.blocks import BACKENDS, DiTBlockConfig, attend, attention, use_attention, why_not

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.01, torch.float16: 2e-3}
"""Of the whole result, relative; float32 may be multiplied in TF32 on a GPU."""

MISSING = (
    'it needs the package xformers, pip install "latelier[xformers]" '
    "(mslk.attention.fmha: not here; xformers.ops: not here)"
)


def inputs(
    b: int = 2,
    g: int = 3,
    n: int = 5,
    m: int = 7,
    d: int = 16,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(b, g, length, d).to(device, dtype) for length in (n, m, m))
    return q, k, v


def here(*, learning: bool) -> list[tuple[str, str, torch.dtype]]:
    """List device, backend and dtype wherever a backend says that it can run."""
    cases = []
    for device in DEVICES:
        for dtype in DTYPES:
            q = torch.zeros(1, 1, 1, 64, dtype=dtype, device=device, requires_grad=learning)
            cases += [(device, name, dtype) for name in BACKENDS if name != "math" and why_not(name, q) is None]
    return cases


def relative_error(value: Tensor, reference: Tensor) -> float:
    return ((value.double() - reference.double()).norm() / reference.double().norm()).item()


def message_of(kind: type[Exception], call: object, *args: object, **options: object) -> str:
    assert callable(call)
    with pytest.raises(kind) as error:
        call(*args, **options)
    assert type(error.value) is kind
    return str(error.value)


def python(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=os.environ | variables,
    )


@pytest.fixture
def no_xformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither package can be imported, whatever is installed."""
    for name in ("mslk.attention.fmha", "xformers.ops"):
        broken = ModuleType(name)
        monkeypatch.setitem(sys.modules, name.split(".")[0], ModuleType(name.split(".")[0]))
        monkeypatch.setitem(sys.modules, name, broken)
        monkeypatch.setattr(broken, "__getattr__", _not_here, raising=False)
    attention._xformers_operator.cache_clear()
    yield
    attention._xformers_operator.cache_clear()


def _not_here(name: str) -> object:
    raise AttributeError("not here")


@pytest.fixture
def fake_xformers(monkeypatch: pytest.MonkeyPatch, no_xformers: None) -> list[tuple[int, ...]]:
    """``xformers.ops`` whose operator is the formula on ``[b, n, g, d]``; returns the shapes that it is given."""
    shapes = []

    def memory_efficient_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shapes.extend(tuple(x.shape) for x in (query, key, value))
        scores = torch.einsum("bngd,bmgd->bgnm", query, key) / query.shape[-1] ** 0.5
        return torch.einsum("bgnm,bmgd->bngd", scores.softmax(dim=-1), value)

    module: Any = ModuleType("xformers.ops")
    module.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers.ops", module)
    return shapes


# --- the numbers ------------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(b=st.integers(1, 2), g=st.integers(1, 3), n=st.integers(1, 6), m=st.integers(1, 6), d=st.integers(1, 9))
def test_the_reference_is_softmax_attention_written_out(b: int, g: int, n: int, m: int, d: int) -> None:
    q, k, v = inputs(b, g, n, m, d)
    out = attend(q, k, v, backend="math")
    for image in range(b):
        for head in range(g):
            for i in range(n):
                scores = [float(q[image, head, i] @ k[image, head, j]) / d**0.5 for j in range(m)]
                weights = torch.tensor(scores, dtype=torch.float64).exp()
                expected = (weights / weights.sum()) @ v[image, head].double()
                torch.testing.assert_close(out[image, head, i].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("device", "backend", "dtype"), here(learning=False), ids=str)
@settings(max_examples=15)
@given(
    b=st.integers(1, 3),
    g=st.integers(1, 3),
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    d=st.sampled_from([16, 24, 64]),
)
def test_every_backend_that_can_run_here_computes_the_formula(
    device: str, backend: str, dtype: torch.dtype, b: int, g: int, n: int, m: int, d: int
) -> None:
    q, k, v = inputs(b, g, n, m, d, dtype=dtype, device=device)
    out = attend(q, k, v, backend=backend)
    assert (out.shape, out.dtype, out.device.type) == ((b, g, n, d), dtype, device)
    assert relative_error(out, attend(q.float(), k.float(), v.float(), backend="math")) < TOLERANCE[dtype]


@pytest.mark.parametrize(("device", "backend", "dtype"), here(learning=True), ids=str)
def test_gradients_of_every_backend_are_those_of_the_formula(device: str, backend: str, dtype: torch.dtype) -> None:
    tensors = inputs(2, 3, 20, 30, 64, dtype=dtype, device=device)
    weight = torch.randn(2, 3, 20, 64, device=device)
    gradients = []
    for name, kind in (("math", torch.float32), (backend, dtype)):
        leaves = [x.detach().to(kind).requires_grad_() for x in tensors]
        (attend(*leaves, backend=name) * weight).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        assert found is not None
        assert expected is not None
        assert relative_error(found, expected) < 3 * TOLERANCE[dtype]


@pytest.mark.parametrize(("device", "backend", "dtype"), here(learning=False), ids=str)
def test_every_backend_computes_in_the_dtype_of_autocast(device: str, backend: str, dtype: torch.dtype) -> None:
    """A norm may give float32 queries and keys there beside values of half precision."""
    q, k, v = inputs(d=64, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = attend(q, k, v.to(dtype), backend=backend)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, attend(q, k, v, backend="math")) < 0.02


def test_the_reference_multiplies_in_float32_under_autocast() -> None:
    q, k, v = (x.bfloat16() for x in inputs(n=20, m=30))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(q, k, v, backend="math")
    assert torch.equal(out, attend(q.float(), k.float(), v.float(), backend="math").bfloat16())


def test_float64_stays_float64_in_the_default_backend() -> None:
    q, k, v = (x.double() for x in inputs())
    for on in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            assert attend(q, k, v).dtype == torch.float64


def test_flex_serves_parameters_on_a_cpu_when_gradients_are_off() -> None:
    q, k, v = (x.requires_grad_() for x in inputs())
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            assert relative_error(attend(q, k, v, backend="flex"), attend(q, k, v, backend="math")) < 1e-5


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("spda", "did you mean 'sdpa'?"),
        ("xformer", "did you mean 'xformers'?"),
        ("Flex", "did you mean 'flex'?"),
        ("", "known: 'sdpa', 'math', 'flex', 'xformers'"),
        ("cudnn", "known: 'sdpa', 'math', 'flex', 'xformers'"),
    ],
)
def test_a_backend_without_that_name_is_refused_with_a_suggestion(name: str, hint: str) -> None:
    expected = f"no attention backend is named {name!r}; {hint}"
    assert message_of(ValueError, attend, *inputs(), backend=name) == f"attention: {expected}"
    assert message_of(ValueError, use_attention(name).__enter__) == f"use_attention: {expected}"


def test_flex_refuses_gradients_on_a_cpu_whichever_tensor_wants_them() -> None:
    for i in range(3):
        tensors = inputs()
        tensors[i].requires_grad_()
        assert message_of(ValueError, attend, *tensors, backend="flex") == (
            "attention: 'flex' cannot run here: on a CPU it has no gradients; 'sdpa' can"
        )


@pytest.mark.parametrize(
    ("name", "device", "dtype", "width", "reason"),
    [
        ("flex", "meta", torch.float32, 64, "it has no kernel for the device 'meta'"),
        ("flex", "cuda", torch.float32, 8, "its head width must be at least 16, got 8"),
        ("flex", "cuda", torch.float32, 16, None),
        ("flex", "cpu", torch.float32, 8, None),
        ("xformers", "cpu", torch.float32, 64, "it has no operator for the device 'cpu'"),
        ("xformers", "cuda", torch.float64, 64, "it has no operator for torch.float64"),
        ("xformers", "cuda", torch.float16, 12, "its head width must be divisible by 8, got 12"),
        ("xformers", "cuda", torch.bfloat16, 64, None),
        ("sdpa", "cuda", torch.float64, 3, None),
        ("math", "cpu", torch.float16, 1, None),
    ],
)
def test_a_backend_says_which_device_dtype_or_width_it_cannot_serve(
    name: str, device: str, dtype: torch.dtype, width: int, reason: str | None, fake_xformers: list[tuple[int, ...]]
) -> None:
    with FakeTensorMode():
        q = torch.empty(1, 2, 3, width, dtype=dtype, device=device)
        assert why_not(name, q) == reason
        if reason is not None:
            text = f"attention: {name!r} cannot run here: {reason}; 'sdpa' can"
            assert message_of(ValueError, attend, q, q, q, backend=name) == text


def test_xformers_without_its_package_is_an_import_error_at_the_call_and_before(no_xformers: None) -> None:
    with FakeTensorMode():
        q = torch.empty(1, 2, 3, 64, device="cuda")
        assert why_not("xformers", q) == MISSING
        text = f"'xformers' cannot run here: {MISSING}; 'sdpa' can"
        assert message_of(ImportError, attend, q, q, q, backend="xformers") == f"attention: {text}"
    assert message_of(ImportError, use_attention("xformers").__enter__) == f"use_attention: {text}"


def test_a_wheel_of_another_cuda_counts_as_missing(monkeypatch: pytest.MonkeyPatch, no_xformers: None) -> None:
    def load(name: str) -> ModuleType:
        raise OSError(f"{name}.so: undefined symbol")

    monkeypatch.setattr("importlib.import_module", load)
    assert message_of(ImportError, use_attention("xformers").__enter__) == (
        "use_attention: 'xformers' cannot run here: it needs the package xformers, pip install "
        '"latelier[xformers]" (mslk.attention.fmha: mslk.attention.fmha.so: undefined symbol; '
        "xformers.ops: xformers.ops.so: undefined symbol); 'sdpa' can"
    )


# --- which one is in use ----------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the backends that are called."""
    names: list[str] = []

    def spy(name: str, backend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> object:
        def called(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            names.append(name)
            return backend(q, k, v)

        return called

    for name, backend in BACKENDS.items():
        monkeypatch.setitem(BACKENDS, name, spy(name, backend))
    return names


def test_sdpa_is_in_use_until_another_is_and_afterwards(calls: list[str]) -> None:
    x = inputs()
    attend(*x)
    with use_attention("math"):
        attend(*x)
        with use_attention("flex"):
            attend(*x)
            attend(*x, backend="sdpa")
        attend(*x)
    attend(*x)
    assert calls == ["sdpa", "math", "flex", "sdpa", "math", "sdpa"]


def test_the_backend_before_comes_back_after_an_exception(calls: list[str]) -> None:
    with pytest.raises(KeyError), use_attention("math"):
        raise KeyError
    with pytest.raises(ValueError, match="named 'nothing'"), use_attention("math"), use_attention("nothing"):
        pass
    attend(*inputs())
    assert calls == ["sdpa"]


def test_a_choice_that_cannot_serve_a_call_says_so_and_is_not_replaced(fake_xformers: list[tuple[int, ...]]) -> None:
    with use_attention("xformers"):
        text = message_of(ValueError, attend, *inputs())
    assert text == "attention: 'xformers' cannot run here: it has no operator for the device 'cpu'; 'sdpa' can"
    assert not fake_xformers


def test_blocks_attend_with_the_backend_in_use(calls: list[str]) -> None:
    block, x = DiTBlockConfig(head_width=16).build(32), torch.randn(2, 32, 3, 4)
    with torch.no_grad():
        expected = block(x)
        for name in ("math", "flex"):
            with use_attention(name):
                torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    assert calls == ["sdpa", "math", "flex"]


def test_the_operator_of_xformers_is_given_tokens_before_heads(fake_xformers: list[tuple[int, ...]]) -> None:
    q, k, v = inputs(2, 3, 5, 7, 16)
    out = BACKENDS["xformers"](q, k, v)
    assert fake_xformers == [(2, 5, 3, 16), (2, 7, 3, 16), (2, 7, 3, 16)]
    torch.testing.assert_close(out, attend(q, k, v, backend="math"), rtol=1e-4, atol=1e-5)
    with FakeTensorMode(), use_attention("xformers"):
        fake = torch.empty(2, 3, 5, 16, device="cuda", dtype=torch.bfloat16)
        assert attend(fake, fake, fake).shape == (2, 3, 5, 16)


def test_mslk_is_taken_before_xformers(
    monkeypatch: pytest.MonkeyPatch, fake_xformers: list[tuple[int, ...]], no_xformers: None
) -> None:
    module: Any = ModuleType("mslk.attention.fmha")
    module.memory_efficient_attention = lambda q, k, v: torch.zeros_like(q)
    monkeypatch.setitem(sys.modules, "mslk.attention.fmha", module)
    assert not BACKENDS["xformers"](*inputs()).any()
    assert not fake_xformers


# --- in a process of its own ------------------------------------------------------------------------------------------

FROM_ENVIRONMENT = """
import importlib, os, sys, torch
import latelier.blocks
from latelier.blocks import attention
from torch._subclasses.fake_tensor import FakeTensorMode

print({"xformers", "mslk"} & {name.split(".")[0] for name in sys.modules} or "no optional kernel")
sys.modules["mslk"] = sys.modules["xformers"] = None


def attend(**options):
    called = []
    for name, backend in list(attention.BACKENDS.items()):
        attention.BACKENDS[name] = lambda q, k, v, name=name: called.append(name) or q
    try:
        with FakeTensorMode():
            q = torch.empty(1, 2, 3, 16, **options)
            attention.attend(q, q, q)
        print(*called)
    except (ImportError, ValueError) as error:
        print(type(error).__name__, str(error).split(" (")[0])


attend()
for name in ("xformers", "math", ""):
    os.environ["LATELIER_ATTENTION"] = name
    importlib.reload(attention)
    attend()
    attend(device="cuda")
os.environ["LATELIER_ATTENTION"] = "math"
attend()
"""

ENVIRONMENT_SAYS = """
no optional kernel
ValueError LATELIER_ATTENTION: no attention backend is named 'flx'; did you mean 'flex'?
ValueError LATELIER_ATTENTION: 'xformers' cannot run here: it has no operator for the device 'cpu'; 'sdpa' can
ImportError LATELIER_ATTENTION: 'xformers' cannot run here: it needs the package xformers, pip install \
"latelier[xformers]"
math
math
sdpa
sdpa
sdpa
"""


def test_the_environment_chooses_a_backend_when_the_package_is_imported_and_imports_no_kernel_then() -> None:
    run = python(FROM_ENVIRONMENT, LATELIER_ATTENTION="flx")
    assert run.returncode == 0, run.stderr
    assert run.stdout == ENVIRONMENT_SAYS.lstrip()


COMPILED = """
import torch
from latelier.blocks import BACKENDS, DiTBlockConfig, attend, use_attention

graphs = []


def backend(graph, inputs):
    graphs.append([str(node.target) for node in graph.graph.nodes])
    return graph.forward


torch.manual_seed(0)
block, x = DiTBlockConfig(head_width=16).build(32), torch.randn(2, 32, 3, 4)
compiled = torch.compile(block, fullgraph=True, backend=backend)
order = ("sdpa", "math", "flex", "sdpa", "math")
with torch.no_grad():
    for name in order:
        with use_attention(name):
            torch.testing.assert_close(compiled(x), block(x), rtol=1e-4, atol=1e-5)
assert len(graphs) == 3, len(graphs)
for one, targets in zip(("scaled_dot_product_attention", "softmax", "flex_attention"), graphs, strict=True):
    assert any(one in target for target in targets), (one, targets)


def inside(q, name):
    with use_attention(name):
        return attend(q, q, q) + attend(q, q, q, backend="math")


q = torch.randn(2, 3, 5, 16)
compiled = torch.compile(inside, fullgraph=True, backend="eager")
for name in ("math", "sdpa", "flex"):
    torch.testing.assert_close(compiled(q, name), inside(q, name), rtol=1e-4, atol=1e-5)
q.requires_grad_()
for name in ("sdpa", "math"):
    torch.testing.assert_close(
        torch.autograd.grad(compiled(q, name).square().sum(), q),
        torch.autograd.grad(inside(q, name).square().sum(), q),
        rtol=1e-4,
        atol=1e-5,
    )
"""


def test_attention_compiles_in_one_graph_and_a_switch_of_backends_compiles_again() -> None:
    run = python(COMPILED, JAXTYPING_DISABLE="1")
    assert run.returncode == 0, run.stdout + run.stderr


BY_INDUCTOR = """
import torch
from latelier.blocks import DiTBlockConfig, use_attention

torch.manual_seed(0)
for device in ["cpu", "cuda"][: 1 + torch.cuda.is_available()]:
    attention = DiTBlockConfig(head_width=16).build(32).attn.to(device)
    x = torch.randn(2, 12, 32, device=device)
    with torch.no_grad(), use_attention("math"):
        expected = attention(x, (3, 4))
    with torch.no_grad(), use_attention("flex"):
        error = (torch.compile(attention, fullgraph=True)(x, (3, 4)) - expected).norm() / expected.norm()
    assert error < (1e-5 if device == "cpu" else 1e-2), (device, error)
"""


def test_flex_gives_the_same_numbers_where_the_block_around_it_is_compiled() -> None:
    run = python(BY_INDUCTOR, JAXTYPING_DISABLE="1")
    assert run.returncode == 0, run.stdout + run.stderr
