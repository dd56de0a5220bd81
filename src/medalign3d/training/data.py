"""Batches: volumes, health-record texts, questions and answers, as a pure function of (seed, step).

A batch depends on the seed and the step number alone, so a killed run goes on with exactly the batches it would have
seen, and no loader state has to be saved. Every batch is balanced over cohort x class; a share of it asks closed
questions about imaging findings instead, whose answers were measured on the *training* images.

Controls: ``shuffled`` gives each image of a person to another person of the same cohort (fixed by the seed, one
permutation per split), ``blind`` gives a black volume. Both keep everything else, so what is gained over them is what
the person's own image adds.

Not supported: left-right flips as augmentation, because sides are asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from medalign3d import files
from medalign3d.ehr import text as record_text
from medalign3d.ehr.questions import Question, class_of, get_question
from medalign3d.ehr.splits import benchmark_names, benchmark_parameters, read_assignment, split_for_run
from medalign3d.errors import InputError, MedAlignError, ParameterError
from medalign3d.params import Optimization, Params
from medalign3d.training.augmentation import VolumeChanges, apply_changes, draw_changes
from medalign3d.training.findings import FINDINGS, Thresholds, training_thresholds
from medalign3d.volumes.store import load_index, read

CONTROLS = ("shuffled", "blind")
IN_MEMORY_BYTES = 2 << 30
"""Volumes up to this size in all are held in memory; larger sets are mapped from disk and read as needed."""

EVALUATED_SPLITS = ("val", "test", "zeroshot")


def read_images(params: Params, data_dir: str | Path = "data") -> pd.DataFrame:
    """Join records, splits and volumes: one row per image that has an accepted volume and a place in the splits.

    Returns
    -------
    DataFrame with the harmonized columns, ``split``, ``fold``, ``validation_draw`` and ``benchmark`` of the assignment,
    ``volume_path`` (str), ``volume_sha256`` and the measured ``region_*`` columns, sorted by ``image_id``.
    ``attrs["simulated"]`` is ``"true"`` or ``"false"``.

    Raises
    ------
    InputError
        When a table is missing, no image is left, simulated and real people are mixed, or the rows are those of
        ``ingest.form: table1_emulation``, which count one scan many times and must not train or test a model.
    """
    folder = Path(data_dir)
    images = files.read_parquet(folder / "ehr" / "images.parquet")
    form = images.attrs.get("form", "clean")
    if form != "clean":
        raise InputError(
            "these rows are for counting only: models are never trained or evaluated on them",
            where=folder / "ehr/images.parquet",
            found=f"form: {form}",
            expected="form: clean",
            remedy="set ingest.form: clean in params.yaml and run `dvc repro`",
        )
    simulated = images.attrs.get("simulated", "true" if params.simulated else "false")
    assignment = read_assignment(folder / "splits")
    indexes = []
    for cohort in params.cohorts:
        path = folder / "volumes" / cohort
        index = load_index(path)
        marked = index.attrs.get("simulated")
        if marked is not None and marked != simulated:
            raise InputError(
                "simulated and real people are mixed",
                where=path,
                found=f"simulated: {marked}",
                expected=f"simulated: {simulated}",
                remedy="run `dvc repro` so that all tables are of one profile",
            )
        index = index[index["verdict"].astype(str) == "accepted"].copy()
        index["volume_path"] = [str(folder / "volumes" / cohort / str(name)) for name in index["path"]]
        index = index.rename(columns={"sha256": "volume_sha256"})
        columns = ["image_id", "volume_path", "volume_sha256", *region_columns(index)]
        indexes.append(index[columns])
    index = pd.concat(indexes, ignore_index=True)
    places = assignment[["image_id", "split", "fold", "validation_draw", "benchmark"]]
    kept = images.drop(columns=[c for c in places if c in images and c != "image_id"])
    table = kept.merge(places, on="image_id", how="inner", validate="one_to_one")
    table = table.merge(index, on="image_id", how="inner", validate="one_to_one")
    if table.empty:
        raise InputError(
            "no image has a record, a split and an accepted volume",
            where=folder,
            found=f"{len(images)} records, {len(assignment)} split rows, {len(index)} accepted volumes",
            remedy="look at data/volumes/*/index.parquet for the reasons",
        )
    table = table.sort_values("image_id", ignore_index=True)
    table.attrs = {"simulated": simulated}
    return table


def split_column(table: pd.DataFrame, params: Params, run: int) -> pd.Series:
    """The split (train, val, test, zeroshot, excluded) of each row of ``table`` for run number ``run``."""
    resolved = split_for_run(table, params.split.mode, run)
    return pd.Series(table["image_id"].map(resolved).to_numpy(), index=table.index, name="split")


def questions_of_cohort(params: Params, cohort: str) -> list[tuple[str, str]]:
    """``(benchmark, question name)`` pairs that are asked about people of ``cohort``."""
    return [(name, b.question) for name, b in params.split.benchmarks.items() if b.cohort == cohort]


def region_columns(table: pd.DataFrame) -> list[str]:
    """Names of the regional measures that ``table`` has, sorted."""
    return sorted(str(column) for column in table.columns if str(column).startswith("region_"))


class Volumes:
    """The uint8 volumes of a table's images, in memory or read from disk when they are asked for.

    Parameters
    ----------
    paths
        Files of the store (:mod:`medalign3d.volumes.store`), of equal shape.
    shape
        Expected (X, Y, Z).
    in_memory_bytes
        Largest total size that is read into memory at once.

    Raises
    ------
    InputError
        When a file is missing, damaged, or of another shape or dtype.
    """

    def __init__(self, paths: Sequence[str], shape: Sequence[int], *, in_memory_bytes: int = IN_MEMORY_BYTES) -> None:
        self.paths = list(paths)
        self.shape = tuple(int(n) for n in shape)
        total = len(self.paths) * int(np.prod(self.shape))
        self._array: npt.NDArray[np.uint8] | None = None
        if total <= in_memory_bytes:
            self._array = np.empty((len(self.paths), *self.shape), dtype=np.uint8)
            for row in range(len(self.paths)):
                self._array[row] = read(self.paths[row], shape=self.shape)

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The volumes of ``rows`` as an array (B, X, Y, Z) of uint8."""
        if self._array is not None:
            return self._array[np.asarray(rows, dtype=np.int64)]
        if len(rows) == 1:
            return read(self.paths[int(rows[0])], shape=self.shape)[None]  # without a copy
        taken = np.empty((len(rows), *self.shape), dtype=np.uint8)
        for place, row in enumerate(rows):
            taken[place] = read(self.paths[int(row)], shape=self.shape)
        return taken


def as_input(volumes: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Volumes (B, X, Y, Z) of uint8 as model input (B, 1, X, Y, Z); the model brings them to [0, 1] on its device."""
    return torch.from_numpy(np.ascontiguousarray(volumes)).unsqueeze(1)


def shuffled_rows(persons: Sequence[str], groups: Sequence[str], seed: int) -> npt.NDArray[np.int64]:
    """Row of another person's image for every row: people are permuted within groups without a fixed point.

    Parameters
    ----------
    persons
        Person of each row.
    groups
        Group of each row, e.g. cohort and split; images stay within it. The only person of a group keeps their images
        (there is nobody to swap with).
    seed
        Of the permutation.

    Returns
    -------
    (N,) row numbers
    """
    person_of = np.asarray(persons, dtype=object).astype(str)
    group_of = np.asarray(groups, dtype=object).astype(str)
    result = np.arange(len(person_of))
    for number, group in enumerate(sorted(set(group_of.tolist()))):
        inside = np.flatnonzero(group_of == group)
        people = sorted(set(person_of[inside].tolist()))
        rows_of = {name: inside[person_of[inside] == name] for name in people}
        order = np.random.default_rng([seed, number]).permutation(len(people))
        # A cycle through the people in random order moves everybody.
        for position, index in enumerate(order):
            giver = rows_of[people[order[(position + 1) % len(order)]]]
            taker = rows_of[people[index]]
            result[taker] = giver[np.arange(len(taker)) % len(giver)]
    return result


@dataclass(frozen=True)
class Sample:
    """One training or evaluation sample before its volume is read.

    Parameters
    ----------
    row, image_row
        Row of the record, and of the image that is shown (they differ in the ``shuffled`` control).
    text, question, answer
        The prompt's parts and the canonical answer.
    question_name
        Name of the diagnosis or finding question.
    label
        Class code of the answer.
    """

    row: int
    image_row: int
    text: str
    question: str
    answer: str
    question_name: str
    label: str


@dataclass(frozen=True)
class Batch:
    """What the model is given.

    ``volumes`` (B, 1, X, Y, Z) uint8 before ``changes``; ``auxiliary`` (B, K) float32, standardized, NaN where unknown.
    """

    step: int
    samples: tuple[Sample, ...]
    volumes: torch.Tensor
    auxiliary: torch.Tensor
    changes: VolumeChanges | None = None
    arrival: torch.cuda.Event | None = None

    def send(self, device: torch.device) -> Batch:
        """Start to bring the volumes to a GPU while it computes; on a CPU there is nothing to do."""
        if device.type != "cuda":
            return self
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            volumes = self.volumes.pin_memory().to(device, non_blocking=True)
        return dataclasses.replace(self, volumes=volumes, arrival=stream.record_event())

    def inputs(self, device: torch.device) -> torch.Tensor:
        """The volumes on ``device``, sent there as bytes and changed there; (B, 1, X, Y, Z)."""
        volumes = self.volumes.to(device, non_blocking=True)
        if self.arrival is not None:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(self.arrival)
            volumes.record_stream(stream)
        return volumes if self.changes is None else apply_changes(volumes, self.changes)

    @property
    def texts(self) -> list[str]:
        """The records' texts."""
        return [sample.text for sample in self.samples]

    @property
    def questions(self) -> list[str]:
        """The questions."""
        return [sample.question for sample in self.samples]

    @property
    def answers(self) -> list[str]:
        """The canonical answers."""
        return [sample.answer for sample in self.samples]


@dataclass(frozen=True)
class EvaluationItem:
    """One image and question of an evaluated split.

    ``image_row`` is the image that is shown. ``candidates`` are class codes in table order, ``answers`` their texts.
    """

    row: int
    image_row: int
    benchmark: str
    question_name: str
    question: str
    candidates: tuple[str, ...]
    answers: tuple[str, ...]
    truth: str
    split: str


class TrainingData:
    """The samples of one run: deterministic training batches and the items of the evaluated splits.

    Parameters
    ----------
    table
        As :func:`read_images` gives it, with its ``split`` column already resolved for this run.
    volumes
        One volume per row of ``table``.
    params
        All parameters.
    optimization
        ``params.pretrain`` or ``params.tune``.
    seed
        Seed of this run's samples.
    control
        ``"shuffled"``, ``"blind"`` or None.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        volumes: Volumes,
        params: Params,
        *,
        optimization: Optimization,
        seed: int,
        control: str | None = None,
    ) -> None:
        if control is not None and control not in CONTROLS:
            raise ParameterError("unknown control", found=repr(control), expected=f"one of {CONTROLS}")
        if len(table) != len(volumes):
            raise MedAlignError("table and volumes differ", found=f"{len(table)} rows, {len(volumes)} volumes")
        self.table = table.reset_index(drop=True)
        self.volumes = volumes
        self.params = params
        self.optimization = optimization
        self.seed = seed
        self.control = control
        self.records: list[dict[str, Any]] = self.table.to_dict("records")  # type: ignore[assignment]
        self.split = self.table["split"].astype(str).to_numpy()
        self.training_rows = np.flatnonzero(self.split == "train")
        if len(self.training_rows) == 0:
            raise InputError("no image to train on", where="data/splits/assignment.csv", remedy="look at the splits")
        self.image_rows = self._image_rows()
        self.text_options = record_text.text_options(params)
        self._groups = self._class_groups()
        self.thresholds: Thresholds = training_thresholds(
            self.table.iloc[self.training_rows], params.vqa.ambiguity_fraction
        )
        self._findings = self._finding_groups()
        self.auxiliary_names, self._auxiliary = self._auxiliary_targets()
        if not self._groups and not self._findings:
            raise InputError(
                "no training image answers any question",
                where="data/ehr/images.parquet",
                remedy="check split.benchmarks in params.yaml against the cohorts' labels",
            )
        self._orders: dict[tuple[int, int, int], npt.NDArray[np.int64]] = {}
        self._features: Callable[[Sequence[int]], torch.Tensor] | None = None

    def use_features(self, take: Callable[[Sequence[int]], torch.Tensor]) -> None:
        """Give the model image features of rows from now on, in place of volumes (``tune.freeze_image``)."""
        self._features = take

    @classmethod
    def from_files(
        cls,
        params: Params,
        run: int,
        *,
        stage: str = "pretrain",
        control: str | None = None,
        data_dir: str | Path = "data",
        splits: Iterable[str] = ("train", "val"),
    ) -> TrainingData:
        """Read what run number ``run`` needs of the pipeline's outputs; images of other splits are not even opened."""
        table = read_images(params, data_dir)
        table["split"] = split_column(table, params, run)
        table = table[table["split"].isin(list(splits))].reset_index(drop=True)
        volumes = Volumes(table["volume_path"].tolist(), params.normalize.shape)
        optimization = params.tune if stage == "tune" else params.pretrain
        return cls(table, volumes, params, optimization=optimization, seed=params.training.seed + run, control=control)

    def _image_rows(self) -> npt.NDArray[np.int64]:
        rows = np.arange(len(self.table))
        if self.control == "shuffled":
            groups = [f"{r['dataset']}/{s}" for r, s in zip(self.records, self.split, strict=True)]
            return shuffled_rows(self.table["person_id"].tolist(), groups, self.seed)
        return rows

    def _class_groups(self) -> list[tuple[Question, str, npt.NDArray[np.int64]]]:
        """(question, class, rows) for every cohort x question x class that has training images."""
        groups: dict[tuple[str, str, str], list[int]] = {}
        for row in self.training_rows:
            record = self.records[row]
            cohort = str(record["dataset"])
            for _, name in questions_of_cohort(self.params, cohort):
                label = class_of(record, name)
                if label is not None:
                    groups.setdefault((cohort, name, label), []).append(int(row))
        return [
            (get_question(name), label, np.asarray(rows, dtype=np.int64))
            for (_, name, label), rows in sorted(groups.items())
        ]

    def _finding_groups(self) -> list[tuple[str, str, npt.NDArray[np.int64]]]:
        """(finding, answer, rows) for every finding that the training images' regions decide."""
        groups: dict[tuple[str, str], list[int]] = {}
        for row in self.training_rows:
            for name in FINDINGS:
                answer = self.thresholds.answer(name, self.records[row])
                if answer is not None:
                    groups.setdefault((name, answer), []).append(int(row))
        return [(name, answer, np.asarray(rows, dtype=np.int64)) for (name, answer), rows in sorted(groups.items())]

    def _auxiliary_targets(self) -> tuple[list[str], npt.NDArray[np.float32]]:
        """Age and regional measures, standardized with the training images' mean and deviation."""
        names = ["age_years", *region_columns(self.table)]
        columns, kept = [], []
        for name in names:
            values = pd.to_numeric(self.table[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
            training = values[self.training_rows]
            training = training[np.isfinite(training)]
            if len(training) < 2 or training.std() < 1e-9:
                continue
            columns.append((values - training.mean()) / training.std())
            kept.append(name)
        if not kept:
            return [], np.zeros((len(self.table), 0), dtype=np.float32)
        return kept, np.stack(columns, axis=1).astype(np.float32)

    def training_images(self, size: int = 64) -> Iterator[torch.Tensor]:
        """All training images once, as model input, for voxel statistics."""
        for chunk in chunks(len(self.training_rows), size):
            yield self.images(self.image_rows[self.training_rows[chunk.start : chunk.stop]].tolist())

    def _pick(self, kind: int, group: int, rows: npt.NDArray[np.int64], turn: int) -> int:
        """The group's row of this turn: a new random order in every pass through the group."""
        epoch, position = divmod(turn, len(rows))
        key = (kind, group, epoch)
        if key not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k[:2] != (kind, group)}
            self._orders[key] = np.random.default_rng([self.seed, 17, kind, group, epoch]).permutation(len(rows))
        return int(rows[self._orders[key][position]])

    def _training_text(self, row: int, ablation: str, hidden: Sequence[str], random: np.random.Generator) -> str:
        """The record's text with random fields, or everything, left out."""
        draws = random.random(len(record_text.FIELDS) + 1)
        if draws[-1] < self.optimization.text_dropout:
            return ""
        dropped = {
            field
            for field, draw in zip(record_text.FIELDS, draws, strict=False)
            if draw < self.optimization.field_dropout
        }
        return record_text.render(
            self.records[row], ablation=ablation, drop_fields=dropped | set(hidden), **self.text_options
        )

    def samples(self, step: int) -> tuple[Sample, ...]:
        """The samples of a step."""
        size = self.optimization.batch_size
        asked = round(size * self.optimization.finding_question_fraction) if self._findings else 0
        if not self._groups:
            asked = size
        # Options are listed in an order that changes from step to step but not within one: samples of one class then
        # share one question-and-answer text, which the contrastive loss counts as one positive.
        listed: dict[str, str] = {}
        order = np.random.default_rng([self.seed, 23, step])
        for known in {question.name: question for question, _, _ in self._groups}.values():
            listed[known.name] = known.with_options([known.classes[i] for i in order.permutation(len(known.classes))])
        findings = {name: FINDINGS[name].training_question(order) for name in FINDINGS}
        result = []
        for slot in range(size):
            random = np.random.default_rng([self.seed, 29, step, slot])
            if slot < size - asked:
                turn = step * (size - asked) + slot
                group = turn % len(self._groups)
                question, label, rows = self._groups[group]
                row = self._pick(0, group, rows, turn // len(self._groups))
                result.append(
                    Sample(
                        row=row,
                        image_row=int(self.image_rows[row]),
                        text=self._training_text(row, "full", question.hidden_fields, random),
                        question=listed[question.name],
                        answer=question.answers[label],
                        question_name=question.name,
                        label=label,
                    )
                )
            else:
                turn = step * asked + slot - (size - asked)
                group = turn % len(self._findings)
                name, label, rows = self._findings[group]
                row = self._pick(1, group, rows, turn // len(self._findings))
                result.append(
                    Sample(
                        row=row,
                        image_row=int(self.image_rows[row]),
                        text=self._training_text(row, "demographics_only", (), random),
                        question=findings[name],
                        answer=FINDINGS[name].answers[label],
                        question_name=name,
                        label=label,
                    )
                )
        return tuple(result)

    def batch(self, step: int, slots: Sequence[int] | None = None) -> Batch:
        """The training batch of a step; the same step of the same run always gives the same batch.

        ``slots`` are the places in the batch that are wanted (the share of one of several processes); only their
        volumes are read.
        """
        samples = self.samples(step)
        slots = range(len(samples)) if slots is None else slots
        samples = tuple(samples[slot] for slot in slots)
        rows = [sample.image_row for sample in samples]
        changes = None
        if self.control != "blind" and self._features is None:
            changes = draw_changes(
                self.optimization,
                [(self.seed, 31, step, slot) for slot in slots],
                self.volumes.shape,
                self.params.normalize.zooms_mm,
            )
        auxiliary = torch.from_numpy(self._auxiliary[[sample.row for sample in samples]])
        return Batch(step, samples, self.images(rows), auxiliary, changes)

    def images(self, image_rows: Sequence[int]) -> torch.Tensor:
        """Model input for the images of ``image_rows``; black in the ``blind`` control."""
        if self._features is not None:
            return self._features(image_rows)
        if self.control == "blind":
            return torch.zeros((len(image_rows), 1, *self.volumes.shape), dtype=torch.uint8)
        return as_input(self.volumes.take(image_rows))

    def evaluation_items(self, splits: Sequence[str] = EVALUATED_SPLITS) -> list[EvaluationItem]:
        """The diagnosis items of the given splits: every image with each question of its cohort's benchmarks.

        In ``test`` and ``zeroshot`` the images are the benchmark's members, in ``val`` all that have a class. Options
        are listed in an order that depends on the image and ``training.seed`` alone, so every model sees the same one.
        """
        return evaluation_items(self.table, self.records, self.params, splits, self.image_rows)

    def text_of(self, row: int, ablation: str, question_name: str) -> str:
        """The full text of a row for an ablation, without what the question hides."""
        return evaluation_text(self.records[row], ablation, question_name, self.text_options)


def evaluation_text(record: Mapping[str, Any], ablation: str, question_name: str, options: Mapping[str, Any]) -> str:
    """A record's text as evaluation shows it: an ablation's fields less those that answer the question."""
    return record_text.render(
        record, ablation=ablation, drop_fields=get_question(question_name).hidden_fields, **options
    )


def evaluation_items(
    table: pd.DataFrame,
    records: Sequence[Mapping[str, Any]],
    params: Params,
    splits: Sequence[str] = EVALUATED_SPLITS,
    image_rows: npt.NDArray[np.int64] | None = None,
) -> list[EvaluationItem]:
    """See :meth:`TrainingData.evaluation_items`."""
    real_names = {
        key: next((name for name in benchmark_names(table) if benchmark_parameters(name, params) is value), key)
        for key, value in params.split.benchmarks.items()
    }
    items = []
    for row, (record, split) in enumerate(zip(records, table["split"], strict=True)):
        if split not in splits:
            continue
        members = str(record["benchmark"]).split(";")
        for key, name in questions_of_cohort(params, str(record["dataset"])):
            truth = class_of(record, name)
            benchmark = real_names[key]
            if truth is None or (split != "val" and benchmark not in members):
                continue
            question = get_question(name)
            order = question.shuffled_classes(params.training.seed, str(record["image_id"]))
            items.append(
                EvaluationItem(
                    row=row,
                    image_row=row if image_rows is None else int(image_rows[row]),
                    benchmark=benchmark,
                    question_name=name,
                    question=question.with_options(order),
                    candidates=question.classes,
                    answers=tuple(question.answers[code] for code in question.classes),
                    truth=truth,
                    split=str(split),
                )
            )
    return items


def chunks(count: int, size: int) -> Iterator[range]:
    """Consecutive ranges of at most ``size`` that cover ``range(count)``."""
    for start in range(0, count, size):
        yield range(start, min(count, start + size))
