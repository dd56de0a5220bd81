"""What a user may mean by an id: native subjects, sessions and images in the spellings in which they are written down.

Ids are always compared whole: RID 10 is not 100, and OAS1_0001 is not OAS1_0001x.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

IMAGE_SUFFIX = re.compile(r"(?:\.nifti)?\.(?:nii|hdr|img|zip|dcm|ima)(?:\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Meaning:
    """One way to understand a query.

    Attributes
    ----------
    kind
        ``subject`` (a participant), ``session``, ``image`` (a native image key or number) or ``image_id``.
    cohort
        The only cohort that it can be in; None when any.
    subject
        Native subject id, as the custodian writes it; for ADNI a bare ``RID<n>`` when the site is not known.
    session
        Session within the subject, or the session archive of NACC.
    key
        Native image key, or its number.
    """

    kind: str
    cohort: str | None
    subject: str | None = None
    session: str | None = None
    key: str | None = None

    @property
    def words(self) -> str:
        """The meaning in words."""
        where = self.cohort or "any cohort"
        if self.kind == "subject":
            name = self.subject or ""
            if name.startswith("RID"):
                name = f"RID {name[3:]}"
            return f"{where} participant {name}"
        if self.kind == "session":
            return f"{where} session {' '.join(part for part in (self.subject, self.session) if part)}"
        if self.kind == "image_id":
            return f"image id {self.key}"
        return f"{where} image {self.key}"

    def is_subject(self, native_subject_id: str) -> bool:
        """Whether a native subject id is the one that is meant."""
        if self.subject is None:
            return False
        if self.subject.startswith("RID"):
            rid = native_subject_id.rsplit("_", 1)[-1].removeprefix("RID")
            return rid.isdigit() and int(rid) == int(self.subject[3:])
        return native_subject_id.casefold() == self.subject.casefold()


def meanings(query: str, cohort: str | None = None) -> list[Meaning]:
    """Every way to understand a query, the most special first; only those of ``cohort`` when it is given.

    >>> [m.words for m in meanings("sub-ADNI005S0223")]
    ['ADNI participant 005_S_0223', 'any cohort image sub-ADNI005S0223']
    >>> [m.words for m in meanings("RID 0223")][:1], [m.words for m in meanings("AIBL 10")][:1]
    (['ADNI participant RID 223'], ['AIBL participant 10'])
    >>> meanings("OAS1_0001_MR1")[0].session, meanings("OAS1_0001x")[0].kind
    ('MR1', 'image')
    """
    text = query.strip()
    found: list[Meaning] = []
    for name, parse in _PARSERS.items():
        if cohort in (None, name):
            found += parse(text, cohort == name)
    if re.fullmatch(r"[0-9a-f]{6,16}", text.lower()) and not re.fullmatch(r"\d{1,10}", text):
        found.append(Meaning("image_id", cohort, key=text.lower()))
    found.append(Meaning("image", cohort, key=IMAGE_SUFFIX.sub("", text)))
    return list(dict.fromkeys(found))


def _adni(text: str, certain: bool) -> list[Meaning]:
    if match := re.fullmatch(r"(?:sub-)?(?:ADNI[ _-]?)?(\d{3})[ _-]?S[ _-]?(\d{4,5})", text, re.IGNORECASE):
        return [Meaning("subject", "ADNI", subject=f"{match[1]}_S_{match[2]}")]
    if match := re.fullmatch(r"(?:ADNI[ _-]?)?(?:RID)?[ _:=-]*0*(\d{1,5})(?:\.0)?", text, re.IGNORECASE):
        named = re.search(r"RID|ADNI", text, re.IGNORECASE)
        found = [Meaning("subject", "ADNI", subject=f"RID{int(match[1])}")]
        return found if named else [*_number(text, "ADNI"), *found]
    return _number(text, "ADNI")


def _number(text: str, cohort: str) -> list[Meaning]:
    """An image number of the LONI archive, with or without the leading I."""
    match = re.fullmatch(r"I?0*(\d{1,9})(?:\.0)?", text, re.IGNORECASE)
    return [Meaning("image", cohort, key=f"I{match[1]}")] if match else []


def _aibl(text: str, certain: bool) -> list[Meaning]:
    if match := re.fullmatch(r"(?:sub-)?AIBL[ _:=-]*(?:RID[ _:=-]*)?(\d{1,7})(?:\.0)?", text, re.IGNORECASE):
        return [Meaning("subject", "AIBL", subject=match[1])]
    if match := re.fullmatch(r"(?:RID[ _:=-]*)?(\d{1,7})(?:\.0)?", text, re.IGNORECASE):
        return [Meaning("subject", "AIBL", subject=match[1]), *_number(text, "AIBL")]
    return _number(text, "AIBL")


def _nacc(text: str, certain: bool) -> list[Meaning]:
    if match := re.fullmatch(r"(?:sub-)?NACC[ _-]?(\d{6})", text, re.IGNORECASE):
        return [Meaning("subject", "NACC", subject=f"NACC{match[1]}")]
    if certain and re.fullmatch(r"\d{6}", text):
        return [Meaning("subject", "NACC", subject=f"NACC{text}")]
    stem = re.sub(r"\.zip$", "", text.rsplit("/", 1)[-1], flags=re.IGNORECASE)
    if re.fullmatch(r"mri\d+(?:ni)?|(?:SCAN_)?NACC\d{6}_.+", stem, re.IGNORECASE):
        return [Meaning("session", "NACC", session=re.sub(r"(?<=\d)ni$", "", stem, flags=re.IGNORECASE))]
    return []


def _oasis(text: str, certain: bool) -> list[Meaning]:
    name = IMAGE_SUFFIX.sub("", text)
    if match := re.fullmatch(r"(?:sub-)?OAS([12])[ _-]?(\d{4})", name, re.IGNORECASE):
        return [Meaning("subject", "OASIS", subject=f"OAS{match[1]}_{match[2]}")]
    if match := re.fullmatch(r"(?:sub-)?OAS([12])[ _-]?(\d{4})[ _-](?:ses-)?MR[ _-]?(\d+)", name, re.IGNORECASE):
        subject = f"OAS{match[1]}_{match[2]}"
        return [Meaning("session", "OASIS", subject=subject, session=f"MR{int(match[3])}")]
    if match := re.fullmatch(r"(?:sub-)?(OAS3\d{4})", name, re.IGNORECASE):
        return [Meaning("subject", "OASIS", subject=match[1].upper())]
    if match := re.fullmatch(r"(?:sub-)?(OAS3\d{4})[ _-](?:MR[ _-])?(?:ses?s?-)?(d\d{4,5})", name, re.IGNORECASE):
        return [Meaning("session", "OASIS", subject=match[1].upper(), session=match[2].lower())]
    return []


def _miriad(text: str, certain: bool) -> list[Meaning]:
    name = IMAGE_SUFFIX.sub("", text)
    if match := re.fullmatch(r"(?:sub-)?MIRIAD[ _-]?(\d{1,3})", name, re.IGNORECASE):
        return [Meaning("subject", "MIRIAD", subject=f"miriad_{int(match[1]):03d}")]
    if match := re.fullmatch(r"miriad_(\d{3})_(?:(?:AD|HC)_[MF]_)?(\d{1,2})(?:_MR(?:_\d+)?)?", name, re.IGNORECASE):
        return [Meaning("session", "MIRIAD", subject=f"miriad_{match[1]}", session=f"{int(match[2]):02d}")]
    if certain and re.fullmatch(r"\d{1,3}", name):
        return [Meaning("subject", "MIRIAD", subject=f"miriad_{int(name):03d}")]
    return []


def _ixi(text: str, certain: bool) -> list[Meaning]:
    if match := re.fullmatch(r"(?:sub-)?IXI[ _-]?(\d{1,3})", text, re.IGNORECASE):
        return [Meaning("subject", "IXI", subject=f"IXI{int(match[1]):03d}")]
    if certain and re.fullmatch(r"\d{1,3}", text):
        return [Meaning("subject", "IXI", subject=f"IXI{int(text):03d}")]
    return []


_PARSERS: dict[str, Callable[[str, bool], list[Meaning]]] = {
    "ADNI": _adni, "NACC": _nacc, "OASIS": _oasis, "AIBL": _aibl, "MIRIAD": _miriad, "IXI": _ixi,
}  # fmt: skip


def squeezed(text: str) -> str:
    """Letters and digits only, small.

    >>> squeezed("OAS1_0001")
    'oas10001'
    """
    return re.sub(r"[^0-9a-z]", "", text.lower())


def near_spellings(query: str, known: Iterable[str], limit: int = 6) -> list[str]:
    """Known ids that look nearly like the query, best first; a participant label's prefix does not count.

    >>> near_spellings("OAS1_0001x", ["OAS1_0001", "OAS1_0010", "NACC123456"], limit=1)
    ['OAS1_0001']
    """
    wanted = squeezed(re.sub(r"^sub-", "", query.strip(), flags=re.IGNORECASE))
    by_form: dict[str, str] = {}
    for name in known:
        by_form.setdefault(squeezed(name), name)
    forms = [form for form in by_form if abs(len(form) - len(wanted)) <= 3]
    near = difflib.get_close_matches(wanted, forms, n=limit, cutoff=0.75)
    digits = re.sub(r"\D", "", wanted).lstrip("0")
    # A number with other zeros before it, or without its prefix, is the likeliest slip of all.
    same = [form for form in by_form if digits and len(digits) >= 2 and re.sub(r"\D", "", form).lstrip("0") == digits]
    return [by_form[form] for form in dict.fromkeys([*same, *near])][:limit]


def id_pattern(meaning: Meaning) -> re.Pattern[str] | None:
    """A pattern that finds the meant id in file names and table cells, whole; None when its spelling is not unique."""
    if meaning.kind == "image" and meaning.key and re.fullmatch(r"I\d+", meaning.key):
        return re.compile(rf"(?<![0-9A-Za-z]){meaning.key}(?![0-9A-Za-z])", re.IGNORECASE)
    name = meaning.subject or meaning.session or ""
    if meaning.kind == "image" and meaning.key and len(meaning.key) >= 3:
        return re.compile(rf"(?<![0-9A-Za-z]){re.escape(meaning.key)}(?![0-9A-Za-z])", re.IGNORECASE)
    if meaning.kind == "session" and meaning.subject is None:
        return re.compile(rf"(?<![0-9A-Za-z]){re.escape(name)}(?:ni)?(?![0-9A-Za-z])", re.IGNORECASE)
    if name.startswith("RID"):
        return re.compile(rf"(?<![0-9A-Za-z])\d{{3}}_S_0*{name[3:]}(?![0-9])", re.IGNORECASE)
    if meaning.cohort == "AIBL" or not name:
        return None
    parts = [re.escape(part) for part in name.split("_")]
    return re.compile(rf"(?<![0-9A-Za-z]){'_?'.join(parts)}(?![0-9A-Za-z])", re.IGNORECASE)
