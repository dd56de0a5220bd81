"""Reason codes, severities and levels of the quarantine: stable strings that other programs may rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from medalign3d.printing import table


class QuarantineReason(StrEnum):
    """Why a thing was kept out, emptied or remarked on."""

    ID_UNPARSABLE = "ID_UNPARSABLE"
    ID_NOT_IN_CLINICAL = "ID_NOT_IN_CLINICAL"
    IMAGE_WITHOUT_FILE = "IMAGE_WITHOUT_FILE"
    FILE_WITHOUT_RECORD = "FILE_WITHOUT_RECORD"
    AMBIGUOUS_FILE = "AMBIGUOUS_FILE"
    DUPLICATE_KEY_IDENTICAL = "DUPLICATE_KEY_IDENTICAL"
    DUPLICATE_KEY_CONFLICT = "DUPLICATE_KEY_CONFLICT"
    DUPLICATE_IMAGE_BYTES = "DUPLICATE_IMAGE_BYTES"
    NOT_T1 = "NOT_T1"
    DERIVED_VARIANT = "DERIVED_VARIANT"
    QC_FAIL = "QC_FAIL"
    NO_VISIT_IN_WINDOW = "NO_VISIT_IN_WINDOW"
    NO_DIAGNOSIS = "NO_DIAGNOSIS"
    DIAGNOSIS_OUT_OF_SCOPE = "DIAGNOSIS_OUT_OF_SCOPE"
    DIAGNOSIS_CONFLICT = "DIAGNOSIS_CONFLICT"
    AGE_MISSING = "AGE_MISSING"
    AGE_OUT_OF_RANGE = "AGE_OUT_OF_RANGE"
    AGE_INCONSISTENT = "AGE_INCONSISTENT"
    SEX_MISSING = "SEX_MISSING"
    SEX_CONFLICT = "SEX_CONFLICT"
    DATE_UNPARSABLE = "DATE_UNPARSABLE"
    DATE_IN_FUTURE = "DATE_IN_FUTURE"
    VISCODE_UNKNOWN = "VISCODE_UNKNOWN"
    VALUE_OUT_OF_RANGE = "VALUE_OUT_OF_RANGE"
    SENTINEL_UNKNOWN = "SENTINEL_UNKNOWN"
    IMAGE_UNREADABLE = "IMAGE_UNREADABLE"
    IMAGE_NOT_3D = "IMAGE_NOT_3D"
    IMAGE_TOO_THICK = "IMAGE_TOO_THICK"
    IMAGE_TRUNCATED = "IMAGE_TRUNCATED"
    IMAGE_BAD_AFFINE = "IMAGE_BAD_AFFINE"
    IMAGE_EMPTY = "IMAGE_EMPTY"
    KNOWN_BAD_CONVERSION = "KNOWN_BAD_CONVERSION"
    CSV_BAD_LINE = "CSV_BAD_LINE"
    CROSS_COHORT_DUPLICATE = "CROSS_COHORT_DUPLICATE"


class Severity(StrEnum):
    """What happened to the thing."""

    DROP = "drop"
    NULL_FIELD = "null_field"
    WARN = "warn"


class Level(StrEnum):
    """What the thing is."""

    IMAGE = "image"
    VISIT = "visit"
    SUBJECT = "subject"
    TABLE = "table"
    FIELD = "field"


@dataclass(frozen=True)
class Explanation:
    """What a reason code means for a person who misses something, and what can be done.

    Attributes
    ----------
    meaning
        One plain sentence.
    remedy
        What to do to get the thing into the result, or why nothing needs doing.
    """

    meaning: str
    remedy: str


_R = QuarantineReason

EXPLANATIONS: dict[QuarantineReason, Explanation] = {
    _R.ID_UNPARSABLE: Explanation(
        "No participant id can be read from the folder, file name or table row.",
        "Give the folder or file the name it has in the custodian's download (renamed and re-sorted copies lose the "
        "id); a table row needs the custodian's id in its id column.",
    ),
    _R.ID_NOT_IN_CLINICAL: Explanation(
        "The image is on disk, but no clinical table and no image list has its participant or session.",
        "Download the clinical tables again, from the same release as the images or a later one, and put them below "
        "the cohort's folder; check whether the folder is a stray one (a padded number, another cohort).",
    ),
    _R.IMAGE_WITHOUT_FILE: Explanation(
        "A list of the download names a T1-weighted image whose file is not below the cohort's folder, or is in an "
        "archive that is still packed.",
        "Download the rest of the collection and unpack it there, or ignore it if the image was left out on purpose.",
    ),
    _R.FILE_WITHOUT_RECORD: Explanation(
        "The image file or session archive is on disk, but no row of the session table has it. As a warning (AIBL): "
        "the image's visit has no row of the MMSE or CDR, which are all but complete there.",
        "Take images and tables from the same data freeze; a file of a later freeze needs that freeze's MRI table.",
    ),
    _R.AMBIGUOUS_FILE: Explanation(
        "Several different files claim to be this one image, and nothing tells which is right.",
        "Keep one of them: delete or move away the other copies (often two downloads unpacked into one folder).",
    ),
    _R.DUPLICATE_KEY_IDENTICAL: Explanation(
        "The same table row, or the same image packed and unpacked, is there more than once; one is kept.",
        "Nothing needs doing.",
    ),
    _R.DUPLICATE_KEY_CONFLICT: Explanation(
        "Several rows of one visit or session contradict each other; the values that differ are emptied (an image "
        "whose session rows differ is left out), because no row is right for standing first. As a warning: an image "
        "list gives the image to another participant and is not used, or the earliest answer on education counts.",
        "Look the rows up in the table, and ask the custodian or delete the wrong row in your copy.",
    ),
    _R.DUPLICATE_IMAGE_BYTES: Explanation(
        "The voxels equal those of another image. Of one participant, one copy is kept; between participants none "
        "is, because nobody can tell whose head it is.",
        "Between participants: compare with the custodian's record and download both images again.",
    ),
    _R.NOT_T1: Explanation(
        "The file is no T1-weighted volume: another sequence, a segmentation, a mask, or a localiser.",
        "Nothing needs doing. If it is a T1-weighted volume, its series description or sidecar says otherwise: "
        "download the image again with its original names.",
    ),
    _R.DERIVED_VARIANT: Explanation(
        "The file was derived from an acquisition of the same session, which is read instead.",
        "Nothing needs doing; `ingest.form: table1_emulation` counts derived files, too.",
    ),
    _R.QC_FAIL: Explanation(
        "The image failed quality control: the custodian's rating, or the check of its alignment with the template.",
        "Look at the picture that `medalign3d normalize IMAGE --out DIR` writes; the limit of the template check is "
        "`normalize.minimum_local_correlation`. A custodian's rating stays.",
    ),
    _R.NO_VISIT_IN_WINDOW: Explanation(
        "The participant is known, but has no clinical visit near enough in time to describe this scan.",
        "Use clinical tables that reach as far as the images (a later extract), or widen `ingest.match_window_days` "
        "for the cohort and accept records that are farther away.",
    ),
    _R.NO_DIAGNOSIS: Explanation(
        "The matched visit has no diagnosis. The image is kept without a label and is not part of any benchmark.",
        "Nothing needs doing unless the custodian's table has a diagnosis there: a missing one never becomes a class.",
    ),
    _R.DIAGNOSIS_OUT_OF_SCOPE: Explanation(
        "The diagnosis code or word is in no code book. The image is kept without a label.",
        "Check the code in the custodian's data dictionary; a code that is defined there belongs into the code book "
        "of `medalign3d.ehr.labels`.",
    ),
    _R.DIAGNOSIS_CONFLICT: Explanation(
        "Two sources disagree on the diagnosis, or it is implausible beside the CDR; the detail says which is kept.",
        "Look at both rows; leave the participant out of your analysis if in doubt.",
    ),
    _R.AGE_MISSING: Explanation(
        "No table gives the age at the scan. The image is kept unless `harmonize.require_age` is true.",
        "Add the table that holds age or birth (see `medalign3d doctor COHORT ROOT`).",
    ),
    _R.AGE_OUT_OF_RANGE: Explanation(
        "The age at the scan is impossible (outside 15 to 110 years) and was emptied; the image is kept.",
        "Look the birth date or age up in the table; a missing-value code is often taken for a year.",
    ),
    _R.AGE_INCONSISTENT: Explanation(
        "Two sources of the age differ by more than two years, or the age falls over time.",
        "Compare the rows; a wrong age often means that the image belongs to another participant.",
    ),
    _R.SEX_MISSING: Explanation(
        "No table, list or file name gives the participant's sex, which every record needs.",
        "Add the demographic table (see `medalign3d doctor COHORT ROOT`).",
    ),
    _R.SEX_CONFLICT: Explanation(
        "Two sources disagree on the participant's sex, which often means that image and record are of two people.",
        "Compare the rows with the custodian's record; do not use the image until it is settled.",
    ),
    _R.DATE_UNPARSABLE: Explanation(
        "A date cannot be read. Where another source gives it, that one is used; else the visit cannot be dated.",
        "Look at the cell or folder name; write dates as the custodian does (YYYY-MM-DD or M/D/YYYY).",
    ),
    _R.DATE_IN_FUTURE: Explanation(
        "The scan is dated in the future, so that no visit can be matched to it.",
        "Correct the date, or download the image and its list again.",
    ),
    _R.VISCODE_UNKNOWN: Explanation(
        "The visit code stands for no month, or is not that of the visit nearest to the scan; the visit is matched by "
        "its date alone.",
        "Nothing needs doing.",
    ),
    _R.VALUE_OUT_OF_RANGE: Explanation(
        "A value lies outside what its instrument can give and was emptied; everything else of the record is kept.",
        "Look at the cell; correct it only if the custodian confirms.",
    ),
    _R.SENTINEL_UNKNOWN: Explanation(
        "A cell holds text or a negative number that no code book lists as missing; it was emptied, not guessed.",
        "Look at the cell; if the data dictionary defines the code as missing, nothing needs doing.",
    ),
    _R.IMAGE_UNREADABLE: Explanation(
        "The image file or archive cannot be read: damaged, cut off, or of a format that is not supported.",
        "Download it again; convert enhanced (multi-frame) DICOM to NIfTI first.",
    ),
    _R.IMAGE_NOT_3D: Explanation(
        "The file is no single three-dimensional volume: one slice, several frames, or slices that do not fit.",
        "Check that the series was downloaded whole and is no functional, diffusion or localiser scan.",
    ),
    _R.IMAGE_TOO_THICK: Explanation(
        "The voxels are outside 0.4 to 2 mm, or an axis has fewer than 60 of them: not a volumetric scan.",
        "Nothing needs doing: such a scan cannot show small structures.",
    ),
    _R.IMAGE_TRUNCATED: Explanation(
        "The image ends early, or slices of the series are missing.",
        "Download or unpack the image again and compare its size with the custodian's.",
    ),
    _R.IMAGE_BAD_AFFINE: Explanation(
        "The header does not say how the volume lies in space (its affine is singular or contradicts the voxel size).",
        "Convert the image from DICOM again, or download another form of it.",
    ),
    _R.IMAGE_EMPTY: Explanation(
        "All voxels are equal, or values are not finite: there is no picture in the file.",
        "Download the image again.",
    ),
    _R.KNOWN_BAD_CONVERSION: Explanation(
        "The scan is on the public list of scans that do not convert properly, or its converter marked unequal "
        "slice distances (`_Eq_1`).",
        "Use another scan of the visit; the list is `src/medalign3d/cohorts/adni_known_bad.csv`.",
    ),
    _R.CSV_BAD_LINE: Explanation(
        "A line of a table does not fit its header (often an unquoted comma); it was repaired or left out. Or a "
        "metadata file (XML) is malformed; it was left out.",
        "Look at the line; download the table again, or quote the text in your copy.",
    ),
    _R.CROSS_COHORT_DUPLICATE: Explanation(
        "The same scan is in two cohorts; the cohort that comes first in `cohorts` of params.yaml keeps it, and the "
        "two participants are linked as one person. Or the image is of a centre that `ingest.exclude_nacc_adc` leaves "
        "out because its participants may be in another cohort too.",
        "Nothing needs doing; change the order of `cohorts` to keep the other copy.",
    ),
}
"""Plain words for every reason code."""

SEVERITY_WORDS: dict[Severity, str] = {
    Severity.DROP: "left out",
    Severity.NULL_FIELD: "kept, but a value was emptied",
    Severity.WARN: "kept, with a remark",
}
"""Plain words for every severity."""


def explain_reason(code: str) -> Explanation:
    """The explanation of a reason code; also for codes of later versions that this one does not know.

    >>> explain_reason("IMAGE_EMPTY").remedy
    'Download the image again.'
    """
    try:
        return EXPLANATIONS[QuarantineReason(code)]
    except (KeyError, ValueError):
        return Explanation(f"{code} is no reason code of this version.", "Read the detail of the row.")


def count_lines(found: int, accepted: int, quarantined: Mapping[str, int]) -> list[str]:
    """The count invariant of a cohort in words, with every reason and what it means.

    >>> for line in count_lines(3, 2, {"IMAGE_EMPTY": 1}):
    ...     print(line)
    3 images found = 2 accepted + 1 quarantined
         1  IMAGE_EMPTY              All voxels are equal, or values are not finite: there is no
                                     picture in the file.
    """
    lines = [f"{found:,} images found = {accepted:,} accepted + {sum(quarantined.values()):,} quarantined"]
    for code, number in sorted(quarantined.items(), key=lambda item: (-item[1], item[0])):
        lines.append(table([(f"{number:6,d}", code, explain_reason(code).meaning)], (7, 24, 66), indent=""))
    return lines


def reasons_markdown() -> str:
    """The page ``docs/quarantine_reasons.md``, made from :data:`EXPLANATIONS`."""
    lines = [
        "# Why something is not in the result",
        "",
        "<!-- Made by `python docs/write_reference.py` from src/medalign3d/cohorts/reasons.py; do not edit. -->",
        "",
        "Nothing is lost silently: for each cohort, images found = images accepted + images quarantined, and every",
        "row of `quarantine.parquet` has one of these codes, a detail, the file and the row. Its `severity` says",
        "what happened: " + "; ".join(f"`{severity}`: {words}" for severity, words in SEVERITY_WORDS.items()) + ".",
        "`medalign3d why-missing` without arguments counts them, and with a participant, image or file it says what",
        "happened to that one.",
        "",
        "| code | what it means | what to do |",
        "|---|---|---|",
    ]
    lines += [f"| `{code}` | {EXPLANATIONS[code].meaning} | {EXPLANATIONS[code].remedy} |" for code in QuarantineReason]
    return "\n".join(lines) + "\n"
