"""Plain text for a terminal of 100 columns: wrapped paragraphs and tables whose cells wrap."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 100


def paragraph(text: str, indent: str = "", hanging: str | None = None) -> str:
    """``text`` wrapped to the terminal's width; ``hanging`` indents the lines after the first.

    >>> paragraph("a b", "  ")
    '  a b'
    """
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent if hanging is None else hanging,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def labelled(label: str, text: str, indent: str = "  ", label_width: int = 12) -> str:
    """One ``label  text`` line; a long text goes on below itself."""
    start = f"{indent}{label:<{label_width}} "
    return paragraph(text, start, " " * len(start))


def _cell(text: str, width: int) -> list[str]:
    """A cell's lines; words longer than the column (paths, hashes) are cut where they must be."""
    lines = textwrap.wrap(text, width, break_long_words=True, break_on_hyphens=False)
    return lines or [""]


def table(rows: Iterable[Sequence[str]], widths: Sequence[int], indent: str = "  ") -> str:
    """Rows in columns of fixed widths; a cell that is too long goes on below itself.

    >>> print(table([("a", "one two"), ("b", "three")], (3, 5)))
      a   one
          two
      b   three
    """
    lines = []
    for row in rows:
        cells = [_cell(text, width) for text, width in zip(row, widths, strict=True)]
        for number in range(max(len(cell) for cell in cells)):
            parts = [
                f"{cell[number] if number < len(cell) else '':<{width}}"
                for cell, width in zip(cells, widths, strict=True)
            ]
            lines.append((indent + " ".join(parts)).rstrip())
    return "\n".join(lines)


def count(number: int, singular: str, plural: str | None = None) -> str:
    """``1 image``, ``2 images``.

    >>> count(1, "image"), count(1200, "image"), count(0, "match", "matches")
    ('1 image', '1,200 images', '0 matches')
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
