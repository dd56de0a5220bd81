"""Who is trained on and who is tested: by person, decided by hashes, never moved by others.

Held-out mode
    A person is held out when the hash of the person id falls below the share that ``split.test_fraction`` (or the
    benchmark's own ``test_fraction`` of the person's class) sets. Neither the presence nor the number of other people
    plays a part, so people who join later never move anybody. Among the held-out people each benchmark takes equally
    many images of each class, at most ``per_class``, at most ``maximum_images_per_person`` of a person, and of one
    class per person; the choice is spread over sex, age tercile and field strength. When a class has too few, all
    classes shrink alike and the benchmark's name says so (``ADNI-3x14``). Held-out images that no benchmark takes have
    split ``test`` and no benchmark: they are neither trained on nor counted. Of the other people with a label a hashed
    share is for validation. People without a label are trained on (images only).
Cross-validation mode
    People with a label are dealt into folds, class by class in hash order, so that every fold has its share of each
    class. Folds are as even as can be, hence they do change when people join. People without a label are always trained
    on.
Zero-shot cohorts
    Every image of AIBL, MIRIAD and of the cohort of a zero-shot benchmark has split ``zeroshot``, with or without a
    benchmark; a person who is linked to one is not used in any other cohort.
Linked persons
    A group of linked participants is one person, called by its alphabetically first label. When a link is found later,
    nobody outside the group moves.

Images that are not selected or have no accepted volume have split ``excluded``.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medalign3d.ehr.questions import class_of, get_question
from medalign3d.ehr.schema import COLUMN_BY_NAME
from medalign3d.ehr.storage import write_table
from medalign3d.ehr.values import is_missing, number_or_none, records_of, text_or_none
from medalign3d.errors import InputError, MedAlignError, ParameterError
from medalign3d.files import sha256_file, write_csv, write_json
from medalign3d.params import ZERO_SHOT_COHORTS

if TYPE_CHECKING:
    import pandas as pd

    from medalign3d.params import Benchmark, Params, Split

ASSIGNMENT_COLUMNS = ("image_id", "person_id", "dataset", "split", "fold", "class", "benchmark", "validation_draw")
BENCHMARK_COLUMNS = ("image_id", "person_id", "split", "class")
USED_SPLITS = ("train", "val", "test", "zeroshot")
SPLITS = (*USED_SPLITS, "excluded")


class SmallBenchmark(UserWarning):
    """A benchmark is smaller than asked for, or a class is missing somewhere."""


def _warn(message: str) -> None:
    warnings.warn(message, SmallBenchmark, stacklevel=2)


def draw(split: Split, purpose: str, key: str) -> float:
    """A number in [0, 1) that depends on the salt, the seed, the purpose and the key alone."""
    content = f"{split.salt}\n{split.seed}\n{purpose}\n{key}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "big") / 2**56


@dataclass(frozen=True)
class _Image:
    """What splitting needs to know of one image."""

    image_id: str
    person_id: str
    dataset: str
    usable: bool
    derived: bool
    when: tuple[float, float, str]
    classes: dict[str, str]
    stratum: tuple[str, str]
    age: float | None


def _read_images(
    images: pd.DataFrame, benchmarks: Mapping[str, Benchmark], usable: Collection[str] | None
) -> list[_Image]:
    needed = ("image_id", "person_id", "dataset")
    missing = [name for name in needed if name not in images]
    if missing:
        raise InputError(
            "the harmonized table lacks columns", found=f"no {', '.join(missing)}", expected=", ".join(needed)
        )
    result = []
    for row in records_of(images):
        dataset = str(row["dataset"])
        classes = {}
        for name, benchmark in benchmarks.items():
            if benchmark.cohort == dataset and (code := class_of(row, benchmark.question)) is not None:
                classes[name] = code
        selected = is_missing(row.get("selected")) or bool(row["selected"])
        day, age = number_or_none(row.get("scan_day")), number_or_none(row.get("age_years"))
        result.append(
            _Image(
                image_id=str(row["image_id"]),
                person_id=str(row["person_id"]),
                dataset=dataset,
                usable=selected and (usable is None or row["image_id"] in usable),
                derived=text_or_none(row.get("variant_of")) is not None,
                when=(
                    math.inf if age is None else age,
                    math.inf if day is None else day,
                    f"{text_or_none(row.get('session_id'))}\n{row['image_id']}",
                ),
                classes=classes,
                stratum=(str(text_or_none(row.get("sex"))), str(number_or_none(row.get("field_strength_t")))),
                age=age,
            )
        )
    return sorted(result, key=lambda image: image.image_id)


def _check_parameters(params: Params) -> dict[str, str]:
    """Cohort to how it is used: ``zero_shot`` or ``tested``; contradictory benchmarks are errors."""
    uses: dict[str, str] = dict.fromkeys(ZERO_SHOT_COHORTS, "zero_shot")
    for name, benchmark in params.split.benchmarks.items():
        use = "zero_shot" if benchmark.zero_shot else "tested"
        if uses.setdefault(benchmark.cohort, use) != use:
            raise ParameterError(
                "a cohort cannot be zero-shot and trained on",
                where=f"split.benchmarks.{name}",
                found=f"{benchmark.cohort} both with and without zero_shot",
                remedy="make all benchmarks of the cohort zero-shot, or none",
            )
        unknown = sorted(set(benchmark.test_fraction or {}) - set(get_question(benchmark.question).classes))
        if unknown:
            raise ParameterError(
                "unknown classes",
                where=f"split.benchmarks.{name}.test_fraction",
                found=unknown,
                expected=f"some of {list(get_question(benchmark.question).classes)}",
            )
    return uses


def _first_class(images: list[_Image], benchmark: str) -> str | None:
    """The class of a person's earliest image with a class, so that later visits never move the person."""
    labelled = [image for image in images if benchmark in image.classes]
    return min(labelled, key=lambda image: image.when).classes[benchmark] if labelled else None


def _test_share(images: list[_Image], split: Split) -> float:
    """The share of people like this one that is held out; 0 without a class in a held-out benchmark."""
    share = 0.0
    for name, benchmark in split.benchmarks.items():
        code = None if benchmark.zero_shot else _first_class(images, name)
        if code is not None:
            share = max(share, (benchmark.test_fraction or {}).get(code, split.test_fraction))
    return share


def _candidates(
    images: list[_Image], benchmark_name: str, benchmark: Benchmark, split: Split
) -> dict[str, list[list[_Image]]]:
    """Per class the people who can stand for it: each a list of at most ``maximum_images_per_person`` images.

    A person whose class changes stands for the class that has the fewest people.
    """
    by_person: dict[str, list[_Image]] = defaultdict(list)
    for image in images:
        # A derived file is the same picture again: it is never counted.
        if image.usable and not image.derived and benchmark_name in image.classes:
            by_person[image.person_id].append(image)
    people = Counter(
        code for group in by_person.values() for code in {image.classes[benchmark_name] for image in group}
    )
    result: dict[str, list[list[_Image]]] = {code: [] for code in get_question(benchmark.question).classes}
    for person in sorted(by_person):
        codes = {image.classes[benchmark_name] for image in by_person[person]}
        code = min(codes, key=lambda item: (people[item], item))
        own = [image for image in by_person[person] if image.classes[benchmark_name] == code]
        own.sort(key=lambda image: draw(split, "image", image.image_id))
        result[code].append(own[: benchmark.maximum_images_per_person])
    return result


def _spread(people: list[list[_Image]], count: int, split: Split, terciles: tuple[float, float]) -> list[list[_Image]]:
    """``count`` of the people in hash order, spread over sex, field strength and age tercile like all of them."""
    strata: dict[tuple[str, str, int], list[list[_Image]]] = defaultdict(list)
    for images in sorted(people, key=lambda group: draw(split, "benchmark", group[0].person_id)):
        age = images[0].age
        tercile = -1 if age is None else sum(age > limit for limit in terciles)
        strata[(*images[0].stratum, tercile)].append(images)
    exact = {key: count * len(group) / len(people) for key, group in strata.items()}
    chosen = {key: int(value) for key, value in exact.items()}
    for key in sorted(strata, key=lambda item: (chosen[item] - exact[item], item))[: count - sum(chosen.values())]:
        chosen[key] += 1
    picked = [images for key in sorted(strata) for images in strata[key][: chosen[key]]]
    return sorted(picked, key=lambda group: draw(split, "benchmark", group[0].person_id))


def _pick(people: list[list[_Image]], count: int, split: Split, terciles: tuple[float, float]) -> list[_Image]:
    """Exactly ``count`` images: first one of each person, then second ones, and so on."""
    picked: list[_Image] = []
    rounds = max((len(group) for group in people), default=0)
    for number in range(rounds):
        offered = [group for group in people if len(group) > number]
        wanted = min(len(offered), count - len(picked))
        picked += [group[number] for group in _spread(offered, wanted, split, terciles)] if wanted else []
    return picked


def _terciles(images: list[_Image]) -> tuple[float, float]:
    ages = sorted(image.age for image in images if image.age is not None)
    if not ages:
        return (0.0, 0.0)
    return (ages[len(ages) // 3], ages[2 * len(ages) // 3])


def _balanced(name: str, benchmark: Benchmark, held_out: list[_Image], split: Split) -> tuple[str, dict[str, str]]:
    """Name and members (image id to class) of a balanced benchmark among held-out images."""
    people = _candidates(held_out, name, benchmark, split)
    available = {code: sum(len(group) for group in groups) for code, groups in people.items()}
    wanted = benchmark.per_class or min(available.values())
    size = min(wanted, *available.values())
    if size == 0:
        return name, {}
    real_name = f"{name}{size}" if name.endswith("x") else name
    if size < wanted:
        _warn(
            f"benchmark {real_name}: {size} images of each class instead of {wanted}, because only "
            + ", ".join(f"{count} of {code}" for code, count in available.items())
            + " are held out; raise split.benchmarks.*.test_fraction for the class that lacks, or lower per_class"
        )
    terciles = _terciles([image for groups in people.values() for group in groups for image in group])
    members = {
        image.image_id: code for code, groups in people.items() for image in _pick(groups, size, split, terciles)
    }
    return real_name, members


def _folds(people: Mapping[str, list[_Image]], split: Split) -> dict[str, int]:
    """The fold of every person with a label."""
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for person, images in people.items():
        codes = [_first_class(images, name) for name, item in split.benchmarks.items() if not item.zero_shot]
        if any(code is not None for code in codes):
            strata[tuple(str(code) for code in codes)].append(person)
    folds: dict[str, int] = {}
    # Dealing goes on where the last class stopped, so that the folds are of one size.
    for stratum in sorted(strata):
        for person in sorted(strata[stratum], key=lambda item: draw(split, "fold", item)):
            folds[person] = len(folds) % split.folds
    if len(folds) < split.folds:
        raise InputError(
            "too few people for cross-validation",
            found=f"{len(folds)} people with a label",
            expected=f"at least split.folds, {split.folds}",
            remedy="lower split.folds in params.yaml, or check why so few people have a label and a usable image",
        )
    return folds


def make_splits(images: pd.DataFrame, params: Params, usable_image_ids: Collection[str] | None = None) -> pd.DataFrame:
    """Assign every image to a split.

    Parameters
    ----------
    images
        The harmonized table; ``selected`` false takes an image out of use (an absent column means true).
    params
        ``split`` is used.
    usable_image_ids
        Images with an accepted volume; None means all.

    Returns
    -------
    DataFrame
        One row per image, sorted by image id, with ``image_id``, ``person_id``, ``dataset``, ``split`` (train, val,
        test, zeroshot, excluded; ``fold`` for people that cross-validation tests), ``fold`` (-1: none), ``class``,
        ``benchmark`` (empty: none; several are joined by a semicolon, and ``class`` alike; without a benchmark
        ``class`` is that of the cohort's first question) and ``validation_draw`` (below 1: for validation whenever not
        tested).

    Raises
    ------
    InputError, ParameterError
        When there are too few people, or benchmarks contradict each other.
    MedAlignError
        When a person or an image's voxels would be in two splits.

    Warns
    -----
    SmallBenchmark
        When a benchmark is smaller than asked for.
    """
    import pandas as pd

    split = params.split
    uses = _check_parameters(params)
    usable = None if usable_image_ids is None else set(usable_image_ids)
    records = _read_images(images, split.benchmarks, usable)
    everything: dict[str, list[_Image]] = defaultdict(list)
    for image in records:
        everything[image.person_id].append(image)
    zero_shot = {p for p, own in everything.items() if any(uses.get(image.dataset) == "zero_shot" for image in own)}
    present = {
        person: [image for image in own if image.usable]
        for person, own in everything.items()
        if person not in zero_shot and any(image.usable for image in own)
    }
    draws = {person: draw(split, "validation", person) / split.validation_fraction for person in everything}
    roles: dict[str, str] = {}
    folds: dict[str, int] = {}
    if split.mode == "cross_validation":
        folds = _folds(present, split)
        roles = {person: "fold" if person in folds else "train" for person in present}
    else:
        for person in present:
            # A person's share looks at all images, usable or not, so that a rejected volume moves nobody.
            own = everything[person]
            labelled = any(image.classes for image in own)
            if draw(split, "test", person) < _test_share(own, split):
                roles[person] = "test"
            else:
                roles[person] = "val" if labelled and draws[person] < 1.0 else "train"
    members = _members(records, roles, uses, split)

    first_of: dict[str, str] = {}
    for name, benchmark in split.benchmarks.items():
        first_of.setdefault(benchmark.cohort, name)
    rows = []
    for image in records:
        role = roles.get(image.person_id, "excluded")
        if image.person_id in zero_shot:
            role = "zeroshot" if uses.get(image.dataset) == "zero_shot" else "excluded"
        if not image.usable:
            role = "excluded"
        own_members = {name: chosen[image.image_id] for name, chosen in members.items() if image.image_id in chosen}
        rows.append(
            {
                "image_id": image.image_id,
                "person_id": image.person_id,
                "dataset": image.dataset,
                "split": role,
                "fold": folds.get(image.person_id, -1) if role == "fold" else -1,
                "class": ";".join(own_members.values()) or image.classes.get(first_of.get(image.dataset, ""), ""),
                "benchmark": ";".join(own_members),
                "validation_draw": round(draws[image.person_id], 6),
            }
        )
    assignment = pd.DataFrame(rows, columns=list(ASSIGNMENT_COLUMNS)).astype(
        {"fold": "int64", "validation_draw": "float64"}
        | dict.fromkeys(("image_id", "person_id", "dataset", "split", "class", "benchmark"), "str")
    )
    assignment.attrs["benchmarks"] = sorted(members)
    check_disjoint(assignment, images)
    return assignment


def _members(
    records: list[_Image], roles: Mapping[str, str], uses: Mapping[str, str], split: Split
) -> dict[str, dict[str, str]]:
    """Benchmark name to its images and their classes; benchmarks without any image are left out with a warning."""
    result: dict[str, dict[str, str]] = {}
    for name, benchmark in split.benchmarks.items():
        own = [image for image in records if image.dataset == benchmark.cohort]
        real_name = name
        if benchmark.zero_shot:
            chosen = {image.image_id: image.classes[name] for image in own if image.usable and name in image.classes}
        elif split.mode == "cross_validation":
            tested = [image for image in own if roles.get(image.person_id) == "fold"]
            people = _candidates(tested, name, benchmark, split)
            chosen = {image.image_id: code for code, groups in people.items() for group in groups for image in group}
        else:
            held_out = [image for image in own if roles.get(image.person_id) == "test"]
            real_name, chosen = _balanced(name, benchmark, held_out, split)
        if not chosen:
            _warn(f"benchmark {real_name}: no image of at least one class can be used; it is left out")
            continue
        classes = set(chosen.values())
        for code in get_question(benchmark.question).classes:
            if code not in classes:
                _warn(f"benchmark {real_name}: no image of class {code}")
            elif split.mode == "held_out" and not benchmark.zero_shot:
                trained = any(
                    image.usable and image.classes.get(name) == code and roles.get(image.person_id) == "train"
                    for image in own
                )
                if not trained:
                    _warn(f"benchmark {real_name}: nobody of class {code} is trained on")
        result[real_name] = chosen
    return result


def check_disjoint(assignment: pd.DataFrame, images: pd.DataFrame) -> None:
    """Assert that no person and no image's voxels are in two splits that are used (folds count as splits).

    Raises
    ------
    MedAlignError
        Names the splits and how many persons or images they share.
    """
    used = assignment[assignment["split"] != "excluded"].copy()
    used["part"] = used["split"] + used["fold"].astype(str)
    if "data_sha256" in images:
        hashes = dict(zip(images["image_id"].astype(str), images["data_sha256"], strict=True))
        used["data_sha256"] = [hashes.get(image) for image in used["image_id"]]
    for key, what in (("person_id", "persons"), ("data_sha256", "images with the same voxels")):
        if key not in used:
            continue
        parts = used.dropna(subset=[key]).groupby(key)["part"].nunique()
        if int((parts > 1).sum()):
            raise MedAlignError(
                f"{what} are in two splits",
                where=", ".join(sorted(_mixtures(used, key, parts.index[parts > 1]))),
                found=f"{int((parts > 1).sum())} shared",
                expected="none",
                remedy="harmonize the cohorts again, so that equal images are found and their persons linked",
            )


def _mixtures(used: pd.DataFrame, key: str, shared: pd.Index) -> set[str]:
    """The combinations of splits that share something, e.g. ``test and train``."""
    rows = used[used[key].isin(shared)]
    return {" and ".join(sorted(set(group))) for _, group in rows.groupby(key)["split"]}


def split_for_run(assignment: pd.DataFrame, mode: str, run: int) -> pd.Series:
    """The split of every image in one training run.

    Parameters
    ----------
    assignment
        What :func:`make_splits` gave.
    mode
        ``held_out`` (the same in every run) or ``cross_validation`` (run ``k`` tests fold ``k``).
    run
        Number of the run, from 0.

    Returns
    -------
    Series
        Indexed by ``image_id``: train, val, test, zeroshot or excluded.
    """
    import pandas as pd

    if mode not in ("held_out", "cross_validation"):
        raise ParameterError("unknown split mode", found=repr(mode), expected="held_out or cross_validation")
    parts = [str(part) for part in assignment["split"]]
    persons = [str(person) for person in assignment["person_id"]]
    draws = [float(value) for value in assignment["validation_draw"]]
    codes = assignment.get("class", persons)
    labelled = {person for person, code in zip(persons, codes, strict=True) if code}
    if mode == "cross_validation":
        folds = [int(fold) for fold in assignment["fold"]]
        if run not in set(folds) or run < 0:
            raise ParameterError(
                "no such fold",
                where="training.runs",
                found=f"run {run}",
                expected=f"0 to {max(folds)}",
                remedy="training.runs cannot be more than split.folds",
            )
        parts = [
            part if part != "fold" else "test" if fold == run else "val" if value < 1.0 else "train"
            for part, fold, value in zip(parts, folds, draws, strict=True)
        ]
    if "val" not in parts:
        # Chance gave nobody to validation: in this run the labelled training person with the lowest draw is it.
        ranked = zip(draws, persons, parts, strict=True)
        candidates = sorted({(value, p) for value, p, part in ranked if part == "train" and p in labelled})
        if len(candidates) > 1:
            chosen = candidates[0][1]
            parts = [
                "val" if part == "train" and person == chosen else part
                for part, person in zip(parts, persons, strict=True)
            ]
    images = pd.Index(assignment["image_id"].astype(str), name="image_id")
    return pd.Series(parts, index=images, name="split", dtype="str")


def benchmark_table(assignment: pd.DataFrame, name: str) -> pd.DataFrame:
    """The images of one benchmark: ``image_id``, ``person_id``, ``split`` and the ``class`` for its question."""
    import pandas as pd

    rows = []
    for row in records_of(assignment):
        names = str(row["benchmark"]).split(";")
        if name in names:
            code = str(row["class"]).split(";")[names.index(name)]
            rows.append({**{column: row[column] for column in BENCHMARK_COLUMNS}, "class": code})
    return pd.DataFrame(rows, columns=list(BENCHMARK_COLUMNS)).astype("str")


def benchmark_names(assignment: pd.DataFrame) -> list[str]:
    """The names of all benchmarks that have images, sorted."""
    return sorted({name for cell in assignment["benchmark"].unique() for name in str(cell).split(";") if name})


def benchmark_parameters(name: str, params: Params) -> Benchmark:
    """The parameters of a benchmark by its real name (``ADNI-3x14`` is made of ``ADNI-3x``).

    Raises
    ------
    ParameterError
        When no benchmark of the parameters has that name.
    """
    benchmarks = params.split.benchmarks
    if name in benchmarks:
        return benchmarks[name]
    stem = re.sub(r"(?<=x)\d+$", "", name)
    if stem in benchmarks:
        return benchmarks[stem]
    raise ParameterError("unknown benchmark", found=repr(name), expected=f"one of {sorted(benchmarks)}")


def write_splits(assignment: pd.DataFrame, out_dir: str | Path, params: Params) -> None:
    """Write the assignment, one CSV per benchmark, and ``index.json`` with what they are and their SHA-256.

    ``assignment.parquet`` holds ``split`` and ``benchmark`` (a list) as the data dictionary describes them;
    ``assignment.csv`` the same with folds, classes and draws.
    """
    import pandas as pd

    folder = Path(out_dir)
    columns = [COLUMN_BY_NAME[name] for name in ("image_id", "person_id", "dataset", "split", "benchmark")]
    lists = [[name for name in str(cell).split(";") if name] for cell in assignment["benchmark"]]
    listed = assignment.assign(benchmark=pd.Series(lists, index=assignment.index, dtype=object))
    write_table(folder / "assignment.parquet", listed, columns, {"simulated": str(params.simulated).lower()})
    rows = assignment[list(ASSIGNMENT_COLUMNS)].assign(
        validation_draw=[f"{value:.6f}" for value in assignment["validation_draw"]]
    )
    write_csv(folder / "assignment.csv", records_of(rows), list(ASSIGNMENT_COLUMNS))
    used = assignment[assignment["split"] != "excluded"]
    index: dict[str, Any] = {
        "mode": params.split.mode,
        "seed": params.split.seed,
        "salt": params.split.salt,
        "folds": params.split.folds if params.split.mode == "cross_validation" else None,
        "simulated": params.simulated,
        "assignment": {"file": "assignment.csv", "sha256": sha256_file(folder / "assignment.csv")},
        "images": {str(k): int(v) for k, v in used.groupby("split")["image_id"].nunique().items()},
        "persons": {str(k): int(v) for k, v in used.groupby("split")["person_id"].nunique().items()},
        "benchmarks": {},
    }
    for name in benchmark_names(assignment):
        table = benchmark_table(assignment, name)
        write_csv(folder / f"{name}.csv", records_of(table), list(BENCHMARK_COLUMNS))
        benchmark = benchmark_parameters(name, params)
        index["benchmarks"][name] = {
            "file": f"{name}.csv",
            "sha256": sha256_file(folder / f"{name}.csv"),
            "cohort": benchmark.cohort,
            "question": benchmark.question,
            "zero_shot": benchmark.zero_shot,
            "per_class": {str(k): int(v) for k, v in table["class"].value_counts(sort=False).sort_index().items()},
            "persons": int(table["person_id"].nunique()),
            "asked_per_class": benchmark.per_class,
        }
    write_json(folder / "index.json", index)


def read_assignment(path: str | Path) -> pd.DataFrame:
    """Read ``assignment.csv`` (or the folder that holds it) with the types that :func:`make_splits` gives.

    Raises
    ------
    InputError
        When the file is missing or lacks columns.
    """
    import pandas as pd

    file = Path(path)
    file = file / "assignment.csv" if file.is_dir() else file
    if not file.is_file():
        raise InputError("the split is missing", where=file, remedy="run `dvc repro split`")
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    missing = [name for name in ASSIGNMENT_COLUMNS if name not in table]
    if missing:
        raise InputError(
            "the split lacks columns", where=file, found=f"no {', '.join(missing)}", remedy="run `dvc repro split`"
        )
    return table.astype({"fold": "int64", "validation_draw": "float64"})
