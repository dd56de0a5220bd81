"""Simulated people: a latent severity drives the image and the tests, which are independent of each other given it.

One number, the severity ``s`` (about .15 in normal cognition, .5 in mild impairment, .85 in Alzheimer's dementia),
grows with time. The image shows ``a = s + noise``, the tests show ``z = s + other noise``; so image and record each add
something that the other does not hold, and the best possible accuracy of each is known.
"""

from __future__ import annotations

import datetime as dt
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medalign3d.simulate.anatomy import Anatomy, Scan

CLASS_SEVERITY = {"NC": 0.15, "IMCI": 0.32, "MCI": 0.50, "AD": 0.85}
CLASS_SPREAD = 0.09
IMAGE_SPREAD_PERSON, IMAGE_SPREAD_SESSION = 0.14, 0.05
COGNITION_SPREAD_PERSON, COGNITION_SPREAD_VISIT = 0.20, 0.15
ANNUAL_CHANGE = {"NC": 0.008, "IMCI": 0.015, "MCI": 0.02, "AD": 0.06}
PROGRESSION_PER_YEAR = 0.13
DEMENTIA_FROM = 0.69
# Volumes of the average template, mL, and of a 73-year-old head of normal cognition and average size.
TEMPLATE_VENTRICLES_ML = 17.4
NORMAL_VENTRICLES_ML = 20.5
CDR_THRESHOLDS = ((1.02, 2.0), (0.72, 1.0), (0.33, 0.5))
DAYS_PER_YEAR = 365.25


def seed_of(*parts: object) -> int:
    """A 32-bit seed that depends on the text of ``parts`` only, the same on every machine and in every process."""
    return zlib.crc32("/".join(str(part) for part in parts).encode())


@dataclass
class Scores:
    """What the tests of one visit give; None where not done."""

    mmse: float | None
    lm_immediate: float | None
    lm_delayed: float | None
    cdr_global: float | None
    cdr_boxes: tuple[float, ...] | None
    moca: float | None
    faq: float
    gds: float
    adas13: float

    @property
    def cdr_sum(self) -> float | None:
        """CDR sum of boxes, 0-18."""
        return None if self.cdr_boxes is None else float(sum(self.cdr_boxes))


@dataclass
class Visit:
    """One clinical visit; ``months`` since baseline."""

    code: str
    months: float
    date: dt.date
    age: float
    severity: float
    cognition: float
    diagnosis: str
    scores: Scores


@dataclass
class Person:
    """One simulated participant and everything about them that does not depend on the visit."""

    cohort: str
    index: int
    subject: str
    seed: int
    sex: str
    baseline_class: str
    severity: float
    annual_change: float
    birth: dt.date
    education: int
    ses: int
    apoe: tuple[int, int]
    handedness: str
    site: int
    baseline: dt.date
    image_offset: float
    cognition_offset: float
    ventricle_offset: float
    hippocampus_offsets: tuple[float, float]
    brain_offset: float
    lesion_offset: float
    size: tuple[float, float, float]
    fault: str | None = None
    visits: list[Visit] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def age_at(self, date: dt.date) -> float:
        """Age in years at a date."""
        return (date - self.birth).days / DAYS_PER_YEAR

    def severity_at(self, years: float) -> float:
        """True severity ``years`` after baseline."""
        return self.severity + self.annual_change * years

    def class_at(self, years: float) -> str:
        """NC, IMCI, MCI or AD ``years`` after baseline; mild impairment that progresses turns into dementia."""
        progresses = self.baseline_class == "MCI" and self.annual_change >= PROGRESSION_PER_YEAR
        return "AD" if progresses and self.severity_at(years) >= DEMENTIA_FROM else self.baseline_class

    def anatomy_at(self, years: float, session: object) -> tuple[Anatomy, float]:
        """The head at a session and the severity that its image shows."""
        rng = np.random.default_rng(seed_of(self.seed, "anatomy", session))
        shown = self.severity_at(years) + self.image_offset + IMAGE_SPREAD_SESSION * rng.standard_normal()
        age = (self.baseline - self.birth).days / DAYS_PER_YEAR + years
        older, worse = age - 73.0, shown - CLASS_SEVERITY["NC"]
        normal = np.log(NORMAL_VENTRICLES_ML / TEMPLATE_VENTRICLES_ML) - np.log(0.86)
        left, right = self.hippocampus_offsets
        shrink = -0.46 * worse - 0.004 * older
        anatomy = Anatomy(
            person_seed=self.seed,
            ventricles=float(normal + 0.98 * worse + 0.012 * older + self.ventricle_offset),
            hippocampus_left=float(shrink + left),
            hippocampus_right=float(shrink + right),
            brain=float(-0.010 - 0.040 * worse - 0.0006 * older + self.brain_offset),
            lesions=float(np.clip(0.18 + 0.016 * older + 0.15 * worse + self.lesion_offset, 0.0, 1.0)),
            size=self.size,
        )
        return anatomy, float(shown)


def draw_person(
    cohort: str,
    index: int,
    subject: str,
    baseline_class: str,
    *,
    seed: int,
    female: float,
    age: tuple[float, float],
    age_limits: tuple[float, float],
    education: tuple[float, float] = (15.5, 2.9),
    baseline_years: tuple[int, int] = (2006, 2014),
    sites: int = 8,
    progressing: float = 0.35,
    carriers: float = 0.4,
    fault: str | None = None,
) -> Person:
    """Draw one person.

    Parameters
    ----------
    cohort, index, subject, fault
        Who it is: the cohort, the place in it, the native id and the planted fault, if any.
    baseline_class
        NC, IMCI, MCI or AD.
    seed
        The cohort's seed; the person's own follows from it and the index.
    female, carriers, progressing
        Probabilities of being female, of carrying an APOE e4 allele, and (mild impairment only) of progressing.
    age, education
        Mean and standard deviation, years.
    age_limits, baseline_years
        Where ages are cut off; first and last calendar year of baseline visits.
    sites
        Number of scanning sites.
    """
    own = seed_of(seed, cohort, "fault" if fault else "person", fault or index)
    rng = np.random.default_rng(own)
    sex = "F" if rng.random() < female else "M"
    severity = CLASS_SEVERITY[baseline_class] + CLASS_SPREAD * rng.standard_normal()
    change = ANNUAL_CHANGE[baseline_class] * float(rng.uniform(0.5, 1.5))
    progresses = rng.random() < progressing
    if baseline_class == "MCI" and progresses:
        severity, change = (
            min(severity + 0.05, DEMENTIA_FROM - 0.03),
            float(PROGRESSION_PER_YEAR * rng.uniform(1.0, 1.5)),
        )
    elif baseline_class == "MCI":
        severity = min(severity, DEMENTIA_FROM)
    years = float(np.clip(age[0] + age[1] * rng.standard_normal(), *age_limits))
    year = int(rng.integers(baseline_years[0], baseline_years[1] + 1))
    baseline = dt.date(year, int(rng.integers(1, 13)), int(rng.integers(1, 29)))
    alleles = [4 if rng.random() < carriers * 0.62 else (2 if rng.random() < 0.08 else 3) for _ in range(2)]
    size = (0.930 if sex == "F" else 0.970) * (1.0 + 0.025 * rng.standard_normal())
    own_hippocampus = 0.045 * rng.standard_normal()
    return Person(
        cohort=cohort,
        index=index,
        subject=subject,
        seed=own,
        sex=sex,
        baseline_class=baseline_class,
        severity=float(severity),
        annual_change=change,
        birth=baseline - dt.timedelta(days=round(years * DAYS_PER_YEAR)),
        education=int(np.clip(round(education[0] + education[1] * rng.standard_normal()), 4, 24)),
        ses=int(np.clip(round(2.5 + 1.1 * rng.standard_normal()), 1, 5)),
        apoe=(min(alleles), max(alleles)),
        handedness="L" if rng.random() < 0.09 else "R",
        site=int(rng.integers(sites)),
        baseline=baseline,
        image_offset=float(IMAGE_SPREAD_PERSON * rng.standard_normal()),
        cognition_offset=float(COGNITION_SPREAD_PERSON * rng.standard_normal()),
        ventricle_offset=float(0.11 * rng.standard_normal()),
        hippocampus_offsets=(
            float(own_hippocampus + 0.05 * rng.standard_normal()),
            float(own_hippocampus + 0.05 * rng.standard_normal()),
        ),
        brain_offset=float(0.006 * rng.standard_normal()),
        lesion_offset=float(0.22 * rng.standard_normal()),
        size=tuple(float(size * (1.0 + 0.012 * e)) for e in rng.standard_normal(3)),  # type: ignore[arg-type]
        fault=fault,
    )


def _boxes(global_score: float, rng: np.random.Generator) -> tuple[float, ...]:
    """Six CDR box scores that agree with the global score (memory is the leading box)."""
    if global_score == 0.0:
        return (0.0, 0.0, 0.0, 0.0, 0.5 if rng.random() < 0.06 else 0.0, 0.0)
    choices = {
        0.5: (0.0, 0.5, 0.5, 1.0),
        1.0: (0.5, 1.0, 1.0, 1.0),
        2.0: (1.0, 2.0, 2.0, 2.0),
        3.0: (2.0, 3.0, 3.0, 3.0),
    }
    # At most two boxes of a 0.5 person reach 1, so that the sum stays below 4.5.
    others = [float(rng.choice(choices[global_score])) for _ in range(5)]
    if global_score == 0.5:
        ones = [i for i, value in enumerate(others) if value == 1.0]
        for i in ones[1:]:
            others[i] = 0.5
    if global_score == 1.0:
        others[:3] = [1.0, 1.0, 1.0]
    personal_care = {0.5: 0.0, 1.0: 1.0, 2.0: 1.0, 3.0: 3.0}
    if others[4] == 0.5:  # this box has no score of 0.5
        others[4] = 0.0 if global_score == 0.5 else personal_care[global_score]
    return (global_score, *others)


def draw_scores(cognition: float, education: int, rng: np.random.Generator, cdr_global: float | None = None) -> Scores:
    """Draw the test results that go with a cognition ``z``; a given global CDR is kept."""
    impaired = max(cognition, 0.0)
    mmse = 29.5 - 11.0 * impaired**1.6 + 0.12 * (education - 14) + 1.2 * rng.standard_normal()
    delayed = 14.0 - 13.0 * cognition + 2.5 * rng.standard_normal()
    immediate = 1.5 + 0.9 * delayed + 0.8 + 1.8 * rng.standard_normal()
    rated = cognition + 0.10 * rng.standard_normal()
    if cdr_global is None:
        cdr_global = next((score for threshold, score in CDR_THRESHOLDS if rated >= threshold), 0.0)
    boxes = _boxes(cdr_global, rng)
    moca = 27.5 - 14.0 * impaired**1.3 + 0.1 * (education - 14) + 1.8 * rng.standard_normal()
    faq = 22.0 * max(rated - 0.25, 0.0) + 1.5 * rng.standard_normal()

    def whole(value: float, low: float, high: float) -> float:
        return float(np.clip(round(value), low, high))

    return Scores(
        mmse=whole(mmse, 0, 30),
        lm_immediate=whole(immediate, 0, 25),
        lm_delayed=whole(delayed, 0, 25),
        cdr_global=cdr_global,
        cdr_boxes=boxes,
        moca=whole(moca, 0, 30),
        faq=whole(faq, 0, 30),
        gds=whole(rng.gamma(1.2, 1.3), 0, 15),
        adas13=float(np.clip(round((8.0 + 28.0 * cognition + 3.0 * rng.standard_normal()) * 3) / 3, 0, 85)),
    )


def add_visit(
    person: Person, code: str, months: float, *, cdr_global: float | None = None, jitter_days: int = 14
) -> Visit:
    """Append a visit ``months`` after baseline (give or take ``jitter_days``) to the person and return it."""
    rng = np.random.default_rng(seed_of(person.seed, "visit", code, months))
    shift = 0 if months == 0 or jitter_days == 0 else int(rng.integers(-jitter_days, jitter_days + 1))
    date = person.baseline + dt.timedelta(days=round(months * DAYS_PER_YEAR / 12) + shift)
    years = months / 12.0
    severity = person.severity_at(years)
    cognition = severity + person.cognition_offset + COGNITION_SPREAD_VISIT * rng.standard_normal()
    visit = Visit(
        code=code,
        months=months,
        date=date,
        age=person.age_at(date),
        severity=float(severity),
        cognition=float(cognition),
        diagnosis=person.class_at(years),
        scores=draw_scores(float(cognition), person.education, rng, cdr_global),
    )
    person.visits.append(visit)
    return visit


def draw_scan(
    person: Person,
    session: object,
    *,
    axis_codes: str,
    zooms_mm: tuple[float, float, float],
    shape: tuple[int, int, int] | None = None,
    centre_mm: tuple[float, float, float] = (0.0, -16.0, 2.0),
) -> Scan:
    """The scanner of the person's site on the day of a session."""
    site = np.random.default_rng(seed_of(person.cohort, "site", person.site))
    bias, gamma, noise, gain = (
        site.uniform(0.08, 0.2),
        site.uniform(0.85, 1.2),
        site.uniform(0.012, 0.03),
        site.uniform(0.4, 1.6),
    )
    rng = np.random.default_rng(seed_of(person.seed, "scan", session))
    rotation = rng.normal(0.0, (5.0, 3.0, 3.0)).clip(-12, 12)
    translation = rng.normal(0.0, (2.0, 4.0, 4.0)).clip(-9, 9)
    return Scan(
        seed=seed_of(person.seed, "noise", session),
        axis_codes=axis_codes,
        zooms_mm=zooms_mm,
        shape=shape,
        centre_mm=centre_mm,
        rotation_degrees=(float(rotation[0]), float(rotation[1]), float(rotation[2])),
        translation_mm=(float(translation[0]), float(translation[1]), float(translation[2])),
        bias=float(bias),
        gamma=float(gamma),
        noise=float(noise),
        gain=float(gain * rng.uniform(0.9, 1.1)),
    )


def draw_labs(person: Person) -> dict[str, float]:
    """Laboratory results, US conventional units, keyed by LABDATA code."""
    rng = np.random.default_rng(seed_of(person.seed, "labs"))
    normal = {
        "AXT117": (2.1, 0.9, 2),
        "BAT126": (480, 160, 0),
        "HMT3": (4.6, 0.4, 2),
        "HMT7": (6.4, 1.6, 2),
        "HMT13": (240, 55, 0),
        "HMT40": (14.1, 1.2, 1),
        "HMT100": (30.4, 1.6, 1),
        "HMT102": (33.6, 0.8, 1),
        "RCT4": (21, 7, 0),
        "RCT5": (23, 6, 0),
        "RCT6": (18, 5, 0),
        "RCT11": (98, 15, 0),
        "RCT19": (135, 50, 0),
        "RCT20": (196, 36, 0),
        "RCT392": (0.95, 0.2, 2),
    }
    return {
        code: round(float(max(mean + sd * rng.standard_normal(), mean * 0.3)), digits)
        for code, (mean, sd, digits) in normal.items()
    }


def balanced_classes(shares: dict[str, float], count: int, seed: int) -> list[str]:
    """``count`` class names in the given shares (rounded), in random order: small cohorts keep every class."""
    names = list(shares)
    edges = np.cumsum([shares[name] for name in names])
    edges = edges / edges[-1]
    rng = np.random.default_rng(seed)
    points = (np.arange(count) + rng.random()) / max(count, 1)
    classes = [names[int(np.searchsorted(edges, point))] for point in points]
    return [classes[i] for i in rng.permutation(count)]


def us_date(date: dt.date) -> str:
    """``M/D/YYYY`` without padding, as LONI's image lists and AIBL write dates."""
    return f"{date.month}/{date.day}/{date.year}"


def text(value: float | None, missing: str = "") -> str:
    """A number as tables hold it: no trailing ``.0``, ``missing`` for None."""
    if value is None:
        return missing
    return str(int(value)) if float(value).is_integer() else str(value)
