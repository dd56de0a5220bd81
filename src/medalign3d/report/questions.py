"""Table 3: closed-ended visual questions, per question and overall, N and Wilson intervals beside every accuracy."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medalign3d.files import read_parquet
from medalign3d.params import Params
from medalign3d.report import labels
from medalign3d.report.provenance import Provenance
from medalign3d.report.table import Table
from medalign3d.report.tables import MISSING, check_simulated, estimate, notes_with, percent, tidy_with

IMAGE_GROUP, ZERO_SHOT_GROUP, KNOWLEDGE_GROUP = "image", "image_zeroshot", "knowledge"
SCORERS = {
    "likelihood": "most likely choice",
    "strict": "generated, strict",
    "m3d_compat": "generated, M3D rule",
}
GROUPS = {
    IMAGE_GROUP: "all image questions",
    ZERO_SHOT_GROUP: "image questions, zero-shot cohorts",
    KNOWLEDGE_GROUP: "knowledge (no image)",
}


def read_answers(params: Params, root: Path = Path(".")) -> pd.DataFrame:
    """Read the answers to visual questions; an empty table where none were asked.

    Raises
    ------
    InputError
        When simulated and real people are mixed.
    """
    path = root / "data/evaluation/vqa/predictions.parquet"
    if not path.is_file():
        return pd.DataFrame()
    answers = read_parquet(path)
    if len(answers):
        check_simulated(answers, params)
    return answers


def table3(answers: pd.DataFrame, params: Params, provenance: Provenance) -> Table:
    """Accuracy per language model, setting and scorer (rows) and group of questions (columns)."""
    from medalign3d.evaluation.vqa import summarize_vqa

    title = provenance.title("Table 3. Closed-ended visual questions, accuracy, %")
    if answers.empty:
        notes = notes_with(provenance, "No visual questions could be asked in this profile.")
        return Table("table3", title, ["Language model"], [], tidy_with([], provenance), notes=notes)
    summary = summarize_vqa(answers)
    summary = summary[summary["questions"] > 0]
    findings = [g for g in dict.fromkeys(summary["group"]) if g not in GROUPS]
    groups = [g for g in [*findings, *GROUPS] if (summary["group"] == g).any()]
    people = answers[answers["needs_image"].astype(bool)].groupby("finding")["person_id"].nunique()
    minimum = params.report.minimum_cell
    hidden = {g for g in findings if people.get(g, minimum) < minimum}
    header = ["Language model", "Setting", "Scorer", "Runs"]
    header += [GROUPS.get(g, g.replace("_", " ")) for g in groups]
    first = summary.drop_duplicates("group").set_index("group")
    rows = [
        [
            "N questions",
            "",
            "",
            "",
            *(f"<{minimum}" if g in hidden else str(first.loc[g, "questions"]) for g in groups),
        ],
        ["chance", "", "", "", *(percent(float(first.loc[g, "chance"])) for g in groups)],
    ]
    sections: dict[int, str] = {}
    section = ""
    keys = summary[["language_model", "setting"]].drop_duplicates()
    order = sorted(
        keys.itertuples(index=False),
        key=lambda key: (
            labels.rank(key.language_model, params.language_models),
            labels.rank(key.setting, list(labels.SETTINGS)),
            str(key.setting),
        ),
    )
    for model, setting in order:
        name = labels.language_model_label(params, model)
        heading = name if name != MISSING else labels.SECTION_BASELINES
        if heading != section:
            section = heading
            sections[len(rows)] = heading
        for scorer, scorer_label in SCORERS.items():
            part = summary[
                (summary["language_model"] == model) & (summary["setting"] == setting) & (summary["scorer"] == scorer)
            ].set_index("group")
            cells = []
            for group in groups:
                if group in hidden:
                    cells.append(f"n<{minimum}")
                elif group in part.index:
                    row = part.loc[group]
                    cells.append(estimate(row["accuracy_mean"], row["accuracy_sd"], row["low"], row["high"]))
                else:
                    cells.append(MISSING)
            runs = str(int(part["runs"].max())) if len(part) else MISSING
            rows.append([name, labels.setting_label(str(setting)), scorer_label, runs, *cells])
    tidy = summary[~summary["group"].isin(hidden)].drop(columns=["simulated"]).to_dict("records")
    sources = sorted(set(answers.loc[answers["needs_image"].astype(bool), "truth_source"].astype(str)))
    where = {
        "true": "the simulator's answer key",
        "measured": "values measured on the normalized images, not a reader's judgement",
    }
    truth = " and ".join(where.get(source, source) for source in sources) or MISSING
    return Table(
        name="table3",
        title=title,
        header=header,
        rows=rows,
        tidy=tidy_with([{str(k): v for k, v in row.items()} for row in tidy], provenance),
        sections=sections,
        notes=notes_with(
            provenance,
            f"Truth of the image questions: {truth}. The record given with them holds demographics only; both answers "
            "and all letters are right equally often.",
            "[ ]: 95 % Wilson interval for N questions; ± standard deviation over runs. Questions about one person are "
            "not independent, so the intervals are somewhat narrow. 'M3D rule' counts an answer that holds the right "
            "letter and a full stop anywhere, so a list of all letters is right.",
            "Knowledge questions need no image and are never part of the overall figure; the tiny language models have "
            "read most of these facts." if params.simulated else
            "Knowledge questions need no image and are never part of the overall figure.",
        ),
        left=4,
    )  # fmt: skip
