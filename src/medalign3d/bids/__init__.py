"""Cohorts as a BIDS dataset: participants, sessions and scans tables, images with side-cars, derivatives.

What leaves is decided by allow-lists: voxels, geometry, acquisition parameters and harmonized values. No date, path,
native free text or header comment is carried over.
"""

from __future__ import annotations

from medalign3d.bids.export import Options, Source, Summary, export, tables_of_ingest, tables_of_pipeline

__all__ = ["Options", "Source", "Summary", "export", "tables_of_ingest", "tables_of_pipeline"]
