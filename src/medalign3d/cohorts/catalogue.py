"""Every table that is wanted of each custodian: names, header, columns used, and what its absence costs.

This one description drives ``medalign3d doctor COHORT ROOT`` and ``docs/cohort_tables.md``. A test compares it with
what the readers really ask of their tables, so it cannot fall behind them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from medalign3d.cohorts.oasis_tables import COLUMNS as OASIS_COLUMNS
from medalign3d.cohorts.tables import header_key


@dataclass(frozen=True)
class ColumnSpec:
    """A column that is used: its names (synonyms, the usual one first), and whether the table is useless without it."""

    names: tuple[str, ...]
    needed: bool = False

    def is_in(self, keys: Iterable[str]) -> bool:
        """Whether a header (as :func:`header_key` gives it) has the column under any of its names."""
        have = set(keys)
        return any(header_key(name) in have for name in self.names)


@dataclass(frozen=True)
class Header:
    """How a table is known by its header: keys that it must all have, one of, and must not have."""

    all: frozenset[str]
    any: frozenset[str] = frozenset()
    none: frozenset[str] = frozenset()

    def fits(self, keys: Iterable[str]) -> bool:
        """Whether a header is this kind."""
        have = set(keys)
        return self.all <= have and (not self.any or bool(self.any & have)) and not self.none & have


@dataclass(frozen=True)
class TableSpec:
    """One kind of table.

    Attributes
    ----------
    name
        What it is called here and, where ``names`` is given, usually by the custodian.
    what
        What it holds.
    columns
        The columns that are read.
    cost
        What is lost when it is not there.
    names
        File names without date and suffix; empty where the table is known by its header.
    headers
        Headers by which it is known.
    cells
        A pattern that the cells of the table hold, and what it is in words; for tables that are known by neither.
    need
        ``required``; ``optional``; or the name of a group of which one table is required.
    several
        Whether all tables of the kind are read, and not one.
    """

    name: str
    what: str
    columns: tuple[ColumnSpec, ...]
    cost: str
    names: tuple[str, ...] = ()
    headers: tuple[Header, ...] = ()
    cells: tuple[str, str] | None = None
    need: str = "optional"
    several: bool = False


def _columns(text: str) -> tuple[ColumnSpec, ...]:
    """Columns from words: synonyms joined by ``|``, blanks as ``~``, ``!`` behind a needed one."""
    return tuple(
        ColumnSpec(tuple(word.rstrip("!").replace("~", " ").split("|")), word.endswith("!")) for word in text.split()
    )


def _header(all_: str, any_: str = "", none: str = "") -> Header:
    return Header(frozenset(all_.split()), frozenset(any_.split()), frozenset(none.split()))


PREFIXES: dict[str, tuple[str, ...]] = {"ADNI": ("ADNI", "ADNIMERGE", "CLINICAL"), "AIBL": ("aibl",)}
"""What may stand before the name of a table, with an underscore."""

READ_IN_PLACE: dict[str, tuple[str, ...]] = {
    "ADNI": (".zip",), "NACC": (".zip",), "AIBL": (".zip",),
    "OASIS": (".zip", ".tar"), "MIRIAD": (".zip", ".tar"), "IXI": (".zip", ".tar"),
}  # fmt: skip
"""Archives of images that are read as they are; all others must be unpacked."""

_ADNI_KEYS = "RID|PTID! VISCODE2|VISCODE COLPROT|PHASE"
_LISTS = TableSpec(
    "image lists",
    "collection lists, search exports, scan lists; any vintage",
    _columns(
        "Image~Data~ID|Image~ID|IMAGEUID|image_id|ImageUID|image_uid|loni_image "
        "Subject|Subject~ID|SubjectID|subject_id|PTID|RID Sex|subject_sex Age|subject_age|image_age "
        "Acq~Date|Study~Date|ScanDate|image_date|series_date MagStrength|field_strength|mag_strength Imaging~Protocol "
        "Type|Orig/Proc|image_type Visit|image_visit|VISCODE2|VISCODE Modality SeriesID|series_id|loni_series "
        "Description|Sequence|image_description|series_description"
    ),
    "images that are named but not on disk are not noticed; sex, age and field strength of the lists are not there to "
    "fill gaps and to catch swapped images",
    headers=(
        _header("image_data_id subject"),
        *(
            _header(key, "scandate image_date sequence scan_date image_description")
            for key in ("imageuid", "image_id", "image_uid")
        ),
        _header("subject_id", "study_date image_date"),
    ),
    several=True,
)
_MIRIAD_PERSON = "Subject|Subject~ID M/F|Gender|Sex Group|Subject~Group|Diagnosis Hand Education Ses"
_MIRIAD_SCORES = "MMSE CDR CDR~SB|CDRSB|CDR-SB|CDR~Sum~of~Boxes|Sum~of~boxes|sumbox|CDRSUM"
_LABS = "AXT117 BAT126 HMT3 HMT7 HMT13 HMT40 HMT100 HMT102"

CATALOGUE: dict[str, tuple[TableSpec, ...]] = {
    "ADNI": (
        TableSpec(
            "ADNIMERGE", "visits: diagnosis, scores, volumes",
            _columns(
                "RID|PTID! VISCODE! VISCODE2 EXAMDATE! DX! COLPROT|PHASE ORIGPROT MMSE MOCA CDRSB LDELTOTAL FAQ "
                "FSVERSION Hippocampus Ventricles WholeBrain ICV FLDSTRENG IMAGEUID AGE PTGENDER PTEDUCAT APOE4 DX_bl "
                "EXAMDATE_bl"
            ),
            "visits are rebuilt from DXSUM, CDR, MMSE, NEUROBAT, PTDEMOG and APOERES; regional volumes and the "
            "enrolment label (early or late MCI) stay empty",
            names=("ADNIMERGE",), need="diagnosis",
        ),
        TableSpec(
            "DXSUM", "diagnosis at each visit",
            _columns(
                f"{_ADNI_KEYS} EXAMDATE|VISDATE DIAGNOSIS|DXCHANGE|DXCURREN! DXNORM DXMCI DXAD DXOTHDEM DXDDUE"
            ),
            "the diagnosis comes from ADNIMERGE alone, and the two are not compared",
            names=("DXSUM", "DXSUM_PDXCONV_ADNIALL", "DXSUM_PDXCONV"), need="diagnosis",
        ),
        TableSpec(
            "PTDEMOG", "sex, birth, education, handedness",
            _columns(f"{_ADNI_KEYS} PTGENDER PTEDUCAT PTHAND PTDOB PTDOBYY PTDOBMM"),
            "without ADNIMERGE nobody has a sex, and every image is quarantined (SEX_MISSING) unless a list gives it",
            names=("PTDEMOG",),
        ),
        TableSpec(
            "CDR", "Clinical Dementia Rating",
            _columns(
                f"{_ADNI_KEYS} CDGLOBAL! EXAMDATE|VISDATE CDRSB|CDSOB CDMEMORY CDORIENT CDJUDGE CDCOMMUN CDHOME CDCARE"
            ),
            "the global CDR stays empty (ADNIMERGE has only the sum of boxes); the text loses one field, two without "
            "ADNIMERGE",
            names=("CDR",),
        ),
        TableSpec(
            "MMSE", "Mini-Mental State Examination", _columns(f"{_ADNI_KEYS} MMSCORE EXAMDATE|VISDATE"),
            "the MMSE comes from ADNIMERGE alone; without that it stays empty and the text loses one field",
            names=("MMSE",),
        ),
        TableSpec(
            "NEUROBAT", "logical memory", _columns(f"{_ADNI_KEYS} LIMMTOTAL LDELTOTAL EXAMDATE|VISDATE"),
            "immediate recall stays empty, and delayed recall too without ADNIMERGE; the text loses one or two fields",
            names=("NEUROBAT",),
        ),
        TableSpec(
            "MOCA", "Montreal Cognitive Assessment", _columns(f"{_ADNI_KEYS} MOCA|MOCATOTAL EXAMDATE|VISDATE"),
            "the MoCA comes from ADNIMERGE alone; the text does not print it", names=("MOCA",),
        ),
        TableSpec(
            "GDSCALE", "Geriatric Depression Scale", _columns(f"{_ADNI_KEYS} GDTOTAL EXAMDATE|VISDATE"),
            "the depression scale stays empty; the text does not print it", names=("GDSCALE",),
        ),
        TableSpec(
            "FAQ", "functional activities", _columns(f"{_ADNI_KEYS} FAQTOTAL EXAMDATE|VISDATE"),
            "the FAQ comes from ADNIMERGE alone; the text does not print it", names=("FAQ",),
        ),
        TableSpec(
            "APOERES", "APOE genotype", _columns(f"{_ADNI_KEYS} APGEN1 APGEN2 GENOTYPE"),
            "the genotype stays empty; the number of e4 alleles comes from ADNIMERGE alone", names=("APOERES",),
        ),
        TableSpec(
            "LABDATA", "laboratory results",
            _columns(f"{_ADNI_KEYS} EXAMDATE|VISDATE {_LABS} RCT4 RCT5 RCT6 RCT11 RCT19 RCT20 RCT392"),
            "laboratory results stay empty; the text loses one field", names=("LABDATA",),
        ),
        TableSpec(
            "REGISTRY", "dates and month codes of visits", _columns(f"{_ADNI_KEYS} EXAMDATE|VISDATE"),
            "visits that no other table dates stay undated, and raw visit codes of old tables may stay unknown",
            names=("REGISTRY",),
        ),
        TableSpec(
            "ROSTER", "RID and PTID of everybody", _columns("RID! PTID! VISCODE VISCODE2 COLPROT|PHASE"),
            "rows of participants whose PTID no other table and no folder gives are left out", names=("ROSTER",),
        ),
        TableSpec(
            "MRIMETA", "MRI sessions at 1.5 T", _columns("RID|PTID! EXAMDATE|SCANDATE|VISDATE MMCONDCT FIELD_STRENGTH"),
            "the field strength of some images is not known (repeats at 1.5 and 3 T are told apart by it)",
            names=("MRIMETA",),
        ),
        TableSpec(
            "MRI3META", "MRI sessions at 3 T", _columns("RID|PTID! EXAMDATE|SCANDATE|VISDATE MMCONDCT FIELD_STRENGTH"),
            "the field strength of some images is not known (repeats at 1.5 and 3 T are told apart by it)",
            names=("MRI3META",),
        ),
        TableSpec(
            "image quality", "ratings of single images by the custodian's quality control",
            _columns("loni_image! loni_series series_quality series_selected"),
            "images that the custodian rates as unusable are not left out, and of several repeats the first is taken",
            headers=(_header("loni_image", "series_quality series_selected"),), several=True,
        ),
        TableSpec(
            "series quality", "pass marks of series", _columns("LONIUID! PASS!"),
            "series that failed the custodian's quality control are not left out",
            headers=(_header("loniuid pass"),), several=True,
        ),
        _LISTS,
    ),
    "NACC": (
        TableSpec(
            "UDS", "Uniform Data Set: one row per visit",
            _columns(
                "NACCID! NACCVNUM! NACCUDSD! VISITYR|VISITDATE! VISITMO|VISITDATE! VISITDAY|VISITDATE! NACCADC PACKET "
                "FORMVER SEX|NACCSEX BIRTHYR BIRTHMO NACCAGE EDUC HANDED NACCMMSE NACCMOCA|MOCATOTS LOGIMEM MEMUNITS "
                "CRAFTURS CRAFTDRE CDRGLOB CDRSUM NACCGDS NACCAPOE NACCNE4S NACCALZD NACCALZP NACCETPR DIABETES "
                "HYPERTEN HYPERCHO B12DEF THYROID"
            ),
            "nothing can be read: visits, diagnoses and all scores stand here",
            headers=(_header("naccid naccvnum naccudsd"),), need="required",
        ),
        TableSpec(
            "MRI", "MRI sessions",
            _columns(
                "NACCID! NACCMRFI! NACCADC NACCMNUM NACCVNUM NACCMRDY NACCMRIA NACCMRSA MRIYR MRIMO MRIDY|MRIDAY "
                "MRIFIELD MRIMANU NACCICV NACCBRNV HIPPOVOL LATVENT"
            ),
            "no session archive can be matched to a participant; regional volumes stay empty",
            headers=(_header("naccid naccmrfi"),), need="images",
        ),
        TableSpec(
            "SCAN", "images of the SCAN collection",
            _columns(
                "NACCID! LONIIMAGE! STUDYDATE! NACCADC SERIESTIME SERIESDESCRIPTION ACQUISITIONTYPE SLICETHICKNESS "
                "MAGNETICFIELDSTRENGTH SCANNERMANUFACTURER SCANNERMODEL"
            ),
            "SCAN archives cannot be matched to a participant",
            headers=(_header("naccid loniimage studydate"),), need="images", several=True,
        ),
    ),
    "OASIS": (
        *(
            TableSpec(
                f"OASIS-{study}", what,
                tuple(ColumnSpec(names, key in ("sex", "age", "cdr_global")) for key, names in OASIS_COLUMNS.items()),
                f"images of OASIS-{study} cannot be read",
                cells=(rf"OAS{study}[_-]?\d{{4}}[_-]?[A-Z0-9]R[_-]?\d", f"session ids such as OAS{study}_0001_MR1"),
                need="one study", several=True,
            )
            for study, what in ((1, "cross-sectional: one row per session"), (2, "longitudinal: one row per session"))
        ),
        TableSpec(
            "OASIS-3 CDR", "clinical ratings: CDR, MMSE, first diagnosis",
            _columns(
                "OASISID|Subject! days_to_visit|OASIS_session_label|ADRC_ADRCCLINICALDATA~ID|label! "
                "CDRTOT|cdr|CDRGLOB! CDRSUM|sumbox MMSE|mmse dx1 ageAtEntry memory orient judgment commun homehobb "
                "perscare"
            ),
            "images of OASIS-3 cannot be read",
            headers=(_header("oasisid cdrtot"), _header("adrc_adrcclinicaldata_id"), _header("subject cdr sumbox")),
            need="one study", several=True,
        ),
        TableSpec(
            "OASIS-3 people", "sex, education, age at entry, APOE",
            _columns(
                "OASISID|Subject! GENDER|M/F EDUC|Education HAND|Hand SES APOE AgeatEntry|Age~at~Entry|ageAtEntry"
            ),
            "sex comes from `MR Sessions` alone; without that every image of OASIS-3 is quarantined (SEX_MISSING)",
            headers=(_header("oasisid gender"), _header("subject m_f", "education hand", "cdr mr_id label")),
            several=True,
        ),
        TableSpec(
            "OASIS-3 diagnoses", "UDS form D1",
            _columns(
                "OASISID! days_to_visit|OASIS_session_label|ADRC_ADRCCLINICALDATA~ID|label! NORMCOG DEMENTED IMPNOMCI "
                "MCIAMEM MCIAPLUS MCINON1 MCINON2 PROBAD POSSAD"
            ),
            "MCI cannot be told: the three-class label comes from the words of dx1 alone",
            headers=(_header("oasisid normcog", none="gender cdrtot"),), several=True,
        ),
        TableSpec(
            "OASIS-3 cognition", "UDS form C1",
            _columns(
                "OASISID! days_to_visit|OASIS_session_label|ADRC_ADRCCLINICALDATA~ID|label! LOGIMEM MEMUNITS"
            ),
            "logical memory of OASIS-3 stays empty; the text loses two fields",
            headers=(_header("oasisid", "memunits logimem", "gender cdrtot normcog"),), several=True,
        ),
        TableSpec(
            "OASIS-3 MR sessions", "age, sex and scanner of each session (older export)",
            _columns("MR~ID|label! Age M/F Scanner"),
            "the age comes from the age at entry; the scanner from the image's table or header",
            headers=(_header("mr_id subject age", none="cdr group"),), several=True,
        ),
        TableSpec(
            "OASIS-3 scanners", "scanner of each session",
            _columns("MR~ID|label! MagneticFieldStrength Manufacturer ManufacturersModelName"),
            "field strength and scanner of OASIS-3 stay empty", headers=(_header("label magneticfieldstrength"),),
            several=True,
        ),
    ),
    "AIBL": (
        TableSpec(
            "pdxconv", "diagnosis at each visit", _columns("RID! VISCODE! DXCURREN|DXNORM! DXNORM DXMCI DXAD"),
            "nothing can be read: it holds the diagnoses", names=("pdxconv",), need="required",
        ),
        TableSpec(
            "ptdemog", "sex and year of birth", _columns("RID! VISCODE PTGENDER! PTDOB|PTDOBYY"),
            "nothing can be read: it holds the sex", names=("ptdemog",), need="required",
        ),
        TableSpec(
            "mmse", "Mini-Mental State Examination", _columns("RID! VISCODE EXAMDATE|SCANDATE MMSCORE"),
            "the MMSE stays empty (the text loses one field), and one source of visit dates is gone", names=("mmse",),
        ),
        TableSpec(
            "cdr", "Clinical Dementia Rating", _columns("RID! VISCODE EXAMDATE|SCANDATE CDGLOBAL"),
            "the global CDR stays empty (the text loses one field), and one source of visit dates is gone",
            names=("cdr",),
        ),
        TableSpec(
            "neurobat", "logical memory", _columns("RID! VISCODE EXAMDATE|SCANDATE LIMMTOTAL LDELTOTAL"),
            "logical memory stays empty; the text loses two fields", names=("neurobat",),
        ),
        TableSpec(
            "apoeres", "APOE alleles", _columns("RID! VISCODE APGEN1 APGEN2"), "APOE stays empty", names=("apoeres",),
        ),
        TableSpec(
            "labdata", "laboratory results", 
            _columns(f"RID! VISCODE EXAMDATE|SCANDATE {_LABS} RCT6 RCT11 RCT20 RCT392"),
            "laboratory results stay empty; the text loses one field", names=("labdata",),
        ),
        TableSpec(
            "medhist", "medical history",
            _columns(
                "RID! VISCODE MHPSYCH MH2NEURL MH4CARD MH6HEPAT MH8MUSCL MH9ENDO MH10GAST MH12RENA MH16SMOK MH17MALI"
            ),
            "the medical history stays empty; the text loses one field", names=("medhist",),
        ),
        *(
            TableSpec(
                name, what, _columns("RID! VISCODE EXAMDATE|SCANDATE"), cost, names=(name,),
            )
            for name, what, cost in (
                ("mri3meta", "dates of MRI at 3 T", "images without an entry in the image list may match no visit, and "
                 "their field strength is not known"),
                ("mrimeta", "dates of MRI at 1.5 T", "images without an entry in the image list may match no visit, "
                 "and their field strength is not known"),
                ("flutemeta", "dates of flutemetamol PET", "one source of visit dates is gone"),
                ("pibmeta", "dates of PiB PET", "one source of visit dates is gone"),
                ("av45meta", "dates of AV45 PET", "one source of visit dates is gone"),
            )
        ),
        _LISTS,
    ),
    "MIRIAD": (
        TableSpec(
            "MR sessions", "age of each session",
            _columns(f"MR~ID|Label|ID|Session! Age {_MIRIAD_SCORES} {_MIRIAD_PERSON}"),
            "the age stays empty (AGE_MISSING): it stands nowhere else",
            headers=(_header("age", "mr_id label session"),), several=True,
        ),
        TableSpec(
            "scores", "MMSE and CDR",
            _columns(f"MR~ID|Label|ID|Session! {_MIRIAD_SCORES} {_MIRIAD_PERSON}"),
            "MMSE and CDR stay empty; the text loses its scores",
            headers=(_header("mmse", "mr_id label session"), _header("cdr", "mr_id label session")), several=True,
        ),
        TableSpec(
            "subjects", "sex, handedness, education",
            _columns(f"MR~ID|Label|ID|Session {_MIRIAD_PERSON}"),
            "sex comes from the file names; handedness and education stay empty",
            headers=(_header("subject", "gender m_f sex group", "mr_id label session"),), several=True,
        ),
    ),
    "IXI": (
        TableSpec(
            "demographics", "sex, age, date of the study",
            _columns(
                "IXI_ID|participant_id|Subject~ID|Subject|ID! AGE! "
                "SEX|SEX_ID~(1=m,~2=f)|SEX_ID|M/F|Gender! STUDY_DATE DOB"
            ),
            "nothing can be read: sex and age stand here",
            headers=(_header("age", "ixi_id participant_id subject_id subject id"),), need="required",
        ),
    ),
}  # fmt: skip
"""Cohort to its kinds of tables, the most important first."""

GROUP_WORDS: dict[str, str] = {
    "diagnosis": "ADNIMERGE or DXSUM is required: without a table of diagnoses nothing can be read",
    "images": "the MRI or the SCAN table is required for images: without one no image can be matched",
    "one study": "the table of the study whose images are read is required",
}
"""What a group of which one table is required means."""


def catalogue_markdown() -> str:
    """The page ``docs/cohort_tables.md``, made from :data:`CATALOGUE`."""
    lines = [
        "# Tables that are wanted of each cohort",
        "",
        "<!-- Made by `python docs/write_reference.py` from src/medalign3d/cohorts/catalogue.py; do not edit. -->",
        "",
        "`medalign3d doctor COHORT ROOT` checks a folder against this list in seconds. Tables may lie anywhere below",
        "the folder, as `.csv`, `.tsv` or spreadsheet; comma, semicolon or tab; UTF-8 or Latin-1. Column names are",
        "compared without case and punctuation; other columns are ignored. Of synonyms (`A` or `B`) the first that has",
        "a value counts; columns in bold are needed.",
    ]
    for cohort, specs in CATALOGUE.items():
        lines += [
            "",
            f"## {cohort}",
            "",
            "| table | holds | known by | columns used | without it |",
            "|---|---|---|---|---|",
        ]
        for spec in specs:
            need = {"required": " (required)", "optional": ""}.get(spec.need, f" (one of: {spec.need})")
            columns = ", ".join(
                ("**{}**" if column.needed else "{}").format(" or ".join(f"`{name}`" for name in column.names))
                for column in spec.columns
            )
            lines.append(f"| {spec.name}{need} | {spec.what} | {known_by(cohort, spec)} | {columns} | {spec.cost} |")
        groups = {spec.need for spec in specs} & set(GROUP_WORDS)
        lines += [f"\n{GROUP_WORDS[group][0].upper()}{GROUP_WORDS[group][1:]}." for group in sorted(groups)]
    return "\n".join(lines) + "\n"


def known_by(cohort: str, spec: TableSpec) -> str:
    """How a table is recognised, in words."""
    if spec.names:
        prefix = "[" + "_\\|".join(PREFIXES[cohort]) + "_]" if cohort == "ADNI" else "aibl_"
        return " or ".join(f"`{prefix}{name}[_<date>].csv`" for name in spec.names)
    if spec.cells is not None:
        return f"cells with {spec.cells[1]}"
    options = []
    for header in spec.headers:
        words = [f"`{key}`" for key in sorted(header.all)]
        if header.any:
            words.append("one of " + ", ".join(f"`{key}`" for key in sorted(header.any)))
        options.append("columns " + ", ".join(words))
    return " or ".join(options)
