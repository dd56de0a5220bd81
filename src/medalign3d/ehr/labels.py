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
from dataclasses import dataclass, field

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
    """The common labels of one diagnosis; None where the native label does not decide one.

    ``dx3_rule`` and ``dx2_rule`` are ids of :data:`medalign3d.ehr.label_rules.LABEL_RULES`.
    """

    dx3: str | None
    dx2: str | None
    dx3_rule: str = field(default="dx3.none.no_diagnosis", compare=False, repr=False)
    dx2_rule: str = field(default="dx2.none.no_diagnosis", compare=False, repr=False)


NO_LABEL = Label(None, None)
UNKNOWN = Label(None, None, "dx3.none.unknown_label", "dx2.none.unknown_label")


def _of(dx3: str, rule: str) -> Label:
    return Label(dx3, _DX2_OF_DX3[dx3], f"dx3.{rule}", "dx2.from_dx3")


def _oasis(dx3: str | None, rule: str) -> Label:
    # In OASIS dx2 is the CDR of the session and nothing else: by diagnosis, an MCI with CDR 0.5 would be NonDEM.
    return Label(dx3, None, f"dx3.{rule}", "dx2.none.oasis_no_cdr")


def _book(*entries: tuple[Label, str]) -> dict[str, Label]:
    return {name.strip(): label for label, names in entries for name in names.split(",")}


_OASIS_CDR = {
    "NonDEM": Label(None, "NonDEM", "dx3.none.oasis_cdr_only", "dx2.oasis.cdr_0"),
    "DEM": Label(None, "DEM", "dx3.none.oasis_cdr_only", "dx2.oasis.cdr_half_or_more"),
}

CODE_BOOKS: dict[str, dict[str, Label]] = {
    "ADNI": _book(
        (_of("NC", "adni.nc"), "CN, NL, NC, Normal, SMC"),
        (_of("MCI", "adni.mci"), "MCI, EMCI, LMCI"),
        (_of("AD_DEM", "adni.dementia"), "AD, Dementia, AD_DEM"),
    ),
    "NACC": _book(
        (_of("NC", "nacc.nc"), "NC"),
        # Impaired but not MCI is neither of the three classes, and it is not dementia.
        (Label(None, "NonDEM", "dx3.none.nacc_imci", "dx2.nacc.imci"), "IMCI"),
        (_of("MCI", "nacc.mci"), "MCI"),
        (_of("AD_DEM", "nacc.dementia_any_cause"), "DEM, Dementia"),
    ),
    "OASIS": _book(
        # What readers call a session by its own CDR.
        (_OASIS_CDR["DEM"], "DEM"),
        (_OASIS_CDR["NonDEM"], "Non-DEM, NonDEM"),
        # The person's labels in OASIS-2; what a session is, its CDR alone says.
        (_oasis(None, "none.oasis_group"), "Demented, Nondemented, Converted"),
        (_oasis("NC", "oasis3.nc"), "NC, Cognitively normal"),
        (_oasis("MCI", "oasis3.mci"), "MCI"),
        (_oasis("AD_DEM", "oasis3.dementia"), "AD_DEM, AD Dementia, AD, Dementia"),
        (_oasis(None, "none.oasis3_undecided"), "uncertain dementia, 0.5 in memory only"),
    ),
    "AIBL": _book((_of("NC", "aibl.nc"), "NC, HC"), (_of("MCI", "aibl.mci"), "MCI"), (_of("AD_DEM", "aibl.ad"), "AD")),
    "MIRIAD": _book((_of("NC", "miriad.hc"), "HC, NC"), (_of("AD_DEM", "miriad.ad"), "AD")),
    "IXI": {},
}
"""Cohort to native label to common labels. Labels are compared without regard to case and outer blanks."""

_NO_CODE = {-4: None, -1: None}
CODED_COLUMNS: dict[tuple[str, str], dict[int, str | None]] = {
    ("ADNI", "DIAGNOSIS"): {1: "CN", 2: "MCI", 3: "Dementia", **_NO_CODE},
    ("ADNI", "DXCURREN"): {1: "CN", 2: "MCI", 3: "Dementia", **_NO_CODE},
    # The destination of the change counts.
    ("ADNI", "DXCHANGE"): {
        1: "CN", 7: "CN", 9: "CN", 2: "MCI", 4: "MCI", 8: "MCI", 3: "Dementia", 5: "Dementia", 6: "Dementia",
        **_NO_CODE,
    },
    ("ADNI", "DXNORM"): {1: "CN", 0: None, **_NO_CODE},
    ("ADNI", "DXMCI"): {1: "MCI", 0: None, **_NO_CODE},
    ("ADNI", "DXAD"): {1: "Dementia", 0: None, **_NO_CODE},
    ("NACC", "NACCUDSD"): {1: "NC", 2: "IMCI", 3: "MCI", 4: "DEM", -4: None, 9: None},
    ("AIBL", "DXCURREN"): {1: "NC", 2: "MCI", 3: "AD", 0: None, 7: None, **_NO_CODE},
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
            by_cdr = _OASIS_CDR["NonDEM" if cdr == 0 else "DEM"]
            dx3_rule = by_cdr.dx3_rule if label.dx3_rule == NO_LABEL.dx3_rule else label.dx3_rule
            return Label(label.dx3, by_cdr.dx2, dx3_rule, by_cdr.dx2_rule)
        return _NO_OASIS_LABEL if label is NO_LABEL else label
    if dataset == "NACC" and nacc_dementia_policy == "ad_only" and label.dx3 == "AD_DEM":
        if text_or_none(dementia_etiology) == "AD":
            return _of("AD_DEM", "nacc.dementia_of_alzheimer")
        return Label(None, "DEM", "dx3.none.nacc_other_cause", "dx2.nacc.other_cause")
    return label


_NO_OASIS_LABEL = Label(None, None, "dx3.none.no_diagnosis", "dx2.none.oasis_no_cdr")


def _native_label(dataset: str, native: str | None) -> Label:
    if native is None:
        return NO_LABEL
    coded = re.fullmatch(r"([A-Za-z]\w*)\s*=\s*(-?\d+)(?:\.0*)?", native)
    if coded:
        resolved = native_of_code(dataset, coded[1], coded[2])
        return NO_LABEL if resolved is None else _FOLDED[dataset][resolved.casefold()]
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


@dataclass(frozen=True)
class Stage:
    """EMCI, LMCI or None, and the id of the rule that says so."""

    stage: str | None
    rule: str


def mci_stage(dx_subject_level: object, *, enrolled_in_adni1: bool = False, left_mci: bool = False) -> Stage:
    """Early or late MCI of a person in ADNI who has MCI at the matched visit: from the enrolment label alone.

    Participants of the first phase with MCI are late MCI by its protocol. Later phases without the distinction give
    None; the stage is never recomputed from scores.

    Parameters
    ----------
    dx_subject_level
        The enrolment label (``DX_bl``).
    enrolled_in_adni1
        Whether the person entered in the first phase.
    left_mci
        Whether the person had another diagnosis than MCI between enrolment and this visit: the enrolment label then
        says nothing about the present MCI.

    Examples
    --------
    >>> mci_stage("EMCI").stage, mci_stage("MCI", enrolled_in_adni1=True).stage, mci_stage("CN").stage
    ('EMCI', 'LMCI', None)
    """
    level = (text_or_none(dx_subject_level) or "").upper()
    if level in ("EMCI", "LMCI"):
        return Stage(None, "mci_stage.none.left_mci") if left_mci else Stage(level, "mci_stage.enrolment")
    if level == "MCI" and enrolled_in_adni1:
        return Stage(None, "mci_stage.none.left_mci") if left_mci else Stage("LMCI", "mci_stage.adni1")
    return Stage(None, "mci_stage.none.no_split")


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
    decided_by: int | None = field(default=None, repr=False)
    """Days to the later visit that decided: the first with dementia or normal cognition, else the last diagnosed."""

    @property
    def rule(self) -> str:
        """Id of the rule of :data:`medalign3d.ehr.label_rules.LABEL_RULES`."""
        return {"pMCI": "mci_course.progressive", "sMCI": "mci_course.stable"}.get(
            str(self.course), f"mci_course.none.{self.reason}"
        )


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
        All visits of the person as (day on the same scale, dx3 or None); earlier and undiagnosed ones are ignored. A
        diagnosis that is none of the three classes (IMCI) counts as a diagnosis without dementia or normal cognition.

    Examples
    --------
    >>> mci_course(0, [(400, "MCI"), (800, "AD_DEM")])
    Course(course='pMCI', reason=None, days_to_dementia=800, followup_days=800)
    >>> mci_course(0, [(400, "MCI"), (1200, "MCI")]).course, mci_course(0, [(400, "MCI")]).reason
    ('sMCI', 'censored_lt_36m')
    """
    later = sorted((when - day, dx3) for when, dx3 in visits if when > day and dx3 is not None)
    followup = later[-1][0] if later else 0
    last = later[-1][0] if later else None
    dementia = next((days for days, dx3 in later if dx3 == "AD_DEM"), None)
    if dementia is not None:
        if dementia > STABLE_DAYS:
            return Course(None, "late_converter", dementia, followup, dementia)
        if all(dx3 != "AD_DEM" for _, dx3 in later[-2:]):
            return Course(None, "unstable_conversion", dementia, followup, last)
        return Course("pMCI", None, dementia, followup, dementia)
    normal = next((days for days, dx3 in later if dx3 == "NC"), None)
    if normal is not None:
        return Course(None, "reverted_to_cn", None, followup, normal)
    if followup >= STABLE_DAYS:
        return Course("sMCI", None, None, followup, last)
    return Course(None, "censored_lt_36m", None, followup, last)


def derived_educ_code(educ_years: object) -> int | None:
    """The five-level education code of OASIS-1 from years: below 12: 1, 12: 2, 13-15: 3, 16: 4, 17 and more: 5."""
    years = number_or_none(educ_years)
    if years is None:
        return None
    return 1 + sum(years >= limit for limit in (12, 13, 16, 17))
