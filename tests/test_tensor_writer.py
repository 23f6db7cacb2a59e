"""Safetensors files a tensor at a time: what is streamed is what was meant, and nothing is half-written."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from latelier.families import CheckpointError, read_stream, write_stream

ONE = {"a": (torch.float32, (2, 3))}


def announced(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def refusal(function: Callable[[], object], *, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as caught:
        function()
    assert type(caught.value) is error
    return str(caught.value)


@st.composite
def several_tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    # No surrogates, which are no text, and not the name that the format keeps for itself.
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
    shapes = draw(st.dictionaries(names, st.lists(st.integers(0, 4), max_size=4), max_size=6))
    types = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
    return {name: torch.randn(shape).to(draw(types)) for name, shape in shapes.items()}


@given(tensors=several_tensors(), data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_in_any_order_is_read_bit_for_bit(
    tmp_path: Path, tensors: dict[str, Tensor], data: st.DataObject
) -> None:
    path, header = tmp_path / "a.safetensors", {"format": "pt", "größe": "∞"}
    with write_stream(path, announced(tensors), header) as writer:
        for name in data.draw(st.permutations(list(tensors))):
            writer.write(name, tensors[name])
    again = load_file(path)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (again[name].dtype, again[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(again[name], tensor)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == header


def test_every_tensor_starts_at_a_multiple_of_its_width(tmp_path: Path) -> None:
    tensors = {"half": torch.ones(3).half(), "b": torch.ones(1).bfloat16(), "whole": torch.ones(5)}
    with write_stream(tmp_path / "a", announced(tensors), {}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    content = (tmp_path / "a").read_bytes()
    length = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    for name, tensor in tensors.items():
        first, last = head[name]["data_offsets"]
        assert (8 + length + first) % tensor.itemsize == 0
        assert last - first == math.prod(tensor.shape) * tensor.itemsize
    assert len(content) == 8 + length + 3 * 2 + 1 * 2 + 5 * 4


def test_tensors_may_need_gradients_and_lie_across_memory(tmp_path: Path) -> None:
    tensor = torch.randn(3, 2, requires_grad=True).T
    with write_stream(tmp_path / "a", ONE, {}) as writer:
        writer.write("a", tensor)
    assert torch.equal(load_file(tmp_path / "a")["a"], tensor)


def test_a_tensor_goes_to_the_disk_when_it_is_written(tmp_path: Path) -> None:
    side = 300
    shapes = dict.fromkeys("abc", (torch.float32, (side, side)))
    with write_stream(tmp_path / "a", shapes, {}) as writer:
        for written, name in enumerate(shapes):
            (part,) = tmp_path.iterdir()
            assert part.stat().st_size >= written * 4 * side**2
            writer.write(name, torch.ones(side, side))


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"old": torch.ones(1)}, path)
    before = path.read_bytes()

    def fail() -> None:
        with write_stream(path, ONE, {}) as writer:
            writer.write("a", torch.zeros(2, 3))
            raise RuntimeError("on the way")

    assert refusal(fail, error=RuntimeError) == "on the way"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_lacks_a_tensor_never_appears(tmp_path: Path) -> None:
    def forget() -> None:
        with write_stream(tmp_path / "a", ONE | {"b": (torch.float16, (1,))}, {}) as writer:
            writer.write("a", torch.zeros(2, 3))

    assert refusal(forget) == f"{tmp_path / 'a'}: 1 announced tensors were not written, first 'b'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("b", torch.zeros(2, 3), "no tensor 'b' was announced"),
        ("a", torch.zeros(3, 2), "'a' was announced as torch.float32 [2, 3], got torch.float32 [3, 2]"),
        ("a", torch.zeros(2, 3).half(), "'a' was announced as torch.float32 [2, 3], got torch.float16 [2, 3]"),
    ],
)
def test_a_tensor_that_was_not_announced_so_is_refused(tmp_path: Path, name: str, tensor: Tensor, message: str) -> None:
    def write() -> None:
        with write_stream(tmp_path / "x", ONE, {}) as writer:
            writer.write(name, tensor)

    assert refusal(write) == f"{tmp_path / 'x'}: {message}"


def test_a_tensor_is_written_once(tmp_path: Path) -> None:
    def twice() -> None:
        with write_stream(tmp_path / "x", ONE, {}) as writer:
            writer.write("a", torch.zeros(2, 3))
            writer.write("a", torch.zeros(2, 3))

    assert refusal(twice) == f"{tmp_path / 'x'}: 'a' is written already"


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("__metadata__", torch.float32, "a tensor cannot be called '__metadata__', which the format keeps for itself"),
        ("a", torch.int64, "'a' is torch.int64; streams hold float32, float16 and bfloat16"),
        ("a\udcff", torch.float32, "the name 'a\\udcff' is no Unicode text; rename it"),
    ],
)
def test_what_the_format_does_not_hold_is_refused(tmp_path: Path, name: str, dtype: torch.dtype, message: str) -> None:
    def announce() -> None:
        with write_stream(tmp_path / "x", {name: (dtype, (1,))}, {}):
            pass

    assert refusal(announce) == f"{tmp_path / 'x'}: {message}"
    assert list(tmp_path.iterdir()) == []


def test_a_stream_is_read_a_tensor_at_a_time(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6.0)}, tmp_path / "a", {"key": "value"})
    with read_stream(tmp_path / "a") as file:
        assert file.metadata() == {"key": "value"}
        assert torch.equal(file.get_tensor("a"), torch.arange(6.0))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_stream_is_no_whole_file(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a"
    content = save({"a": torch.ones(50)})
    path.write_bytes(content[: int(share * len(content))])

    def read() -> None:
        with read_stream(path):
            pass

    message = refusal(read, error=CheckpointError)
    assert message.startswith(f"{path}: is no whole safetensors file (")
    assert message.endswith("); copy or download it again")


def test_a_missing_stream_and_a_folder_are_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):

        def read(path: Path = path) -> None:
            with read_stream(path):
                pass

        assert refusal(read, error=FileNotFoundError) == f"{path}: no such file"
