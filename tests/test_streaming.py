"""An evaluation streams, divides over processes, goes on after a kill, and keeps what was done before an error."""

import json
import os
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import pytest
import torch
import torch.distributed as dist
from streamed import Drawn, Halver, protocol

from latelier.blocks import Moments
from latelier.evaluation import (
    FileReferenceConfig,
    FrechetConfig,
    ReferenceStatistics,
    TeacherExtractorConfig,
    evaluate_stream,
    make_reference,
)


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("set", "psnr", "ssim", "images", "population")}


def close(found: dict[str, Any], expected: dict[str, Any], *, tolerance: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    assert found["images"] == expected["images"]
    assert found["set"] == expected["set"]
    for key in ("psnr", "ssim", "population"):
        assert found[key] == pytest.approx(expected[key], abs=tolerance, rel=0)


def committed(folder: Path) -> int:
    from latelier.evaluation import streaming

    return len(streaming.read_parts(folder).rows)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The numbers of eleven images, by one process in one go."""
    return numbers(evaluate_stream(Halver(), Drawn(11), protocol()))


# --- processes ------------------------------------------------------------------------------------------------------


def in_two_processes(work: Callable[[], Any], place: Path) -> list[Any]:
    """What ``work`` gives in each process of a group of two, or the text of its error."""

    def member(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{place / 'store'}", rank=rank, world_size=2)
        try:
            found = work()
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        (place / f"{rank}.json").write_text(json.dumps(found))
        dist.destroy_process_group()

    place.mkdir()
    started = [children.in_a_child(lambda rank=rank: member(rank)) for rank in (0, 1)]
    assert [children.killed(child) for child in started] == [False, False]
    return [json.loads((place / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_give_the_numbers_of_one_though_the_count_does_not_divide(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    folder = tmp_path / "kept"
    results = in_two_processes(
        lambda: evaluate_stream(Halver(), Drawn(11), protocol(), folder=folder, every=3), tmp_path / "group"
    )
    assert numbers(results[0]) == numbers(results[1])
    close(numbers(results[0]), whole)
    assert [len(path.read_text().splitlines()) for path in sorted(folder.glob("*.jsonl"))] == [6, 5]
    again = Drawn(11)  # and one process goes on where two were
    close(numbers(evaluate_stream(Halver(), again, protocol(), folder=folder)), whole)
    assert again.read_indices == []


def test_two_processes_need_no_folder(tmp_path: Path, whole: dict[str, Any]) -> None:
    results = in_two_processes(lambda: evaluate_stream(Halver(), Drawn(11), protocol()), tmp_path / "group")
    close(numbers(results[1]), whole)


def test_an_error_of_one_process_reaches_both_and_both_keep_their_share(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = tmp_path / "kept"
    results = in_two_processes(
        lambda: evaluate_stream(Halver(), Drawn(11, broken=5), protocol(), folder=folder), tmp_path / "group"
    )
    reason = "00005.png: cannot be read as an image (no known image format); restore it or leave it out"
    assert results[1] == f"ValueError: {reason}"
    assert results[0] == f"RuntimeError: process 1: ValueError: {reason}; what process 0 did is kept"
    assert committed(folder) == 6 + 2
    close(numbers(evaluate_stream(Halver(), Drawn(11), protocol(), folder=folder)), whole)


# --- kills ----------------------------------------------------------------------------------------------------------


class Killing(Drawn):
    """Kills its process when it has given so many pictures."""

    def __init__(self, count: int, after: int) -> None:
        super().__init__(count)
        self.after = after

    def read(self, index: int) -> Any:
        if len(self.read_indices) == self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


@pytest.mark.parametrize("after", [1, 7])
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_numbers(
    tmp_path: Path, whole: dict[str, Any], after: int
) -> None:
    child = children.in_a_child(
        lambda: evaluate_stream(Halver(), Killing(11, after), protocol(), folder=tmp_path, every=3)
    )
    assert children.killed(child)
    kept = after // 3 * 3  # whole commits
    assert committed(tmp_path) == kept
    images = Drawn(11)
    seen = []
    found = evaluate_stream(Halver(), images, protocol(), folder=tmp_path, on_progress=lambda *at: seen.append(at))
    assert images.read_indices == list(range(kept, 11))
    assert seen[-1] == ("measure", 11, 11)
    close(numbers(found), whole)


def test_what_a_killed_process_wrote_beyond_its_last_commit_does_not_count(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        evaluate_stream(Halver(), Drawn(11, broken=5), protocol(), folder=tmp_path)
    with (tmp_path / "part-000-0000.jsonl").open("a") as file:
        file.write('{"name": "00005.png", "height": 16, "wid')
    with (tmp_path / "part-000-0000.ours-features.f32").open("ab") as file:
        file.write(b"\0" * 50)
    close(numbers(evaluate_stream(Halver(), Drawn(11), protocol(), folder=tmp_path)), whole)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_broken_image_is_named_and_what_was_done_is_kept(tmp_path: Path, whole: dict[str, Any]) -> None:
    message = "00007.png: cannot be read as an image (no known image format); restore it or leave it out"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate_stream(Halver(), Drawn(11, broken=7), protocol(), folder=tmp_path)
    assert committed(tmp_path) == 7
    repaired = Drawn(11)
    close(numbers(evaluate_stream(Halver(), repaired, protocol(), folder=tmp_path)), whole)
    assert repaired.read_indices == [7, 8, 9, 10]


def test_a_model_that_gives_nan_is_refused_at_that_image(tmp_path: Path, whole: dict[str, Any]) -> None:
    message = "00004.png: the reconstruction is not finite; the model or its statistics are damaged"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate_stream(Halver(nan_after=4), Drawn(11), protocol(), folder=tmp_path)
    assert committed(tmp_path) == 4
    close(numbers(evaluate_stream(Halver(), Drawn(11), protocol(), folder=tmp_path)), whole)


def test_a_reference_of_another_width_is_refused_and_its_repair_measures_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATELIER_REFERENCES", str(tmp_path))
    wrong = Moments(torch.zeros(5).double(), torch.eye(5).double())
    ReferenceStatistics(name="val", moments={"features": wrong}).save(tmp_path / "wrong.safetensors")
    measured = protocol(set_metrics=(FrechetConfig(),), reference=FileReferenceConfig(name="wrong.safetensors"))
    message = (
        "protocol/reconstruction: the reference val has 5 features, and the extractor gives 8; take one that this "
        "extractor made"
    )
    done = tmp_path / "done"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate_stream(Halver(), Drawn(6), measured, folder=done)
    make_reference(Drawn(9), measured, name="val").save(tmp_path / "right.safetensors")
    right = protocol(set_metrics=(FrechetConfig(),), reference=FileReferenceConfig(name="right.safetensors"))
    first = evaluate_stream(Halver(), Drawn(6), right, folder=done)
    (tmp_path / "right.safetensors").rename(tmp_path / "moved.safetensors")
    moved = protocol(set_metrics=(FrechetConfig(),), reference=FileReferenceConfig(name="moved.safetensors"))
    images = Drawn(6)
    assert evaluate_stream(Halver(), images, moved, folder=done)["population"] == first["population"]
    assert images.read_indices == []


@pytest.mark.parametrize(
    ("model", "images", "changes", "what"),
    [
        (Halver(), Drawn(5), {}, "images"),
        (Halver(), Drawn(4), {"seed": 1}, "protocol"),
        (Halver().requires_grad_(False), Drawn(4), {}, None),
        ("other weights", Drawn(5), {"seed": 1}, "protocol and images and model"),
    ],
)
def test_a_folder_of_another_evaluation_is_refused(
    tmp_path: Path, model: Any, images: Drawn, changes: dict[str, Any], what: str | None
) -> None:
    plain: dict[str, Any] = {"set_metrics": (), "extractor": None}
    evaluate_stream(Halver(), Drawn(4), protocol(**plain), folder=tmp_path)
    if isinstance(model, str):
        model = Halver()
        torch.nn.init.constant_(model.gain, 0.5)
    if what is None:
        evaluate_stream(model, images, protocol(**plain, **changes), folder=tmp_path)
        return
    message = f"{tmp_path}: holds an evaluation with another {what}; give another folder, or remove it to measure anew"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate_stream(model, images, protocol(**plain, **changes), folder=tmp_path)


def test_features_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from latelier.evaluation import extractors

    real = extractors.TeacherExtractor.forward
    monkeypatch.setattr(
        extractors.TeacherExtractor, "forward", lambda self, x: {k: v * torch.nan for k, v in real(self, x).items()}
    )
    message = "00000.png: the features 'ours/features' are not finite; the extractor or the image is damaged"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate_stream(Halver(), Drawn(3), protocol(), folder=tmp_path)
    assert committed(tmp_path) == 0


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^images: there are none to measure$"):
        evaluate_stream(Halver(), Drawn(0), protocol())


# --- memory ---------------------------------------------------------------------------------------------------------


def test_two_thousand_images_take_no_more_memory_than_two_hundred(tmp_path: Path) -> None:
    def peaks() -> None:
        found = []
        for count in (200, 2000):
            evaluate_stream(Halver(), Drawn(count, side=48), protocol(set_metrics=(FrechetConfig(),)))
            found.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        (tmp_path / "peaks.json").write_text(json.dumps(found))

    assert not children.killed(children.in_a_child(peaks))
    few, many = json.loads((tmp_path / "peaks.json").read_text())
    pictures = 2000 * 3 * 48 * 48 * 4 / 1024
    assert many - few < 0.3 * pictures  # KiB; rows of numbers grow, pictures do not pile up


def test_patch_tokens_are_rows_of_their_own(tmp_path: Path) -> None:
    by_patch = protocol(
        extractor=TeacherExtractorConfig(teacher=protocol().extractor.teacher, read="patches"),
        set_metrics=(FrechetConfig(),),
    )
    found = make_reference(Drawn(5), by_patch, name="patches", folder=tmp_path)
    assert found.rows["features"].shape == (5 * 4, 8)
    assert found.n == 5
