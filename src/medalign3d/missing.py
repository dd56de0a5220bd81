"""Why an image or participant is not in the result: ``medalign3d why-missing``.

A query is followed through found -> ingest -> harmonize -> normalize -> split -> benchmark. Where it stops, the reason,
its meaning, the file and row, and what to do are given. A query that no stage has seen is looked for in the cohort's
folder: in every table's id columns and in every file's name.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from medalign3d.cohorts.base import image_id_of
from medalign3d.cohorts.catalogue import READ_IN_PLACE
from medalign3d.cohorts.reasons import count_lines, explain_reason
from medalign3d.cohorts.spelling import IMAGE_SUFFIX, Meaning, id_pattern, meanings, near_spellings
from medalign3d.cohorts.tables import TABLE_SUFFIXES, header_key, list_files, load_table
from medalign3d.cohorts.values import parse_whole_id
from medalign3d.errors import InputError
from medalign3d.lineage import normalization_of, split_of
from medalign3d.params import Params
from medalign3d.printing import count, labelled, paragraph
from medalign3d.results import Results, key_of, plain_records

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tbz2", ".tar.xz", ".7z", ".rar")
ID_COLUMNS = frozenset((
    "rid", "ptid", "subject", "subject_id", "subjectid", "naccid", "oasisid", "id", "mri_id", "mr_id",
    "mr_session", "label", "session", "naccmrfi", "image_data_id", "image_id", "imageuid", "ixi_id",
    "participant_id", "adrc_adrcclinicaldata_id", "oasis_session_label", "loni_image",
))  # fmt: skip
"""Header keys of columns that hold ids in any custodian's tables."""
MAXIMUM_SHOWN = 6

IMAGE_COLUMNS_USED = (
    "image_id", "native_image_key", "native_subject_id", "session_id", "selected", "selection_rank", "dataset",
    "dx_native", "sex", "age_years",
)  # fmt: skip

IN, STOPPED, NOT_RUN = "passed", "stopped", "not run"


@dataclass
class Step:
    """What one stage did with an image.

    ``state`` is ``passed``, ``stopped`` or ``not run``.
    """

    stage: str
    state: str
    text: str
    reason: str | None = None
    meaning: str | None = None
    remedy: str | None = None
    file: str | None = None
    row: int | None = None


@dataclass
class ImageTrace:
    """One image on its way through the stages."""

    cohort: str
    key: str
    image_id: str | None
    subject: str | None
    source_path: str | None
    steps: list[Step] = field(default_factory=list)

    @property
    def stopped_at(self) -> Step | None:
        """The stage that kept the image out, or None."""
        return next((step for step in self.steps if step.state == STOPPED), None)


@dataclass
class Trace:
    """What is known of one query in one cohort."""

    cohort: str
    meaning: str
    subjects: list[str] = field(default_factory=list)
    visits: int = 0
    visit_span: str = ""
    images: list[ImageTrace] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Searched:
    """Where a query was looked for in a cohort, and what was seen there."""

    cohort: str
    root: str | None
    tables_read: list[str] = field(default_factory=list)
    images_found: int = 0
    files: int = 0
    in_tables: list[str] = field(default_factory=list)
    on_disk: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


@dataclass
class Answer:
    """The answer to one query.

    ``status`` is ``in the result``, ``stopped``, ``record without image``, ``seen but not used`` or ``never seen``.
    """

    query: str
    understood: list[str]
    status: str
    traces: list[Trace] = field(default_factory=list)
    searched: list[Searched] = field(default_factory=list)
    near: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------------------ on disk


def recognise(cohort: str, path: str) -> tuple[bool, str]:
    """Whether a relative path looks like an image in the custodian's layout, and why.

    >>> recognise("MIRIAD", "miriad_188_AD_M_01_MR_1.nii")[0], recognise("IXI", "notes.docx")[0]
    (True, False)
    """
    from medalign3d.cohorts import ixi, loni, miriad, nacc, oasis

    name = PurePosixPath(path).name
    lower = name.lower()
    if any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(path).parts):
        return False, "hidden files and __MACOSX are left alone"
    if lower.endswith(TABLE_SUFFIXES):
        return False, "a table or text file, no image"
    packed = lower.endswith(ARCHIVE_SUFFIXES)
    if packed and lower.endswith(READ_IN_PLACE.get(cohort, ())):
        if cohort == "NACC":
            return True, f"it belongs to the session {nacc.normalize_locator(name)}"
        return False, "an archive: the images inside are read, but it holds none that is recognised"
    if packed:
        return False, "a packed archive: unpack it below the cohort's folder"
    image = bool(IMAGE_SUFFIX.search(lower))
    if not image:
        return False, "its suffix is that of no image format that is read (.nii, .nii.gz, .hdr, .img, .dcm, .ima)"
    if cohort in ("ADNI", "AIBL"):
        images = loni.group_images([path])
        if not images or not images[0].uid:
            return False, "no image number: neither the name ends in _I<number> nor does it lie in a folder I<number>"
        if not images[0].subject_folder:
            return True, "it has an image number, but does not lie in <participant>/<series>/<time>/I<number>"
        return True, "it has an image number and lies in a participant's folder"
    if cohort == "NACC":
        return True, f"it belongs to the session {PurePosixPath(path).parent.name}"
    if cohort == "OASIS":
        study, subject, code = oasis._session_of(path)
        return (True, f"it names the session {subject} {code}") if study else (
            False, "neither the file nor a folder names a session of OASIS-1, -2 or -3"
        )  # fmt: skip
    if cohort == "MIRIAD":
        named = bool(miriad.FILE_NAME.fullmatch(name)) or any(
            miriad.scan_of(part) is not None for part in PurePosixPath(path).parts[:-1]
        )
        return named, "its name is a MIRIAD one" if named else "neither file nor folder is named as MIRIAD names them"
    if cohort == "IXI":
        named = bool(ixi.FILE_NAME.fullmatch(re.sub(r"\.nii(?:\.gz)?$", "", name, flags=re.IGNORECASE)))
        return named, "its name is an IXI one" if named else "the name is not IXI<id>-<site>-<scan>_T1"
    return False, "unknown cohort"


class Disk:
    """The cohorts' folders, listed once each when they can be reached."""

    def __init__(self, results: Results, params: Params | None, roots: dict[str, Path]) -> None:
        self._results = results
        self.roots: dict[str, Path | None] = {}
        self._files: dict[str, list[str]] = {}
        for cohort in results.cohorts:
            place = roots.get(cohort) or results.root(cohort)
            if place is None and params is not None and results.is_pipeline:
                named = params.cohort_root(cohort)
                place = named if named.is_dir() else None
            self.roots[cohort] = place

    def files(self, cohort: str) -> list[str]:
        """All files below the cohort's folder; none when it cannot be reached."""
        if cohort not in self._files:
            root = self.roots.get(cohort)
            self._files[cohort] = [] if root is None else list_files(root)
        return self._files[cohort]

    def has(self, cohort: str, source_path: str | None) -> bool | None:
        """Whether a source file is still there; None when that cannot be told."""
        root = self.roots.get(cohort)
        if root is None or not source_path or not self._results.ingest(cohort).images_read:
            return None
        return (root / source_path.split("!", 1)[0]).exists()


def _cell_test(meaning: Meaning) -> tuple[bytes, Any] | None:
    """Text that a table's line must hold (small letters), and the test of an id cell; None when nothing can be told."""
    from medalign3d.cohorts.ixi import subject_of

    if meaning.kind == "image" and meaning.key and (number := re.fullmatch(r"I(\d+)", meaning.key)):
        digits = number[1]
        return digits.encode(), lambda column, cell: "image" in column and cell.lstrip("I").split(".")[0] == digits
    subject = meaning.subject or ""
    if subject.startswith("RID") or meaning.cohort == "AIBL":
        wanted = int(re.sub(r"\D", "", subject) or -1)

        def is_rid(column: str, cell: str) -> bool:
            if "image" in column or "label" in column:
                return False
            return parse_whole_id(cell) == wanted or bool(
                (ptid := re.fullmatch(r"\d{3}_S_(\d{4,5})", cell)) and int(ptid[1]) == wanted
            )

        return str(wanted).encode(), is_rid
    if meaning.cohort == "ADNI" and (ptid := re.fullmatch(r"\d{3}_S_(\d+)", subject)):
        wanted_rid = int(ptid[1])

        def is_person(column: str, cell: str) -> bool:
            return cell == subject or (column == "rid" and parse_whole_id(cell) == wanted_rid)

        return str(wanted_rid).encode(), is_person
    if meaning.cohort == "IXI" and subject:
        return str(int(subject[3:])).encode(), lambda column, cell: "id" in column and subject_of(cell) == subject
    pattern = id_pattern(meaning)
    if pattern is None:
        return None
    needle = (subject or meaning.session or meaning.key or "").lower().encode()
    return needle, lambda column, cell: bool(pattern.search(cell))


def search_tables(root: Path, files: list[str], meaning: Meaning) -> list[tuple[str, list[int]]]:
    """Tables whose id columns hold the meant id, with the line numbers.

    Lines are looked at as bytes first, so that tables of gigabytes take seconds.
    """
    test = _cell_test(meaning)
    if test is None:
        return []
    needle, fits = test
    found = []
    for path in files:
        if PurePosixPath(path).suffix.lower() not in (".csv", ".tsv", ".xlsx", ".xls"):
            continue
        try:
            lines = list(_lines_with(root, path, needle, fits))
        except (InputError, OSError):
            continue
        if lines:
            found.append((path, lines))
    return found


def _lines_with(root: Path, path: str, needle: bytes, fits: Any) -> Iterator[int]:
    with (root / path).open("rb") as stream:
        start = stream.read(4)
        stream.seek(0)
        if start[:2] in (b"PK", b"\xd0\xcf", b"\xff\xfe", b"\xfe\xff"):
            frame = load_table(root / path, root=root).frame
            for column in frame.columns:
                key = header_key(str(column))
                if key in ID_COLUMNS:
                    yield from (int(str(line)) for line, cell in frame[column].items() if cell and fits(key, str(cell)))
            return
        columns: dict[int, str] = {}
        delimiter = ","
        for number, line in enumerate(stream, start=1):
            if not columns:
                header = line.decode("utf-8-sig", errors="replace")
                if not header.strip():
                    continue
                delimiter = max(",;\t", key=re.sub(r'"[^"]*"', "", header).count)
                names = [header_key(name) for name in next(csv.reader([header], delimiter=delimiter), [])]
                columns = {place: name for place, name in enumerate(names) if name in ID_COLUMNS}
                if not columns:
                    return
                continue
            if needle not in line.lower():
                continue
            cells = next(csv.reader([line.decode("utf-8", errors="replace")], delimiter=delimiter), [])
            if any(p < len(cells) and fits(name, cells[p].strip()) for p, name in columns.items()):
                yield number


# -------------------------------------------------------------------------------------------------------------- trace


def _explained(step: Step, reason: str | None) -> Step:
    if reason:
        explanation = explain_reason(reason)
        step.reason, step.meaning, step.remedy = reason, explanation.meaning, explanation.remedy
    return step


class Tracer:
    """Follows images through the tables of the stages."""

    def __init__(self, results: Results, params: Params, disk: Disk) -> None:
        self.results = results
        self.params = params
        self.disk = disk
        self._found: dict[str, list[dict[str, Any]]] = {}
        self._drops: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self._images: dict[str, dict[str, dict[str, Any]]] = {}

    def found(self, cohort: str) -> list[dict[str, Any]]:
        """Every image found of a cohort."""
        if cohort not in self._found:
            self._found[cohort] = plain_records(self.results.found(cohort))
        return self._found[cohort]

    def images(self, cohort: str) -> dict[str, dict[str, Any]]:
        """Accepted images by native key."""
        if cohort not in self._images:
            wanted = list(IMAGE_COLUMNS_USED)
            rows = plain_records(self.results.ingest(cohort).images[wanted])
            self._images[cohort] = {str(row["native_image_key"]): row for row in rows}
        return self._images[cohort]

    def drops(self, cohort: str) -> dict[str, list[dict[str, Any]]]:
        """Image-level quarantine rows of ingest by native key."""
        if cohort not in self._drops:
            quarantine = self.results.ingest(cohort).quarantine
            by_key: dict[str, list[dict[str, Any]]] = {}
            for row in plain_records(quarantine[quarantine["level"] == "image"]):
                by_key.setdefault(key_of(row["key_json"]).get("native_image_key", ""), []).append(row)
            self._drops[cohort] = by_key
        return self._drops[cohort]

    def trace(self, cohort: str, row: dict[str, Any]) -> ImageTrace:
        """One image that was found, through all stages."""
        key = str(row["native_image_key"])
        accepted = row["outcome"] == "accepted"
        image = ImageTrace(
            cohort, key, image_id_of(cohort, key) if accepted else None, row["native_subject_id"], row["source_path"]
        )
        there = {True: "it is there", False: "it is NOT THERE any more", None: "not checked"}
        place = self.disk.has(cohort, row["source_path"])
        image.steps.append(Step("found", IN, f"{row['source_path']} ({there[place]})", file=row["source_path"]))
        if not accepted:
            image.steps.append(self._dropped(cohort, row))
            return image
        for stage in (self._ingest, self._harmonize, self._normalize, self._split):
            image.steps += stage(cohort, key, str(image.image_id))
            if image.stopped_at is not None:
                break
        return image

    def _dropped(self, cohort: str, row: dict[str, Any]) -> Step:
        rows = [
            r
            for r in self.drops(cohort).get(str(row["native_image_key"]), [])
            if r["severity"] == "drop" and r["reason"] == row["reason"]
        ]
        exact = [r for r in rows if r["source_file"] == row["source_path"]] or rows
        drop: dict[str, Any] = exact[0] if exact else {"detail": "", "source_file": None, "source_row": None}
        step = Step("ingest", STOPPED, f"left out: {drop['detail']}", file=drop["source_file"], row=drop["source_row"])
        return _explained(step, row["reason"])

    def _ingest(self, cohort: str, key: str, image_id: str) -> list[Step]:
        row = self.images(cohort)[key]
        remarks = [r for r in self.drops(cohort).get(key, []) if r["severity"] != "drop"]
        words = "accepted"
        if remarks:
            words += " with " + ", ".join(sorted({str(r["reason"]) for r in remarks}))
        if row["selected"]:
            return [Step("ingest", IN, f"{words}; takes part")]
        taken = [
            other
            for other in self.images(cohort).values()
            if other["native_subject_id"] == row["native_subject_id"]
            and other["session_id"] == row["session_id"]
            and other["selected"]
        ]
        instead = f" ({taken[0]['native_image_key']})" if taken else ""
        return [
            Step(
                "ingest",
                STOPPED,
                f"{words}, but another image of the visit takes part{instead}; this one has rank "
                f"{row['selection_rank']}",
                meaning="Of each visit one image is used, so that nobody counts twice.",
                remedy="Nothing needs doing: the table of images keeps it, with `selected` false.",
            )
        ]

    def _harmonize(self, cohort: str, key: str, image_id: str) -> list[Step]:
        table_ = self.results.harmonized
        if table_ is None:
            return [Step("harmonize", NOT_RUN, "the stage has not run here")]
        rows = plain_records(table_[table_["image_id"] == image_id])
        if rows:
            labels = [f"{name} {rows[0][name]}" for name in ("dx3", "dx2") if rows[0].get(name)]
            return [Step("harmonize", IN, f"kept: {', '.join(labels) or 'no label'}; person {rows[0]['person_id']}")]
        quarantine = self.results.harmonize_quarantine
        if quarantine is not None:
            for row in plain_records(quarantine[(quarantine["dataset"] == cohort) & (quarantine["level"] == "image")]):
                if row["severity"] == "drop" and key_of(row["key_json"]).get("native_image_key") == key:
                    step = Step("harmonize", STOPPED, f"left out: {row['detail']}", file="", row=None)
                    return [_explained(step, str(row["reason"]))]
        return [
            Step(
                "harmonize",
                STOPPED,
                "not in the harmonized table, and not in its quarantine",
                meaning="The tables are of different runs, or the cohort is not in `cohorts` of params.yaml.",
                remedy="Run `dvc repro`.",
            )
        ]

    def _normalize(self, cohort: str, key: str, image_id: str) -> list[Step]:
        row = normalization_of(self.results, cohort, image_id)
        if row is None:
            return [Step("normalize", NOT_RUN, "the stage has not run here")]
        if row["verdict"] == "accepted":
            return [Step("normalize", IN, f"accepted ({row.get('method')})")]
        step = Step("normalize", STOPPED, f"{row['verdict']}: {row['detail'] or row['reason'] or ''}")
        if not row["reason"]:
            step.meaning, step.remedy = "The tables are of different runs.", "Run `dvc repro`."
        return [_explained(step, row["reason"])]

    def _split(self, cohort: str, key: str, image_id: str) -> list[Step]:
        table_ = self.results.harmonized
        record = (
            self.images(cohort)[key] if table_ is None else plain_records(table_[table_["image_id"] == image_id])[0]
        )
        split = split_of(self.results, record, self.params)
        if split is None:
            return [Step("split", NOT_RUN, "the stage has not run here")]
        if split["split"] in (None, "excluded"):
            words = "excluded" if split["split"] else "not in the split"
            return [
                Step("split", STOPPED, f"{words}: {split['why']}", meaning=str(split["why"]).capitalize() + ".",
                     remedy="Nothing needs doing if that is meant; else run `dvc repro`.")
            ]  # fmt: skip
        steps = [Step("split", IN, f"{split['split']}: {split['why']}")]
        names = ", ".join(split["benchmarks"]) or "none"
        steps.append(Step("benchmark", IN, f"{names}: {split['benchmark_why']}"))
        return steps

    def add_people(self, trace: Trace, meaning: Meaning | None = None) -> None:
        """Note whose images a trace holds, and how many visits the tables have of them."""
        visits = self.results.ingest(trace.cohort).visits
        known = [str(subject) for subject in visits["native_subject_id"].dropna().unique()]
        own = {image.subject for image in trace.images if image.subject}
        if meaning is not None and meaning.subject is not None:
            own |= {subject for subject in known if meaning.is_subject(subject)}
        trace.subjects = sorted(own)
        mine = visits[visits["native_subject_id"].isin(trace.subjects)]
        trace.visits = len(mine)
        codes = [str(code) for code in mine["visit_code"]]
        if len(trace.subjects) == 1 and codes:
            trace.visit_span = codes[0] if len(codes) == 1 else f"{codes[0]} to {codes[-1]}"

    # -- queries

    def in_cohort(self, cohort: str, meaning: Meaning) -> Trace | None:
        """What a cohort's tables know of a query; None when nothing."""
        trace = Trace(cohort, meaning.words)
        rows = [row for row in self.found(cohort) if _is_image_of(meaning, row)]
        trace.images = [self.trace(cohort, row) for row in rows]
        self.add_people(trace, meaning)
        if meaning.kind == "image" and meaning.key:
            for row in self.drops(cohort).get(meaning.key, []):
                if row["reason"] == "IMAGE_WITHOUT_FILE":
                    explanation = explain_reason("IMAGE_WITHOUT_FILE")
                    trace.notes.append(
                        f"IMAGE_WITHOUT_FILE: {row['detail']} ({row['source_file']}:{row['source_row']}). "
                        f"{explanation.remedy}"
                    )
        if not (trace.images or trace.visits or trace.notes):
            return None
        return trace


def _is_image_of(meaning: Meaning, row: dict[str, Any]) -> bool:
    """Whether an image that was found is meant."""
    key = str(row["native_image_key"])
    if meaning.kind == "image_id":
        return image_id_of(str(row["dataset"]), key).startswith(meaning.key or "-")
    if meaning.kind == "image":
        wanted = (meaning.key or "").casefold()
        bare = IMAGE_SUFFIX.sub("", key).casefold()
        if wanted in (bare, bare.rsplit("/", 1)[-1]):
            return True
        # The name of a folder, session or participant, whole; a bare number would fit too much.
        names = [*key.split("/"), *str(row["source_path"] or "").split("/"), str(row["native_subject_id"] or "")]
        return not re.fullmatch(r"i?\d*", wanted) and wanted in (name.casefold() for name in names)
    if meaning.kind == "session" and meaning.subject is None:
        return key.casefold().startswith(f"{(meaning.session or '').casefold()}/")
    if not meaning.is_subject(str(row["native_subject_id"] or "")):
        return False
    if meaning.kind == "subject":
        return True
    session = str(row["native_session"] or "").casefold()
    folder = key.split("/", 1)[0].casefold()
    wanted = (meaning.session or "").casefold()
    return session == wanted or folder.endswith((f"_{wanted}", f"_mr_{wanted}"))


def _image_of_path(tracer: Tracer, cohort: str, relative: str) -> list[ImageTrace]:
    """Images whose source is this file: the file itself, the other half of a pair, its DICOM folder, or its archive."""
    from medalign3d.lineage import _is_path_of

    return [
        tracer.trace(cohort, row)
        for row in tracer.found(cohort)
        if row["source_path"]
        and (_is_path_of(str(row["source_path"]), relative) or str(row["source_path"]).startswith(f"{relative}!"))
    ]


def _relative_to_root(disk: Disk, cohort: str, query: str) -> str | None:
    """A path relative to the cohort's folder when it lies there, else None."""
    root = disk.roots.get(cohort)
    path = Path(query).expanduser()
    if root is None:
        return None
    for candidate in [path] if path.is_absolute() else [Path.cwd() / path, root / path]:
        try:
            relative = candidate.resolve().relative_to(root.resolve())
        except (ValueError, OSError):
            continue
        if candidate.exists():
            return relative.as_posix()
    return None


def _looks_like_path(query: str) -> bool:
    return "/" in query or "\\" in query or (bool(IMAGE_SUFFIX.search(query.lower())) and Path(query).exists())


def _answer_path(tracer: Tracer, query: str, cohorts: list[str]) -> Answer:
    answer = Answer(query, ["a file"], "never seen")
    for cohort in cohorts:
        relative = _relative_to_root(tracer.disk, cohort, query)
        images = _image_of_path(tracer, cohort, relative or query)
        root = tracer.disk.roots.get(cohort)
        if images:
            trace = Trace(cohort, f"the file {relative or query}", images=images)
            tracer.add_people(trace)
            answer.traces.append(trace)
            continue
        if relative is None or root is None:
            continue
        seen = Searched(cohort, str(root), images_found=len(tracer.found(cohort)))
        answer.searched.append(seen)
        answer.status = "seen but not used"
        sources = plain_records(tracer.results.ingest(cohort).sources)
        read = next((row for row in sources if row["file"] == relative), None)
        if (root / relative).is_dir():
            inside = [path for path in tracer.disk.files(cohort) if path.startswith(relative + "/")]
            known = [t for path in inside[:200] for t in _image_of_path(tracer, cohort, path)]
            if known:
                distinct = {image.key: image for image in known}
                trace = Trace(cohort, f"the folder {relative}", images=list(distinct.values()))
                tracer.add_people(trace)
                answer.traces.append(trace)
                answer.searched.remove(seen)
                continue
            seen.advice.append(f"{relative} is a folder with {count(len(inside), 'file')}; none of them is an image.")
            if inside:
                seen.advice.append(f"{inside[0]}: {recognise(cohort, inside[0])[1]}.")
        elif read is not None:
            seen.advice.append(f"It is a table that was read ({read['used_for']}, {count(int(read['rows']), 'row')}).")
        elif relative.lower().endswith(TABLE_SUFFIXES):
            seen.advice.append(
                "It is a table that was not read: no table of this name or header is wanted. "
                f"`medalign3d doctor {cohort} {root}` lists the tables that are."
            )
        else:
            good, why = recognise(cohort, relative)
            if good:
                seen.advice.append(
                    f"It is on disk and looks like an image ({why}), but was not found by the ingest: it came later, "
                    "or is no image of its own. Ingest the cohort again."
                )
            else:
                seen.advice.append(f"It is on disk but does not count as an image: {why}.")
    if answer.traces:
        _settle(answer)
    elif not answer.searched:
        exists = Path(query).expanduser().exists()
        places = [str(root) for root in tracer.disk.roots.values() if root]
        answer.understood = [
            f"a file, which exists but lies below no cohort's folder ({', '.join(places) or 'none is known'})"
            if exists
            else "a file, which does not exist: neither from here nor below a cohort's folder"
        ]
    return answer


def _overview(tracer: Tracer, cohort: str) -> Searched:
    root = tracer.disk.roots.get(cohort)
    sources = tracer.results.ingest(cohort).sources
    return Searched(
        cohort,
        None if root is None else str(root),
        tables_read=[str(name) for name in sources["file"]],
        images_found=len(tracer.found(cohort)),
        files=len(tracer.disk.files(cohort)),
    )


def _search(tracer: Tracer, cohort: str, meaning: Meaning) -> Searched:
    """Look for an id in a cohort's folder: in tables and in file names."""
    seen = _overview(tracer, cohort)
    root = tracer.disk.roots.get(cohort)
    if root is None:
        seen.advice.append(
            "The cohort's folder is not known or not there, so files could not be searched: name it with "
            f"--root {cohort}=FOLDER."
        )
        return seen
    files = tracer.disk.files(cohort)
    for path, lines in search_tables(root, files, meaning):
        shown = ", ".join(str(line) for line in lines[:MAXIMUM_SHOWN])
        used = " (read by the ingest)" if path in seen.tables_read else " (not read: no table of this kind is wanted)"
        more = f" and {len(lines) - MAXIMUM_SHOWN} more" if len(lines) > MAXIMUM_SHOWN else ""
        seen.in_tables.append(f"{path}: row {shown}{more}{used}")
    pattern = id_pattern(meaning)
    carrying = []
    if pattern is not None:
        carrying = [path for path in files if pattern.search(path)]
    elif meaning.cohort == "AIBL" and meaning.subject:
        carrying = [path for path in files if meaning.subject in PurePosixPath(path).parts[:-1]]
    known = {str(row["source_path"]).split("!", 1)[0] for row in tracer.found(cohort)}
    for path in carrying[:MAXIMUM_SHOWN]:
        good, why = recognise(cohort, path)
        if path in known:
            continue
        seen.on_disk.append(f"{path}: {'looks like an image, ' if good else 'no image: '}{why}")
    if len(carrying) > MAXIMUM_SHOWN:
        seen.on_disk.append(f"and {len(carrying) - MAXIMUM_SHOWN} more files")
    images = any("looks like an image" in line for line in seen.on_disk)
    if images:
        seen.advice.append("Files are there that the ingest did not see: ingest the cohort again.")
    elif seen.on_disk:
        seen.advice.append("Files carry the id, but none is an image in the custodian's layout: see beside each file.")
    elif seen.in_tables:
        seen.advice.append(
            "The id stands in the tables, but no file or folder below the cohort's folder carries it: download the "
            "participant's images and unpack them there."
        )
    return seen


def _settle(answer: Answer) -> None:
    """The status that follows from the traces."""
    images = [image for trace in answer.traces for image in trace.images]
    if any(image.stopped_at is None for image in images):
        answer.status = "in the result"
    elif images:
        answer.status = "stopped"
    elif answer.traces:
        answer.status = "record without image"


def why_missing(
    results: Results,
    query: str,
    params: Params,
    *,
    cohort: str | None = None,
    roots: dict[str, Path] | None = None,
    tracer: Tracer | None = None,
) -> Answer:
    """Follow a participant, session, image or file through the stages.

    Parameters
    ----------
    results
        The tables to look into.
    query
        A native id in any spelling, an image key or number, an image id, or a path.
    params
        Roots of the cohorts and the split's parameters.
    cohort
        Look only there.
    roots
        Cohort to its folder, where it is not recorded.
    tracer
        Reused between queries.
    """
    tracer = tracer or Tracer(results, params, Disk(results, params, roots or {}))
    cohorts = [name for name in results.cohorts if cohort in (None, name)]
    if not cohorts:
        return Answer(query, [], "never seen", searched=[], near=[f"{cohort} was not ingested here"])
    options = meanings(query, cohort)
    answer = Answer(query, [option.words for option in options], "never seen")
    if _looks_like_path(query):
        by_path = _answer_path(tracer, query, cohorts)
        # A native key may hold a slash, too.
        if by_path.status != "never seen":
            return by_path
        answer.understood = [*by_path.understood, *answer.understood]
    for option in options:
        for name in cohorts:
            if option.cohort in (None, name) and (trace := tracer.in_cohort(name, option)) is not None:
                exact = option.kind == "image" and not re.fullmatch(r"I?\d+", option.key or "")
                if exact and any(image.key.casefold() == (option.key or "").casefold() for image in trace.images):
                    # The whole key of one image: broader readings of the same words are not meant.
                    answer.traces = [trace]
                elif not _repeats(answer.traces, trace):
                    answer.traces.append(trace)
    _settle(answer)
    if answer.status in ("record without image", "never seen"):
        for name in cohorts:
            own = [option for option in options if option.cohort == name]
            if own or all(option.cohort is None for option in options):
                looked = [_search(tracer, name, option) for option in own or options]
                looked.sort(key=lambda seen: not (seen.in_tables or seen.on_disk))
                answer.searched.append(looked[0])
        if any(seen.in_tables or seen.on_disk for seen in answer.searched):
            answer.searched = [seen for seen in answer.searched if seen.in_tables or seen.on_disk]
        if not answer.searched:
            answer.searched = [_overview(tracer, name) for name in cohorts]
            absent = sorted({str(option.cohort) for option in options if option.cohort not in (None, *cohorts)})
            answer.understood += [f"({name} was not ingested here)" for name in absent]
        if answer.status == "never seen" and any(s.in_tables or s.on_disk for s in answer.searched):
            answer.status = "seen but not used"
        known = {str(row["native_subject_id"] or "") for name in cohorts for row in tracer.found(name)}
        for name in cohorts:
            known |= set(map(str, results.ingest(name).visits["native_subject_id"].dropna().unique()))
        keys = {str(row["native_image_key"]) for name in cohorts for row in tracer.found(name)}
        if answer.status == "never seen":
            answer.near = near_spellings(query, sorted(known - {""}), limit=4) or near_spellings(query, sorted(keys))
    return answer


def _repeats(traces: list[Trace], new: Trace) -> bool:
    """Whether a trace tells nothing that an earlier one of the same cohort does not."""
    keys, people = {image.key for image in new.images}, set(new.subjects)
    return any(
        old.cohort == new.cohort
        and keys <= {image.key for image in old.images}
        and people <= set(old.subjects)
        and set(new.notes) <= set(old.notes)
        for old in traces
    )


def answer_dict(answer: Answer) -> dict[str, Any]:
    """An answer as plain data."""
    value = asdict(answer)
    for trace, plain_trace in zip(answer.traces, value["traces"], strict=True):
        for image, plain_image in zip(trace.images, plain_trace["images"], strict=True):
            stop = image.stopped_at
            plain_image["in_result"] = stop is None
            plain_image["stopped_at"] = None if stop is None else stop.stage
            plain_image["reason"] = None if stop is None else stop.reason
    return value


# ------------------------------------------------------------------------------------------------------------ summary


def summary(results: Results, cohort: str | None = None) -> list[dict[str, Any]]:
    """Per cohort: images found = accepted + quarantined by reason, and what the later stages left out."""
    rows = []
    for name in results.cohorts:
        if cohort not in (None, name):
            continue
        tables = results.ingest(name)
        quarantine = tables.quarantine
        drops = quarantine[(quarantine["level"] == "image") & (quarantine["severity"] == "drop")]
        others = quarantine[~((quarantine["level"] == "image") & (quarantine["severity"] == "drop"))]
        found = results.found(name)
        with_image = set(found["native_subject_id"].dropna())
        with_record = set(tables.visits["native_subject_id"].dropna())
        item: dict[str, Any] = {
            "cohort": name,
            "found": tables.images_found,
            "accepted": len(tables.images),
            "quarantined": _counts(drops["reason"]),
            "not_selected": int((~tables.images["selected"].astype(bool)).sum()),
            "remarks": _counts(others["reason"]),
            "participants_with_record_but_no_image": len(with_record - with_image),
            "participants_with_image_but_no_record": len(with_image - with_record),
        }
        harmonized, later = results.harmonized, results.harmonize_quarantine
        if harmonized is not None and later is not None:
            left = later[(later["dataset"] == name) & (later["level"] == "image") & (later["severity"] == "drop")]
            item["harmonized"] = int((harmonized["dataset"] == name).sum())
            item["harmonize_quarantined"] = _counts(left["reason"])
        index = results.volumes(name)
        if index is not None:
            item["normalized"] = int((index["verdict"] == "accepted").sum())
            item["normalize_quarantined"] = _counts(index.loc[index["verdict"] != "accepted", "reason"])
        if results.assignment is not None:
            own = results.assignment[results.assignment["dataset"] == name]
            item["split"] = _counts(own["split"])
            benchmarks = Counter(b for cell in own["benchmark"] for b in str(cell).split(";") if b)
            item["benchmarks"] = dict(sorted(benchmarks.items()))
        rows.append(item)
    return rows


def _counts(values: Any) -> dict[str, int]:
    return {str(name): int(number) for name, number in sorted(values.dropna().value_counts().items())}


def render_summary(rows: list[dict[str, Any]]) -> str:
    """The answer of :func:`summary` for a terminal of 100 columns."""
    blocks = []
    for row in rows:
        lines = [f"{row['cohort']}"]
        lines += [f"  {line}" for line in "\n".join(
            count_lines(row["found"], row["accepted"], row["quarantined"])
        ).splitlines()]  # fmt: skip
        if row["not_selected"]:
            lines.append(f"  {row['not_selected']:,} of the accepted do not take part: one image per visit is used")
        for stage, kept in (("harmonize", "harmonized"), ("normalize", "normalized")):
            if kept in row:
                lost = row[f"{stage}_quarantined"]
                reasons = ", ".join(f"{number} {reason}" for reason, number in lost.items())
                lines.append(f"  {stage}: {row[kept]:,} kept, {sum(lost.values()):,} quarantined" + (
                    f" ({reasons})" if reasons else ""))  # fmt: skip
        if "split" in row:
            parts = ", ".join(f"{number:,} {name}" for name, number in row["split"].items())
            lines.append(f"  split: {parts}")
            if row["benchmarks"]:
                lines.append("  benchmarks: " + ", ".join(f"{n} {c:,}" for n, c in row["benchmarks"].items()))
        if row["participants_with_record_but_no_image"]:
            number = count(row["participants_with_record_but_no_image"], "participant")
            lines.append(f"  {number} with a clinical record but without any image")
        if row["participants_with_image_but_no_record"]:
            number = count(row["participants_with_image_but_no_record"], "participant")
            lines.append(f"  {number} with images but without any visit in the tables")
        if row["remarks"]:
            words = ", ".join(f"{reason} {number:,}" for reason, number in row["remarks"].items())
            lines.append(paragraph(f"kept, with remarks or emptied values: {words}", "  ", "    "))
        blocks.append("\n".join(lines))
    blocks.append("One participant, image or file: medalign3d why-missing ID.  All reasons: docs/quarantine_reasons.md")
    return "\n\n".join(blocks)


# ----------------------------------------------------------------------------------------------------------- printing


def render(answer: Answer) -> str:
    """An answer for a terminal of 100 columns."""
    images = [image for trace in answer.traces for image in trace.images]
    inside = sum(image.stopped_at is None for image in images)
    head = {
        "in the result": f"in the result: {inside} of {count(len(images), 'image')}",
        "stopped": f"not in the result: {count(len(images), 'image')} found, all stopped on the way"
        if len(images) > 1
        else "not in the result: the image was found, and stopped on the way",
        "record without image": "not in the result: there is a clinical record, but no image was found",
        "seen but not used": "not in the result: it is on disk or in a table, but the ingest made no image of it",
        "never seen": "never seen: neither in the tables of any stage nor in a folder that could be searched",
    }[answer.status]
    lines = [f"{answer.query}: {head}"]
    for trace in answer.traces:
        lines.append("")
        who = ", ".join(trace.subjects[:MAXIMUM_SHOWN]) or "participant unknown"
        span = f" ({trace.visit_span})" if trace.visit_span else ""
        visits = f"; {count(trace.visits, 'clinical visit')}{span}" if trace.visits else "; no clinical visit"
        lines.append(paragraph(f"{trace.cohort}: {who}{visits}", " ", "   "))
        lines += [paragraph(note, "   ", "     ") for note in trace.notes]
        lines += _image_lines(trace.images)
    plain_misses = [seen for seen in answer.searched if not (seen.in_tables or seen.on_disk or seen.advice)]
    if len(plain_misses) > 1:
        lines += ["", " searched in vain"]
        for seen in plain_misses:
            folder = f"{count(seen.files, 'file')} below {seen.root}" if seen.root else "its folder is not known"
            words = f"{count(seen.images_found, 'image')}, {count(len(seen.tables_read), 'table')}, {folder}"
            lines.append(labelled(seen.cohort, words, indent="   ", label_width=7))
    for seen in answer.searched:
        if len(plain_misses) < 2 or seen not in plain_misses:
            lines += _searched_lines(seen)
    if answer.status == "never seen":
        if answer.understood:
            lines.append(paragraph(f"understood as: {'; '.join(answer.understood)}", " ", "   "))
        if answer.near:
            lines.append(paragraph(f"near spellings: {', '.join(answer.near)}", " ", "   "))
        else:
            lines.append(" no id that is known looks like it")
    return "\n".join(lines)


def _image_lines(images: list[ImageTrace]) -> list[str]:
    lines: list[str] = []
    shown: Counter[tuple[str, str]] = Counter()
    hidden: Counter[str] = Counter()
    for image in sorted(images, key=lambda i: (i.stopped_at is not None, i.key)):
        stop = image.stopped_at
        group = ("in", "") if stop is None else (stop.stage, stop.reason or "")
        shown[group] += 1
        if shown[group] > 3 and len(images) > MAXIMUM_SHOWN:
            hidden["in the result" if stop is None else f"stopped at {stop.stage}: {stop.reason or 'not used'}"] += 1
            continue
        state = "in the result" if stop is None else f"stopped at {stop.stage}"
        if stop is not None and stop.reason:
            state += f": {stop.reason}"
        name = f"{image.image_id} " if image.image_id else ""
        lines.append(paragraph(f"image {name}{image.key}: {state}", "   ", "     "))
        for step in image.steps:
            lines.append(labelled(step.stage, step.text, indent="     ", label_width=9))
            if step.state == STOPPED:
                if step.file and step.file != image.source_path:
                    place = step.file if step.row is None else f"{step.file}:{step.row}"
                    lines.append(labelled("", f"where: {place}", indent="     ", label_width=9))
                for label, words in (("means", step.meaning), ("to do", step.remedy)):
                    if words:
                        lines.append(labelled("", f"{label}: {words}", indent="     ", label_width=9))
    lines += [f"   and {number} more, {state}" for state, number in hidden.items()]
    return lines


def _searched_lines(seen: Searched) -> list[str]:
    lines = ["", f" {seen.cohort}: searched"]
    if seen.tables_read:
        words = f"{count(seen.images_found, 'image')} found by the ingest, {count(len(seen.tables_read), 'table')} read"
        lines.append(paragraph(words, "   "))
    if seen.tables_read and not seen.in_tables:
        names = ", ".join(PurePosixPath(name).name for name in seen.tables_read[:12])
        lines.append(paragraph(f"tables: {names}" + (" ..." if len(seen.tables_read) > 12 else ""), "   ", "     "))
    if seen.root:
        lines.append(
            paragraph(f"folder: {seen.root}" + (f" ({count(seen.files, 'file')})" if seen.files else ""), "   ")
        )
    if seen.in_tables:
        lines.append("   in tables:")
        lines += [paragraph(line, "     ", "       ") for line in seen.in_tables]
    if seen.on_disk:
        lines.append("   on disk:")
        lines += [paragraph(line, "     ", "       ") for line in seen.on_disk]
    lines += [paragraph(f"-> {line}", "   ", "      ") for line in seen.advice]
    return lines
