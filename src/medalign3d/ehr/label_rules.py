"""Every rule that decides a label, under a stable id: the ids stand in the ``provenance`` of each image.

An id is never given another meaning; a rule that changes gets a new id. ``<label>.none.<why>`` ids say why there is no
label. ``docs/label_rules.md`` is generated from this module.
"""

from __future__ import annotations

from dataclasses import dataclass

LABEL_RULES_VERSION = "1"
"""Raised when a rule of this module changes what it decides."""


@dataclass(frozen=True)
class LabelRule:
    """A rule: its stable id, the result (empty: no label), and what it looks at, in plain words."""

    rule_id: str
    result: str
    description: str

    @property
    def column(self) -> str:
        """The column of the harmonized table that the rule decides."""
        return self.rule_id.split(".", 1)[0]


_RULES = (
    LabelRule("dx3.adni.nc", "NC", "ADNI visit diagnosis CN, NL, SMC or any change whose destination is one of them"),
    LabelRule("dx3.adni.mci", "MCI", "ADNI visit diagnosis MCI, EMCI, LMCI or any change that ends there"),
    LabelRule("dx3.adni.dementia", "AD_DEM", "ADNI visit diagnosis AD or dementia, or any change that ends there"),
    LabelRule("dx3.nacc.nc", "NC", "NACCUDSD 1 at the visit"),
    LabelRule("dx3.nacc.mci", "MCI", "NACCUDSD 3 at the visit"),
    LabelRule("dx3.nacc.dementia_any_cause", "AD_DEM", "NACCUDSD 4 at the visit, whatever the cause"),
    LabelRule(
        "dx3.nacc.dementia_of_alzheimer",
        "AD_DEM",
        "NACCUDSD 4 with Alzheimer aetiology (NACCALZD 1); policy `ad_only`",
    ),
    LabelRule("dx3.oasis3.nc", "NC", "OASIS-3: the UDS form says normal cognition, or dx1 `Cognitively normal`"),
    LabelRule("dx3.oasis3.mci", "MCI", "OASIS-3: any kind of MCI on the UDS form"),
    LabelRule("dx3.oasis3.dementia", "AD_DEM", "OASIS-3: demented on the UDS form, or dx1 `AD Dementia`"),
    LabelRule("dx3.aibl.nc", "NC", "AIBL DXCURREN 1 of the same visit; never from the CDR"),
    LabelRule("dx3.aibl.mci", "MCI", "AIBL DXCURREN 2 of the same visit; a global CDR of 0 is possible"),
    LabelRule("dx3.aibl.ad", "AD_DEM", "AIBL DXCURREN 3 of the same visit; never from the CDR"),
    LabelRule("dx3.miriad.hc", "NC", "MIRIAD group HC of the file name, or of a table where the name has none"),
    LabelRule("dx3.miriad.ad", "AD_DEM", "MIRIAD group AD of the file name, or of a table where the name has none"),
    LabelRule("dx3.none.no_diagnosis", "", "the matched visit has no diagnosis; none is carried from another visit"),
    LabelRule("dx3.none.unknown_label", "", "the diagnosis is in no code book of the cohort"),
    LabelRule("dx3.none.nacc_imci", "", "NACCUDSD 2, impaired but not MCI, is none of the three classes"),
    LabelRule("dx3.none.nacc_other_cause", "", "NACCUDSD 4 without Alzheimer aetiology; policy `ad_only`"),
    LabelRule("dx3.none.oasis_cdr_only", "", "OASIS session known by its CDR alone: 0.5 is neither MCI nor dementia"),
    LabelRule("dx3.none.oasis_group", "", "the OASIS-2 group is a label of the person, not of a session"),
    LabelRule("dx3.none.oasis3_undecided", "", "OASIS-3 dx1 `uncertain dementia` or `0.5 in memory only`"),
    LabelRule("dx2.from_dx3", "NonDEM or DEM", "NC and MCI are NonDEM, AD_DEM is DEM (all cohorts but OASIS)"),
    LabelRule("dx2.nacc.imci", "NonDEM", "NACCUDSD 2 is not dementia"),
    LabelRule("dx2.nacc.other_cause", "DEM", "NACCUDSD 4 is dementia, whatever the cause"),
    LabelRule("dx2.oasis.cdr_0", "NonDEM", "OASIS global CDR 0 at that session"),
    LabelRule("dx2.oasis.cdr_half_or_more", "DEM", "OASIS global CDR of at least 0.5 at that session"),
    LabelRule("dx2.none.no_diagnosis", "", "the matched visit has no diagnosis"),
    LabelRule("dx2.none.unknown_label", "", "the diagnosis is in no code book of the cohort"),
    LabelRule("dx2.none.oasis_no_cdr", "", "OASIS session without a measured CDR; a blank is never taken for 0"),
    LabelRule("mci_stage.enrolment", "EMCI or LMCI", "the enrolment label (DX_bl) of a person who is still MCI"),
    LabelRule("mci_stage.adni1", "LMCI", "enrolled with MCI in ADNI-1, whose MCI is late by its protocol"),
    LabelRule("mci_stage.none.no_split", "", "the enrolment label does not tell early from late MCI (as in ADNI-3)"),
    LabelRule("mci_stage.none.left_mci", "", "between enrolment and this visit the person was not MCI"),
    LabelRule("mci_course.progressive", "pMCI", "dementia within 1096 days and in one of the last two diagnoses"),
    LabelRule("mci_course.stable", "sMCI", "no later dementia or normal cognition; diagnosed at least 1096 days later"),
    LabelRule("mci_course.none.censored_lt_36m", "", "no later dementia, and followed for less than 1096 days"),
    LabelRule("mci_course.none.late_converter", "", "the first later dementia comes after more than 1096 days"),
    LabelRule("mci_course.none.reverted_to_cn", "", "no later dementia, but normal cognition at a later visit"),
    LabelRule("mci_course.none.unstable_conversion", "", "dementia within 1096 days; the last two diagnoses without"),
    LabelRule("mci_course.none.undated", "", "the matched visit has no day on any scale of the person's visits"),
    LabelRule("educ_code.from_years", "1 to 5", "years of education: below 12, 12, 13-15, 16, 17 or more"),
)  # fmt: skip

LABEL_RULES: dict[str, LabelRule] = {rule.rule_id: rule for rule in _RULES}
"""Rule id to rule."""


def label_rules_markdown() -> str:
    """``docs/label_rules.md``: every rule in one table per column."""
    lines = [
        "# Label rules",
        "",
        f"Version {LABEL_RULES_VERSION}. Generated from `medalign3d.ehr.label_rules`; do not edit.",
        "",
        "Each image's `provenance` holds, for `dx3`, `dx2` and (people with MCI) `mci_stage` and `mci_course`, the "
        "table and row that decided and the id of the rule. Ids with `.none.` say why there is no label. A missing "
        "value never becomes a class, a score never makes a diagnosis outside OASIS, and no diagnosis is carried from "
        "one visit to another.",
        "",
        "`mci_course`, `days_to_dementia` and `followup_days` look into the future of the scan: they are never printed "
        "in a record's text, and a person is in one split only. With another window than 36 months, use "
        "`days_to_dementia` and `followup_days` of `images.parquet`.",
    ]
    for column in dict.fromkeys(rule.column for rule in _RULES):
        lines += ["", f"## {column}", "", "| rule | label | when |", "|---|---|---|"]
        lines += [
            f"| `{rule.rule_id}` | {rule.result or 'none'} | {rule.description} |"
            for rule in _RULES
            if rule.column == column
        ]
    return "\n".join(lines) + "\n"
