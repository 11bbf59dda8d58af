"""Text for people: lists, times, numbers, and the one printer of tables."""

import math
from collections.abc import Iterable, Sequence


def listed(items: Iterable, most: int = 10) -> str:
    """The first of many, for a message.

    Example:
        >>> listed("abcd", most=2)
        'a, b and 2 more'
    """
    words = [str(item) for item in items]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 3.1 s, 4 min 5 s, 2 h 3 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def number(value: float | None, digits: int = 3, undefined: str = "-") -> str:
    """A number with so many decimals, or what stands for one that is undefined.

    Example:
        >>> number(0.5), number(float("nan")), number(None, undefined="unknown")
        ('0.500', '-', 'unknown')
    """
    return undefined if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def columns(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table for the terminal: the first column to the left, the others to the right.

    Example:
        >>> print(columns(["slide", "score"], [["A01", "0.65"]]))
        slide  score
        A01     0.65
    """
    cells, widths = _aligned(header, rows)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, its columns aligned so that it reads well on a terminal too.

    Example:
        >>> print(markdown(["slide", "score"], [["A01", "0.65"]]))
        | slide | score |
        | ----- | ----- |
        | A01   | 0.65  |
    """
    cells, widths = _aligned(header, rows)
    cells = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    widths = [max(3, *(len(row[place]) for row in cells)) for place in range(len(widths))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    )


def _aligned(
    header: Sequence[str], rows: Iterable[Sequence[object]]
) -> tuple[list[list[str]], list[int]]:
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    return cells, [max(len(row[place]) for row in cells) for place in range(len(header))]
