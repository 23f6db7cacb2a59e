"""What answers of probes have in common: rows of named numbers, and settings that several probes share."""

from collections.abc import Callable, Mapping
from typing import Any

from ..blocks.registry import short_name
from ..blocks.slots import Columns, ProbeConfig

Numbers = dict[str, float | None]
"""Numbers by names that say how they are defined; None where there is nothing to divide by."""


def row_columns(
    probe: ProbeConfig, answer: Mapping[str, Any], wanted: Callable[[str, str], bool] = lambda row, number: True
) -> Columns:
    """Numbers of an answer's ``rows``, labelled by what was described and by how the number is defined.

    ``wanted(row, number)`` keeps tables short; an answer and its section of a report have all numbers.
    """
    return {
        f"{short_name(probe)}, {row}, {number}": (value, "")
        for row, numbers in answer["rows"].items()
        for number, value in numbers.items()
        if wanted(row, number)
    }


def check_count(value: int | None, *, where: str) -> None:
    """Raise ``ValueError`` for a setting below 1; None is no limit."""
    if value is not None and value < 1:
        raise ValueError(f"{where}: must be at least 1, got {value}")
