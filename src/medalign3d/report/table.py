"""One table, written as tidy CSV, Markdown and LaTeX (and shown on the page and the terminal) from one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from medalign3d.files import atomic_path, write_text

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "—": "---",
    "≥": r"$\geq$",
    "<": r"$<$",
    ">": r"$>$",
    "†": r"$^\dagger$",
    "×": r"$\times$",
    "−": r"$-$",
    "λ": r"$\lambda$",
}


def latex_escape(text: str) -> str:
    """Escape what LaTeX would read as a command."""
    return "".join(_LATEX.get(character, character) for character in text)


def markdown_escape(text: str) -> str:
    """Escape what would end a Markdown table cell."""
    return text.replace("|", "\\|").replace("\n", " ")


@dataclass
class Table:
    """A table of text cells with headed sections, notes below, and the tidy numbers behind it.

    Parameters
    ----------
    name
        The file stem, e.g. ``table2``.
    title
        Printed above.
    header
        Column headings.
    rows
        Text cells, each row as long as ``header``.
    tidy
        One row per number; this is the CSV.
    sections
        Row index -> heading that stands before that row.
    notes
        Lines below; the last is the provenance.
    left
        How many leading columns are words (left-aligned).
    compact
        A narrower version for terminals.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    tidy: pd.DataFrame
    sections: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left: int = 1
    compact: Table | None = None

    def markdown(self) -> str:
        """GitHub Markdown."""
        lines = [f"## {self.title}", ""]
        lines.append("| " + " | ".join(markdown_escape(cell) for cell in self.header) + " |")
        lines.append("|" + "|".join("---" if i < self.left else "---:" for i in range(len(self.header))) + "|")
        for index, row in enumerate(self.rows):
            if index in self.sections:
                blanks = " |" * (len(self.header) - 1)
                lines.append(f"| **{markdown_escape(self.sections[index])}** |{blanks}")
            lines.append("| " + " | ".join(markdown_escape(cell) for cell in row) + " |")
        lines += ["", *(f"{note}  " for note in self.notes)]
        return "\n".join(lines).rstrip() + "\n"

    def latex(self) -> str:
        """A ``table*`` environment (packages booktabs and graphicx)."""
        columns = "l" * self.left + "r" * (len(self.header) - self.left)
        lines = [
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{latex_escape(self.title)}}}",
            rf"\label{{tab:{self.name}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(latex_escape(cell) for cell in self.header) + r" \\",
            r"\midrule",
        ]
        for index, row in enumerate(self.rows):
            if index in self.sections:
                if index:
                    lines.append(r"\addlinespace")
                heading = latex_escape(self.sections[index])
                lines.append(rf"\multicolumn{{{len(self.header)}}}{{l}}{{\textit{{{heading}}}}} \\")
            lines.append(" & ".join(latex_escape(cell) for cell in row) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}}", r"\par\smallskip\footnotesize"]
        lines += [latex_escape(note) + r"\\" for note in self.notes]
        lines.append(r"\end{table*}")
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """Aligned plain text for a terminal."""
        widths = [max(len(row[i]) for row in [self.header, *self.rows]) for i in range(len(self.header))]

        def line(cells: list[str]) -> str:
            parts = [
                cell.ljust(width) if i < self.left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return "  ".join(parts).rstrip()

        lines = [self.title, "", line(self.header), "  ".join("-" * width for width in widths)]
        for index, row in enumerate(self.rows):
            if index in self.sections:
                lines.append(f"[{self.sections[index]}]")
            lines.append(line(row))
        return "\n".join([*lines, "", *self.notes]) + "\n"

    def terminal_text(self) -> str:
        """Text for a terminal: the narrower version where there is one."""
        return (self.compact or self).text()

    def write(self, folder: Path) -> list[Path]:
        """Write ``<name>.csv``, ``.md`` and ``.tex`` into ``folder``, atomically; return their paths."""
        paths = [folder / f"{self.name}{suffix}" for suffix in (".csv", ".md", ".tex")]
        with atomic_path(paths[0]) as temporary:
            self.tidy.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
        write_text(paths[1], self.markdown())
        write_text(paths[2], self.latex())
        return paths
