"""Write the reference pages that are made from code: ``python docs/write_reference.py``."""

from __future__ import annotations

from pathlib import Path

from medalign3d.cohorts.catalogue import catalogue_markdown
from medalign3d.cohorts.reasons import reasons_markdown
from medalign3d.ehr.label_rules import label_rules_markdown
from medalign3d.ehr.schema import data_dictionary_markdown

DOCS = Path(__file__).resolve().parent

PAGES = {
    "cohort_tables.md": catalogue_markdown,
    "quarantine_reasons.md": reasons_markdown,
    "label_rules.md": label_rules_markdown,
    "data_dictionary.md": data_dictionary_markdown,
}
"""File name to what makes it; ``tests/test_reference_pages.py`` checks that the files are current."""


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8", newline="\n")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
