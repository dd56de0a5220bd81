"""From a cohort's own diagnosis to the common labels ``dx3`` and ``dx2``, by closed code books: nothing is guessed.

``dx3``: NC (normal cognition), MCI (mild cognitive impairment), AD_DEM (dementia). ``dx2``: NonDEM, DEM.

===========  ==================================================================  =======  ======
cohort       native label                                                        dx3      dx2
===========  ==================================================================  =======  ======
ADNI         CN, NL, NC, SMC; ``... to CN``; DIAGNOSIS 1; DXCURREN 1;             NC       NonDEM
             DXCHANGE 1, 7, 9
ADNI         MCI, EMCI, LMCI; ``... to MCI``; DIAGNOSIS 2; DXCHANGE 2, 4, 8      MCI      NonDEM
ADNI         AD, Dementia; ``... to Dementia``; DIAGNOSIS 3; DXCHANGE 3, 5, 6    AD_DEM   DEM
NACC         NC (NACCUDSD 1)                                                     NC       NonDEM
NACC         IMCI (NACCUDSD 2): impaired, not MCI                                none     NonDEM
NACC         MCI (NACCUDSD 3)                                                    MCI      NonDEM
NACC         DEM (NACCUDSD 4)                                                    AD_DEM   DEM
OASIS        global CDR 0 / at least 0.5 at the session                          none     NonDEM / DEM
OASIS-3      also NC, MCI, AD_DEM of the UDS diagnosis form                      as said  by CDR
OASIS-2      Group Converted: a label of the person, not of a session            none     by CDR
AIBL         NC, MCI, AD (DXCURREN 1, 2, 3)                                      NC, ...  NonDEM, ...
MIRIAD       HC, AD                                                              NC, ...  NonDEM, ...
===========  ==================================================================  =======  ======

Sources: the custodians' data dictionaries (ADNI DATADIC; NACC researcher's data dictionary UDS; Marcus 2007 and 2010
for OASIS-1 and -2; LaMontagne 2019 for OASIS-3; Ellis 2009 for AIBL; Malone 2013 for MIRIAD).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from medalign3d.ehr.values import is_missing, number_or_none, text_or_none
from medalign3d.errors import InputError, ParameterError

DX3_CLASSES: tuple[str, ...] = ("NC", "MCI", "AD_DEM")
DX2_CLASSES: tuple[str, ...] = ("NonDEM", "DEM")
STABLE_DAYS = 1096
"""Three years: a conversion within it is progressive, stability must last at least as long (days)."""

_DX2_OF_DX3 = {"NC": "NonDEM", "MCI": "NonDEM", "AD_DEM": "DEM"}


class UnknownLabel(InputError):
    """A native diagnosis that is in no code book of its cohort."""


@dataclass(frozen=True)
class Label:
    """The common labels of one diagnosis; None where the native label does not decide one."""

    dx3: str | None
    dx2: str | None


def _of(dx3: str) -> Label:
    return Label(dx3, _DX2_OF_DX3[dx3])


_NONE = Label(None, None)
_NC, _MCI, _AD = _of("NC"), _of("MCI"), _of("AD_DEM")
_DEM, _NON_DEM = Label(None, "DEM"), Label(None, "NonDEM")

CODE_BOOKS: dict[str, dict[str, Label]] = {
    "ADNI": {
        "CN": _NC, "NL": _NC, "NC": _NC, "Normal": _NC, "SMC": _NC,
        "MCI": _MCI, "EMCI": _MCI, "LMCI": _MCI,
        "AD": _AD, "Dementia": _AD, "AD_DEM": _AD,
    },
    "NACC": {
        "NC": _NC,
        # Impaired but not MCI is neither of the three classes, and it is not dementia.
        "IMCI": _NON_DEM,
        "MCI": _MCI,
        "DEM": _AD, "Dementia": _AD,
    },
    "OASIS": {
        "DEM": _DEM, "Demented": _DEM,
        "Non-DEM": _NON_DEM, "NonDEM": _NON_DEM, "Nondemented": _NON_DEM,
        # The person's label; whether a session is before or after conversion is told by its CDR alone.
        "Converted": _NONE,
        "NC": _NC, "Cognitively normal": _NC,
        "MCI": _MCI,
        "AD_DEM": _AD, "AD Dementia": _AD, "AD": _AD, "Dementia": _AD,
        "uncertain dementia": _NONE, "0.5 in memory only": _NONE,
    },
    "AIBL": {"NC": _NC, "HC": _NC, "MCI": _MCI, "AD": _AD},
    "MIRIAD": {"HC": _NC, "NC": _NC, "AD": _AD},
    "IXI": {},
}  # fmt: skip
"""Cohort to native label to common labels. Labels are compared without regard to case and outer blanks."""

CODED_COLUMNS: dict[tuple[str, str], dict[int, str | None]] = {
    ("ADNI", "DIAGNOSIS"): {1: "CN", 2: "MCI", 3: "Dementia"},
    ("ADNI", "DXCURREN"): {1: "CN", 2: "MCI", 3: "Dementia", -4: None, -1: None},
    # The destination of the change counts.
    ("ADNI", "DXCHANGE"): {
        1: "CN", 7: "CN", 9: "CN", 2: "MCI", 4: "MCI", 8: "MCI", 3: "Dementia", 5: "Dementia", 6: "Dementia",
        -4: None, -1: None,
    },
    ("NACC", "NACCUDSD"): {1: "NC", 2: "IMCI", 3: "MCI", 4: "DEM"},
    ("AIBL", "DXCURREN"): {1: "NC", 2: "MCI", 3: "AD", 0: None, 7: None, -4: None},
}  # fmt: skip
"""Numeric diagnosis columns: (cohort, column) to code to native label; None is a code that means "no diagnosis"."""

_FOLDED = {cohort: {label.casefold(): value for label, value in book.items()} for cohort, book in CODE_BOOKS.items()}


def native_of_code(dataset: str, column: str, code: object) -> str | None:
    """The native label that a numeric diagnosis code stands for; None where the code says "no diagnosis" or is missing.

    Raises
    ------
    UnknownLabel
        When the column or the code is in no code book.

    Examples
    --------
    >>> native_of_code("ADNI", "DXCHANGE", "5"), native_of_code("AIBL", "DXCURREN", 7)
    ('Dementia', None)
    """
    book = CODED_COLUMNS.get((dataset, column.upper()))
    if book is None:
        raise UnknownLabel(
            "no code book for this diagnosis column",
            where=f"{dataset}, column {column}",
            expected=", ".join(f"{cohort} {name}" for cohort, name in CODED_COLUMNS),
        )
    if is_missing(code):
        return None
    number = number_or_none(code)
    if number is None or int(number) != number or int(number) not in book:
        raise UnknownLabel(
            "unknown diagnosis code",
            where=f"{dataset}, column {column}",
            found=repr(code),
            expected=f"one of {sorted(book)}",
            remedy="add the code to the code book if the custodian's data dictionary defines it",
        )
    return book[int(number)]


def label_of(
    dataset: str,
    native: object,
    *,
    cdr_global: object = None,
    dementia_etiology: object = None,
    nacc_dementia_policy: str = "any_cause",
) -> Label:
    """The common labels of a visit.

    Parameters
    ----------
    dataset
        The cohort.
    native
        The cohort's own label at this visit; missing where there is none. ``COLUMN=code`` is read by the code book of
        that column.
    cdr_global
        Global CDR at the same visit; it defines ``dx2`` in OASIS (0: NonDEM, 0.5 and above: DEM) and is ignored
        elsewhere: a diagnosis is never derived from a score.
    dementia_etiology
        ``AD``, ``other`` or ``unknown``.
    nacc_dementia_policy
        ``any_cause``: every NACC dementia is AD_DEM. ``ad_only``: only with etiology AD; others have no ``dx3``.

    Raises
    ------
    UnknownLabel
        When the label is not in the cohort's code book.

    Examples
    --------
    >>> label_of("ADNI", "MCI to Dementia"), label_of("NACC", "IMCI")
    (Label(dx3='AD_DEM', dx2='DEM'), Label(dx3=None, dx2='NonDEM'))
    >>> label_of("OASIS", "Converted", cdr_global=0.5)
    Label(dx3=None, dx2='DEM')
    """
    if dataset not in CODE_BOOKS:
        raise UnknownLabel("no code book for this cohort", found=dataset, expected=f"one of {sorted(CODE_BOOKS)}")
    if nacc_dementia_policy not in ("any_cause", "ad_only"):
        raise ParameterError(
            "unknown NACC dementia policy", found=repr(nacc_dementia_policy), expected="any_cause or ad_only"
        )
    label = _native_label(dataset, text_or_none(native))
    if dataset == "OASIS":
        cdr = number_or_none(cdr_global)
        if cdr is not None:
            return Label(label.dx3, "NonDEM" if cdr == 0 else "DEM")
    if dataset == "NACC" and nacc_dementia_policy == "ad_only":
        etiology = text_or_none(dementia_etiology)
        if label.dx3 == "AD_DEM" and etiology != "AD":
            return Label(None, label.dx2)
    return label


def _native_label(dataset: str, native: str | None) -> Label:
    if native is None:
        return _NONE
    coded = re.fullmatch(r"([A-Za-z]\w*)\s*=\s*(-?\d+)(?:\.0*)?", native)
    if coded:
        resolved = native_of_code(dataset, coded[1], coded[2])
        return _NONE if resolved is None else _FOLDED[dataset][resolved.casefold()]
    name = native.casefold()
    if dataset == "ADNI":
        # Older exports name the change; the destination is the diagnosis. Both ends must be labels of the code book.
        start, separator, end = name.partition(" to ")
        if separator and start.strip() in _FOLDED["ADNI"]:
            name = end.strip()
    if name not in _FOLDED[dataset]:
        raise UnknownLabel(
            "unknown diagnosis label",
            where=dataset,
            found=repr(native),
            expected=f"one of {list(CODE_BOOKS[dataset])}" if CODE_BOOKS[dataset] else "no diagnosis in this cohort",
            remedy="add the label to the cohort's code book if the custodian's data dictionary defines it",
        )
    return _FOLDED[dataset][name]


def mci_stage(dx3: object, dx_subject_level: object, release: object = None) -> str | None:
    """EMCI or LMCI, where the matched visit is MCI and the enrolment label tells the stage.

    Participants of the first ADNI phase with MCI are late MCI by its protocol. Later phases without the distinction
    give None; the stage is never recomputed from scores.

    >>> mci_stage("MCI", "EMCI"), mci_stage("NC", "EMCI"), mci_stage("MCI", "MCI", "ADNI1"), mci_stage("MCI", "CN")
    ('EMCI', None, 'LMCI', None)
    """
    if text_or_none(dx3) != "MCI":
        return None
    level = (text_or_none(dx_subject_level) or "").upper()
    if level in ("EMCI", "LMCI"):
        return level
    return "LMCI" if level == "MCI" and (text_or_none(release) or "").upper() == "ADNI1" else None


@dataclass(frozen=True)
class Course:
    """What became of a person with MCI.

    ``course`` is ``sMCI``, ``pMCI`` or None, and then ``reason`` says why: ``censored_lt_36m``, ``late_converter``,
    ``reverted_to_cn`` or ``unstable_conversion``. Days count from the visit matched to the scan.
    """

    course: str | None
    reason: str | None
    days_to_dementia: int | None
    followup_days: int


def mci_course(day: int, visits: Iterable[tuple[int, str | None]]) -> Course:
    """Stable or progressive MCI from the visits after day ``day``.

    pMCI: the first later dementia is at most 1096 days away and the last two later diagnoses are not both free of
    dementia. sMCI: no later visit has dementia or normal cognition and the last diagnosed visit is at least 1096 days
    later.

    Parameters
    ----------
    day
        Day of the visit that was matched to the scan, on any scale.
    visits
        All visits of the person as (day on the same scale, dx3 or None); earlier and undiagnosed ones are ignored.

    Examples
    --------
    >>> mci_course(0, [(400, "MCI"), (800, "AD_DEM")])
    Course(course='pMCI', reason=None, days_to_dementia=800, followup_days=800)
    >>> mci_course(0, [(400, "MCI"), (1200, "MCI")]).course, mci_course(0, [(400, "MCI")]).reason
    ('sMCI', 'censored_lt_36m')
    """
    later = sorted((when - day, dx3) for when, dx3 in visits if when > day and dx3 is not None)
    followup = later[-1][0] if later else 0
    dementia = next((days for days, dx3 in later if dx3 == "AD_DEM"), None)
    if dementia is not None:
        if dementia > STABLE_DAYS:
            return Course(None, "late_converter", dementia, followup)
        last_two = [dx3 for _, dx3 in later[-2:]]
        if "AD_DEM" not in last_two:
            return Course(None, "unstable_conversion", dementia, followup)
        return Course("pMCI", None, dementia, followup)
    if any(dx3 == "NC" for _, dx3 in later):
        return Course(None, "reverted_to_cn", None, followup)
    if followup >= STABLE_DAYS:
        return Course("sMCI", None, None, followup)
    return Course(None, "censored_lt_36m", None, followup)


def derived_educ_code(educ_years: object) -> int | None:
    """The five-level education code of OASIS-1 from years: below 12: 1, 12: 2, 13-15: 3, 16: 4, 17 and more: 5."""
    years = number_or_none(educ_years)
    if years is None:
        return None
    return 1 + sum(years >= limit for limit in (12, 13, 16, 17))
