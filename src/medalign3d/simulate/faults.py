# ruff: noqa: E501  (the table below is read as a table)
"""Planted faults and their answer key.

Every fault sits on an *extra* person beyond ``simulate.participants`` (one session, one image, unless said otherwise), so
faults never shrink the cohorts. ``faults.json`` lists what reading the tree must report: objects with ``reason``,
``level``, ``severity``, ``key`` (a dict), ``detail`` and ``stage`` (``ingest``, or ``harmonize`` where only the comparison
of cohorts can find it). An image that is dropped has exactly one row. The comparison with ``quarantine.parquet`` is on the
multiset of (reason, level, key_json); it holds for ``ingest.form: clean``.

Keys by level
    image     ``{"native_image_key": K}``
    visit     ``{"native_subject_id": S, "visit_code": V}``
    subject   ``{"native_subject_id": S}``
    table     ``{"file": base name of the table}``
    field     ``{"native_subject_id": S, "visit_code": V, "column": column name as in the table}``

======== ======================================================= ============================= ==================
cohort   native_image_key                                        native_subject_id             visit_code
======== ======================================================= ============================= ==================
ADNI     ``I<uid>``                                              PTID ``005_S_0223``           VISCODE2 ``m12``
NACC     ``mri1234/<base name of the .nii, with its extension>`` ``NACC123456``                NACCVNUM ``"1"``
         (locator without ``.zip`` and trailing ``ni``)
OASIS-1  ``OAS1_0001_MR1/<.hdr name without extension>``         ``OAS1_0001``                 ``MR1``
OASIS-2  ``OAS2_0001_MR1/mpr-1``                                 ``OAS2_0001``                 ``MR1``
OASIS-3  ``OAS30001_MR_d0129/<name without .nii.gz>``            ``OAS30001``                  ``d0129``
AIBL     ``I<uid>``                                              RID ``"123"``                 VISCODE ``m18``
MIRIAD   file name without ``.nii``                              ``miriad_188``                ``01``
======== ======================================================= ============================= ==================

======================= ======= ===== ========== ===========================================================================
reason                  cohort  level severity   what is planted
======================= ======= ===== ========== ===========================================================================
ID_UNPARSABLE           ADNI    image drop       the participant folder is ``941_S_12A4``, not a PTID; its ``I<uid>`` .nii is fine
ID_NOT_IN_CLINICAL      AIBL    image drop       a stray folder ``0151083`` with a good T1; no table and no image list knows it
IMAGE_WITHOUT_FILE      ADNI    image warn       a row of the collection list (T1, good PTID) whose image is not on disk
FILE_WITHOUT_RECORD     NACC    image drop       ``mri/mri####ni.zip`` with one good T1; no row of the MRI table has its locator
AMBIGUOUS_FILE          OASIS   image drop       OASIS-1 SUBJ_111 holds both ``_mpr_n3_`` and ``_mpr_n4_`` averages (different
                                                 voxels): both are dropped, two rows
DUPLICATE_KEY_IDENTICAL AIBL    visit warn       the same (RID, bl) row stands twice, equal, in ``aibl_apoeres``
DUPLICATE_KEY_CONFLICT  AIBL    visit null_field (RID, bl) stands twice in ``aibl_mmse`` with different MMSCORE: MMSE becomes
                                                 null, the image stays
DUPLICATE_IMAGE_BYTES   MIRIAD  image drop       ``…_01_MR_2.nii`` holds the voxels of ``…_01_MR_1.nii``; MR_1 is kept, MR_2 is the key
NOT_T1                  NACC    image drop       a session zip holds a second .nii, a FLAIR (2-D, 5 mm; SeriesDescription says
                                                 FLAIR); the T1 beside it is accepted
DERIVED_VARIANT         OASIS   image drop       an OASIS-1 session also holds ``T88_111/…_111_t88_masked_gfc``; the SUBJ_111
                                                 image is accepted
QC_FAIL                 ADNI    image drop       ``MAYOADIRL_MRI_IMAGEQC_12_08_15.csv``: the visit's only T1 has series_quality 4
NO_VISIT_IN_WINDOW      NACC    image drop       the only UDS visit is 900 days from the MRI; NACCMRDY 8888
NO_DIAGNOSIS            AIBL    image warn       DXCURREN is -4 at the image's visit; the image is kept without a label
NO_DIAGNOSIS            OASIS   image warn       not planted but by design, also with ``faults: false``: every accepted OASIS-1 image
                                                 with blank CDR (young people) gets such a row
DIAGNOSIS_OUT_OF_SCOPE  NACC    image warn       NACCUDSD is 8 (no such syndrome) at the matched visit; label null, image kept, no
                                                 NO_DIAGNOSIS row beside it
DIAGNOSIS_CONFLICT      ADNI    visit warn       ADNIMERGE.DX says CN, DXSUM.DIAGNOSIS says 2 (MCI) at bl; DXSUM is kept
AGE_MISSING             MIRIAD  image warn       the MR session's Age is blank and YOB too; image kept
AGE_OUT_OF_RANGE        OASIS   image null_field OASIS-1 Age is 190; age null, image kept, no AGE_MISSING row beside it
AGE_INCONSISTENT        AIBL    image warn       the image list's Age and the birth year of ptdemog differ by 12 years
SEX_MISSING             NACC    image drop       SEX is blank on all UDS rows of the person
SEX_CONFLICT            MIRIAD  image drop       the file name says M, the MR session and subject tables say F
DATE_UNPARSABLE         NACC    image warn       MRIMO 88, MRIDY 99; the date follows from NACCMRDY and the visit NACCVNUM
DATE_IN_FUTURE          ADNI    image drop       acquisition folder and collection list are dated 2091
VISCODE_UNKNOWN         ADNI    visit warn       a DXSUM row (alone) with VISCODE2 ``uns1``, two years after the scan; key visit_code ``uns1``
VALUE_OUT_OF_RANGE      OASIS   field null_field OASIS-2 MMSE is 45; column ``MMSE``
SENTINEL_UNKNOWN        NACC    field null_field NACCMMSE is -9: out of range and negative but not a code of the code book
                                                 (rule: out of range and negative = unknown sentinel, else VALUE_OUT_OF_RANGE)
IMAGE_UNREADABLE        ADNI    image drop       the .nii holds random bytes
IMAGE_NOT_3D            MIRIAD  image drop       the .nii is 4-D with two frames
IMAGE_TOO_THICK         ADNI    image drop       slices of 5 mm (and fewer than 60 of them)
IMAGE_TRUNCATED         OASIS   image drop       OASIS-2 ``mpr-1.nifti.img`` ends after half of its bytes
IMAGE_BAD_AFFINE        AIBL    image drop       .nii with sform_code 1 and a singular sform (third column zero), qform_code 0
IMAGE_EMPTY             MIRIAD  image drop       all voxels are zero
KNOWN_BAD_CONVERSION    NACC    image drop       the session's only .nii is named ``…_Eq_1.nii``
CSV_BAD_LINE            AIBL    table warn       an unquoted comma in one row of ``aibl_flutemeta_28-Apr-2015.csv`` (repaired by
                                                 joining two cells); key ``{"file": "aibl_flutemeta_28-Apr-2015.csv"}``
CROSS_COHORT_DUPLICATE  NACC    image drop       stage ``harmonize``: voxels equal those of an ADNI .nii (same shape and type); the
                                                 ADNI image stays, the NACC image is the key
======================= ======= ===== ========== ===========================================================================

Repeats of an acquisition (OASIS-2 ``mpr-2``, MIRIAD ``MR_2``) are good images: not faults and not in the key.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One row of the answer key."""

    reason: str
    level: str
    severity: str
    key: dict[str, str]
    detail: str = ""
    stage: str = "ingest"

    def as_dict(self) -> dict[str, Any]:
        """The row as it stands in ``faults.json``."""
        return asdict(self)


def image_fault(reason: str, key: str, severity: str = "drop", detail: str = "", stage: str = "ingest") -> Fault:
    """A fault of one image."""
    return Fault(reason, "image", severity, {"native_image_key": key}, detail, stage)


def visit_fault(reason: str, subject: str, visit_code: str, severity: str = "warn", detail: str = "") -> Fault:
    """A fault of one visit."""
    return Fault(reason, "visit", severity, {"native_subject_id": subject, "visit_code": visit_code}, detail)


def field_fault(reason: str, subject: str, visit_code: str, column: str, detail: str = "") -> Fault:
    """A fault of one value."""
    key = {"native_subject_id": subject, "visit_code": visit_code, "column": column}
    return Fault(reason, "field", "null_field", key, detail)


def table_fault(reason: str, file: str, detail: str = "") -> Fault:
    """A fault of one table."""
    return Fault(reason, "table", "warn", {"file": file}, detail)


# Which planted reasons need a person of their own, per cohort (OASIS: per release).
PLANTED: dict[str, tuple[str, ...]] = {
    "ADNI": (
        "ID_UNPARSABLE",
        "IMAGE_WITHOUT_FILE",
        "QC_FAIL",
        "DIAGNOSIS_CONFLICT",
        "DATE_IN_FUTURE",
        "VISCODE_UNKNOWN",
        "IMAGE_UNREADABLE",
        "IMAGE_TOO_THICK",
        "CROSS_COHORT_DUPLICATE",
    ),
    "NACC": (
        "FILE_WITHOUT_RECORD",
        "NOT_T1",
        "NO_VISIT_IN_WINDOW",
        "DIAGNOSIS_OUT_OF_SCOPE",
        "SEX_MISSING",
        "DATE_UNPARSABLE",
        "SENTINEL_UNKNOWN",
        "KNOWN_BAD_CONVERSION",
        "CROSS_COHORT_DUPLICATE",
    ),
    "OASIS-1": ("AMBIGUOUS_FILE", "DERIVED_VARIANT", "AGE_OUT_OF_RANGE"),
    "OASIS-2": ("VALUE_OUT_OF_RANGE", "IMAGE_TRUNCATED"),
    "AIBL": (
        "ID_NOT_IN_CLINICAL",
        "DUPLICATE_KEY_IDENTICAL",
        "DUPLICATE_KEY_CONFLICT",
        "NO_DIAGNOSIS",
        "AGE_INCONSISTENT",
        "IMAGE_BAD_AFFINE",
        "CSV_BAD_LINE",
    ),
    "MIRIAD": ("DUPLICATE_IMAGE_BYTES", "AGE_MISSING", "SEX_CONFLICT", "IMAGE_NOT_3D", "IMAGE_EMPTY"),
}
