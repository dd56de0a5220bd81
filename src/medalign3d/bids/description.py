"""What a dataset says of itself: cohorts, terms, how to acknowledge and cite them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medalign3d import __version__

BIDS_VERSION = "1.10.1"
GENERATOR = "MedAlign-3D"
CODE_URL = "https://github.com/medalign3d/medalign3d"


@dataclass(frozen=True)
class CohortTerms:
    """A cohort's full name, terms of use, acknowledgement, references and address."""

    title: str
    authors: tuple[str, ...]
    terms: str
    acknowledge: str
    references: tuple[str, ...]
    url: str


COHORTS: dict[str, CohortTerms] = {
    "ADNI": CohortTerms(
        "Alzheimer's Disease Neuroimaging Initiative",
        ("Alzheimer's Disease Neuroimaging Initiative", "M. W. Weiner"),
        "ADNI Data Use Agreement; must not be redistributed",
        "Follow the ADNI data sharing and publication policy: name ADNI as the source of the data, list it among the "
        "authors as its policy asks, and carry its current acknowledgement of funding.",
        ("https://adni.loni.usc.edu", "https://doi.org/10.1002/jmri.21049"),
        "https://adni.loni.usc.edu",
    ),
    "NACC": CohortTerms(
        "National Alzheimer's Coordinating Center",
        ("National Alzheimer's Coordinating Center", "Alzheimer's Disease Research Centers"),
        "NACC Data Use Agreement; must not be redistributed; small cells must be suppressed in publications",
        "Carry the acknowledgement of NACC and of the contributing research centers in its current wording "
        "(naccdata.org).",
        ("https://naccdata.org",),
        "https://naccdata.org",
    ),
    "OASIS": CohortTerms(
        "Open Access Series of Imaging Studies",
        ("D. S. Marcus", "P. J. LaMontagne", "R. L. Buckner", "J. C. Morris"),
        "OASIS Data Use Agreement (oasis-brains.org)",
        "Acknowledge OASIS-1, OASIS-2 or OASIS-3, whichever is used, in the wording of oasis-brains.org.",
        (
            "https://doi.org/10.1162/jocn.2007.19.9.1498",
            "https://doi.org/10.1162/jocn.2009.21407",
            "https://doi.org/10.1101/2019.12.13.19014902",
        ),
        "https://www.oasis-brains.org",
    ),
    "AIBL": CohortTerms(
        "Australian Imaging, Biomarkers and Lifestyle study of ageing",
        ("AIBL research group", "K. A. Ellis"),
        "AIBL data use agreement (LONI Image and Data Archive); must not be redistributed",
        "Name the AIBL study group (aibl.org.au) as the source of the data in the wording of its agreement.",
        ("https://doi.org/10.1017/S1041610209009405",),
        "https://aibl.org.au",
    ),
    "MIRIAD": CohortTerms(
        "Minimal Interval Resonance Imaging in Alzheimer's Disease",
        ("I. B. Malone", "N. C. Fox"),
        "MIRIAD terms of use (University College London); must not be redistributed",
        "Acknowledge MIRIAD in the wording of its data page and cite Malone et al. 2013.",
        ("https://doi.org/10.1016/j.neuroimage.2012.12.044",),
        "https://www.ucl.ac.uk/drc",
    ),
    "IXI": CohortTerms(
        "Information eXtraction from Images",
        ("IXI project", "Imperial College London"),
        "CC BY-SA 3.0",
        "Name the IXI dataset, brain-development.org.",
        ("https://brain-development.org/ixi-dataset/",),
        "https://brain-development.org/ixi-dataset/",
    ),
}
SIMULATED_AUTHORS = ["The MedAlign-3D developers", "International Consortium for Brain Mapping (template)"]
SIMULATED_TERMS = "Simulated by MedAlign-3D (Apache-2.0) from the MNI152 template (ICBM; free to use with its notice)"


def _names(cohorts: Sequence[str], simulated: bool) -> str:
    return ", ".join(f"SIM-{cohort}" if simulated else cohort for cohort in cohorts)


def dataset_name(cohorts: Sequence[str], simulated: bool) -> str:
    """The dataset's name.

    >>> dataset_name(["OASIS"], True)
    'SIMULATED people: SIM-OASIS (T1-weighted MRI)'
    """
    return f"{'SIMULATED people: ' if simulated else ''}{_names(cohorts, simulated)} (T1-weighted MRI)"


def dataset_description(cohorts: Sequence[str], simulated: bool, old: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``dataset_description.json``; what somebody else wrote into ``old`` stays."""
    terms = [COHORTS[cohort] for cohort in cohorts]
    ours: dict[str, Any] = {
        "Name": dataset_name(cohorts, simulated),
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        "License": SIMULATED_TERMS
        if simulated
        else "; ".join(f"{c}: {t.terms}" for c, t in zip(cohorts, terms, strict=True)),
        "Authors": SIMULATED_AUTHORS if simulated else [name for t in terms for name in t.authors],
        "HowToAcknowledge": "Simulated: say so wherever a figure or number made of it is shown."
        if simulated
        else " ".join(f"{cohort}: {t.acknowledge}" for cohort, t in zip(cohorts, terms, strict=True)),
        "ReferencesAndLinks": [CODE_URL] if simulated else [link for t in terms for link in t.references],
        "GeneratedBy": [generator("medalign3d bids")],
        "SourceDatasets": [{"URL": CODE_URL}] if simulated else [{"URL": t.url} for t in terms],
    }
    if simulated:
        ours["Simulated"] = True
    return _keep_foreign(ours, old)


def generator(command: str) -> dict[str, str]:
    """The entry of this software in ``GeneratedBy``."""
    return {"Name": GENERATOR, "Version": __version__, "Description": command, "CodeURL": CODE_URL}


def made_here(description: Mapping[str, Any]) -> bool:
    """Whether a dataset's description was written by this software."""
    makers = description.get("GeneratedBy")
    return isinstance(makers, list) and any(isinstance(m, dict) and m.get("Name") == GENERATOR for m in makers)


def _keep_foreign(ours: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    if not old:
        return ours
    makers = old.get("GeneratedBy")
    listed = makers if isinstance(makers, list) else []
    others = [m for m in listed if not (isinstance(m, dict) and m.get("Name") == GENERATOR)]
    if made_here(old) and not others:
        return {**old, **ours}
    # Somebody else's dataset keeps its own words; only what is missing is added.
    return {**ours, **old, "GeneratedBy": [*others, *ours["GeneratedBy"]]}


def derivative_description(cohorts: Sequence[str], simulated: bool) -> dict[str, Any]:
    """The content of the ``dataset_description.json`` of the normalized volumes."""
    description: dict[str, Any] = {
        "Name": f"{dataset_name(cohorts, simulated)}, normalized to MNI space",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": SIMULATED_TERMS
        if simulated
        else "; ".join(f"{cohort}: {COHORTS[cohort].terms}" for cohort in cohorts),
        "Authors": SIMULATED_AUTHORS,
        "GeneratedBy": [generator("medalign3d bids --derivatives")],
        "SourceDatasets": [{"URL": "../../"}],
        "DatasetLinks": {"raw": "../../"},
    }
    if simulated:
        description["Simulated"] = True
    return description


README_MARK = "Written by medalign3d bids."


def readme(cohorts: Sequence[str], simulated: bool) -> str:
    """The dataset's README."""
    lines = [f"# {dataset_name(cohorts, simulated)}", "", README_MARK, ""]
    if simulated:
        lines += [
            "**SIMULATED.** No person in this dataset exists: scans and records come from the simulator of",
            "MedAlign-3D, in the layouts of the cohorts named above. They say nothing about patients. Never mix them",
            "with real people.",
            "",
        ]
    else:
        lines += ["## Terms", ""]
        for cohort in cohorts:
            terms = COHORTS[cohort]
            lines += [f"- **{cohort}**, {terms.title} ({terms.url}): {terms.terms}. {terms.acknowledge}"]
        lines += [
            "",
            "Participant and session labels hold the custodians' own ids, and scans are not defaced: the dataset is",
            "for people who have the custodians' permission and must not be passed on without it.",
            "",
        ]
    lines += [
        "## What is in it",
        "",
        "- T1-weighted volumes with the voxels of the source files; `acq-averaged`, `acq-processed` and `acq-derived`",
        "  mark what is not as acquired. Headers are new and hold geometry only. Where `affine_source` is `assumed`,",
        "  the source had no trustworthy orientation and the documented one was written.",
        "- `sessions.tsv`: harmonized clinical values of the visit that was matched to the session's first image.",
        "  Where a session holds images of several visits, `scans.tsv` names each image's visit. A missing value is",
        "  `n/a`.",
        "- No dates. Ages of 89 and over are given as 89. The columns `mci_course`, `mci_course_reason`,",
        "  `days_to_dementia` and `followup_days` look into the future: never use them as input of a prediction.",
        "- `person_id` in `participants.tsv` links participants who are one person: split by it.",
        "- `medalign3d_not_exported.tsv`, where present: images that could not be exported, with the reason.",
        "",
    ]
    return "\n".join(lines)
