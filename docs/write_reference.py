"""Write the reference pages that are made from code: ``python docs/write_reference.py``."""

from __future__ import annotations

from pathlib import Path

from medalign3d.cohorts.reasons import reasons_markdown

DOCS = Path(__file__).resolve().parent

PAGES = {"quarantine_reasons.md": reasons_markdown}
"""File name to what makes it; ``tests/test_reference_pages.py`` checks that the files are current."""


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8", newline="\n")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
