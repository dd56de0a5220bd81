"""The command line: ``medalign3d ingest | bids | normalize | export-volumes | predict | params | simulate | table1 |
profile | doctor``, and ``explain`` and ``why-missing`` for one image or person.

Exit codes: 0 done; 1 an error that the message explains, or a doctor that found something missing; 2 wrong usage;
3 done, but some inputs were quarantined. ``why-missing``: 0 all is in the result, 3 something was stopped with a
reason, 1 something was never seen as an image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medalign3d import __version__, quiet
from medalign3d.errors import InputError, MedAlignError, ParameterError, VolumeError
from medalign3d.params import COHORT_NAMES, Params, load_params

EXIT_DONE, EXIT_ERROR, EXIT_USAGE, EXIT_QUARANTINED = 0, 1, 2, 3


def _params(path: str | None) -> Params:
    """Parameters for a command: the named file, or the project's in this folder."""
    return load_params(path or "params.yaml")


def _ingest(arguments: argparse.Namespace) -> int:
    from medalign3d.cohorts import ingest_cohort, write_ingest
    from medalign3d.cohorts.told import result_lines
    from medalign3d.files import write_json
    from medalign3d.manifest import MARKER
    from medalign3d.results import INGEST_RECORD

    params = _params(arguments.params)
    root = Path(arguments.root)
    if not root.is_dir():
        raise InputError(
            "no such folder",
            where=root,
            expected=f"the folder with {arguments.cohort}'s files as the custodian ships them",
        )
    result = ingest_cohort(arguments.cohort, root, params, workers=params.ingest.workers)
    write_ingest(result, Path(arguments.out), simulated=(root / MARKER).exists())
    drops = result.quarantine[(result.quarantine["level"] == "image") & (result.quarantine["severity"] == "drop")]
    reasons = {str(reason): int(count) for reason, count in sorted(drops["reason"].value_counts().items())}
    write_json(
        Path(arguments.out) / INGEST_RECORD,
        {
            "cohort": arguments.cohort,
            "root": str(root.resolve()),
            "found": result.images_found,
            "accepted": len(result.images),
            "quarantined": reasons,
        },
    )
    print("\n".join(result_lines(result, reasons)))
    if result.links is not None and len(result.links):
        from medalign3d.cohorts.oasis_links import links_line

        print(links_line(result.links))
    print(f"tables are in {arguments.out}")
    if reasons:
        print("one image or participant: medalign3d why-missing ID --data " + arguments.out)
    return EXIT_QUARANTINED if reasons else EXIT_DONE


def _bids(arguments: argparse.Namespace) -> int:
    from medalign3d.bids import Options, export, tables_of_ingest, tables_of_pipeline

    if (arguments.tables is None) != (arguments.root is None):
        raise ParameterError(
            "give both the tables and the folder they were made from, or neither",
            where="medalign3d bids --tables DIR --root ROOT",
        )
    params = _params(arguments.params)
    if arguments.tables is not None:
        source = tables_of_ingest(Path(arguments.tables), Path(arguments.root), params)
    else:
        source = tables_of_pipeline(Path("data"), params, arguments.cohort or ())
    options = Options(
        everything=arguments.all,
        relative_dates=arguments.relative_dates,
        derivatives=arguments.derivatives,
        overwrite=arguments.overwrite,
        workers=arguments.workers or params.ingest.workers,
    )
    summary = export(Path(arguments.out), source, options)
    refused = sum(summary.refused.values())
    rate = f" ({summary.written / summary.seconds:.1f} images/s)" if summary.written else ""
    print(f"{summary.written} images written{rate}, {summary.up_to_date} up to date, {refused} not exported")
    for reason, count in summary.refused.most_common():
        print(f"  {count:5d}  {reason}")
    if summary.normalized:
        print(f"{summary.normalized} normalized volumes written to {Path(arguments.out) / 'derivatives'}")
    print(f"the dataset is in {arguments.out}; check it with `bids-validator-deno {arguments.out}`")
    return EXIT_QUARANTINED if refused else EXIT_DONE


def _normalize(arguments: argparse.Namespace) -> int:
    from medalign3d.volumes.normalize import normalize_inputs

    params = _params(arguments.params)
    index = normalize_inputs(arguments.inputs, params.normalize, Path(arguments.out))
    refused = index[index["verdict"] != "accepted"]
    print(f"{len(index) - len(refused)} volumes normalized, {len(refused)} quarantined")
    print(f"volumes, pictures and index.parquet are in {arguments.out}")
    for row in refused.to_dict("records"):
        print(f"  {row['image_id']}: {row['reason']}" + (f" ({row['detail']})" if row["detail"] else ""))
    return EXIT_QUARANTINED if len(refused) else EXIT_DONE


def _export_volumes(arguments: argparse.Namespace) -> int:
    from medalign3d.volumes.export import export_cohort
    from medalign3d.volumes.store import INDEX_NAME

    params = _params(arguments.params)
    volumes = Path(arguments.data) / "volumes"
    cohorts = arguments.cohort or [name for name in COHORT_NAMES if (volumes / name / INDEX_NAME).is_file()]
    if not cohorts:
        raise InputError("no normalized volumes", where=volumes, remedy="run `dvc repro normalize`")
    for cohort in cohorts:
        written = export_cohort(
            volumes / cohort, Path(arguments.out) / cohort, workers=arguments.workers or params.normalize.workers
        )
        print(f"{cohort}: {written} volumes written to {Path(arguments.out) / cohort}, the others are up to date")
    return EXIT_DONE


def _record_text(arguments: argparse.Namespace, params: Params) -> str:
    """The health record as text: given as it is, or rendered from a JSON or CSV file of harmonized fields."""
    if arguments.text is not None:
        return str(arguments.text)
    if arguments.ehr is None:
        return ""
    from medalign3d.ehr.record import read_record
    from medalign3d.ehr.text import render, text_options

    return render(read_record(Path(arguments.ehr)), **text_options(params))


def _default_model() -> Path:
    """The model of the highest validation score that this workspace registered, or the first trained one."""
    from medalign3d.files import read_json

    record = Path("data/registry/registered.json")
    if record.exists():
        return Path(read_json(record)["model_directory"])
    for folder in sorted(Path("data/models").glob("*/lora/run-*")):
        return folder
    raise InputError(
        "no trained model here",
        where=Path("data/models").absolute(),
        remedy="run `dvc repro` first, or name one: --model data/models/<lm>/lora/run-0",
    )


def _known_question(asked: str) -> str:
    """The name of a closed question when ``asked`` is its name or its words, else ``asked`` itself."""
    from medalign3d.ehr.questions import QUESTIONS

    for name, question in QUESTIONS.items():
        if asked.strip().lower() in (name, question.text.lower()):
            return name
    return asked


def _predict(arguments: argparse.Namespace) -> int:
    from medalign3d.evaluation.predict import answer_one
    from medalign3d.files import read_json
    from medalign3d.volumes.normalize import normalize_volume
    from medalign3d.volumes.read import read_volume

    params = _params(arguments.params)
    model_directory = Path(arguments.model) if arguments.model else _default_model()
    if not model_directory.is_dir():
        raise InputError("no such model", where=model_directory, expected="a folder that `dvc repro` made")
    outer, separator, inner = str(arguments.image).partition("!")
    image = Path(outer).resolve()
    if not image.exists():
        raise InputError("no such image", where=arguments.image, expected="NIfTI, Analyze, a DICOM folder or a zip")
    normalized = normalize_volume(read_volume(image.parent, image.name + separator + inner), params.normalize)
    if normalized.verdict != "accepted":
        raise VolumeError(
            normalized.reason,
            "the image cannot be used",
            where=arguments.image,
            found=f"{normalized.reason}: {normalized.detail}",
            remedy="look at it with `medalign3d normalize IMAGE --out DIR`, which writes a picture",
        )
    text = _record_text(arguments, params)
    answer = answer_one(model_directory, normalized.array, text, _known_question(arguments.question))
    if text:
        print(f"record:   {text}")
    print(f"question: {answer['question']}")
    print(f"answer:   {answer['answer']}")
    for code, share in answer["probabilities"].items():
        print(f"          {share:6.1%}  {code}")
    simulated = read_json(model_directory / "metrics.json").get("simulated", False)
    print(
        f"model:    {model_directory}"
        + ("  (trained on SIMULATED people: of no use for patients)" if simulated else "")
    )
    print("This is research software, not a medical device: never base a decision about a person on it.")
    return EXIT_DONE


def _profile(arguments: argparse.Namespace) -> int:
    from medalign3d.profiles import available_profiles, switch_profile

    if arguments.name is None:
        active = load_params().profile
        for name in available_profiles():
            print(f"{'*' if name == active else ' '} {name}")
        return EXIT_DONE
    roots = {}
    for item in arguments.data or []:
        cohort, separator, folder = item.partition("=")
        if not separator or cohort not in COHORT_NAMES or not folder:
            raise ParameterError(
                "a data folder is given wrongly",
                where="--data",
                found=item,
                expected=f"COHORT=FOLDER, COHORT one of {', '.join(COHORT_NAMES)}",
            )
        roots[cohort] = folder
    params = switch_profile(arguments.name, roots)
    print(f"params.yaml is now the {params.profile} profile; run `dvc repro`")
    for cohort in params.external.cohorts:
        root = params.cohort_root(cohort)
        if not root.is_dir():
            print(f"  {cohort}: {root} is not there yet; name it with --data {cohort}=FOLDER")
    return EXIT_DONE


def _simulate(arguments: argparse.Namespace) -> int:
    import time

    out = Path(arguments.out)
    started = time.monotonic()
    if arguments.size == "table1":
        from medalign3d.simulate.table1 import simulate_table1

        seed = 7 if arguments.seed is None else arguments.seed
        for cohort, files in simulate_table1(out, seed=seed).items():
            print(f"{cohort}: {files:,} image files listed, tables written")
    else:
        from medalign3d.simulate import simulate_cohort

        params = _params(arguments.params)
        if arguments.seed is not None:
            params = params.model_copy(update={"simulate": params.simulate.model_copy(update={"seed": arguments.seed})})
        for cohort in params.simulate.cohorts:
            counts = simulate_cohort(cohort, params, out / cohort, out / "truth" / cohort)
            print(f"{cohort}: {counts['people']} people, {counts['images']} images, {counts['faults']} planted faults")
    print(f"SIMULATED cohorts are in {out} ({time.monotonic() - started:.0f} s); they say nothing about real patients")
    return EXIT_DONE


def _table1(arguments: argparse.Namespace) -> int:
    from medalign3d.ehr.harmonize import write_harmonized
    from medalign3d.report.make_table1 import cohort_folders, harmonize_folders, params_for, table1_of_harmonized

    data, out = Path(arguments.data), Path(arguments.out)
    folders = cohort_folders(data)
    params = params_for(_params(arguments.params), folders, arguments.form, arguments.read_images)
    result = harmonize_folders(folders, params, print)
    table = table1_of_harmonized(result, params.report.minimum_cell)
    write_harmonized(result, out / "ehr")
    table.write(out)
    print(table.text())
    print(f"{table.name}.csv, .md, .tex and the harmonized tables (ehr) are in {out}")
    return EXIT_DONE


def _doctor(arguments: argparse.Namespace) -> int:
    from medalign3d.doctor import examine

    if (arguments.cohort is None) != (arguments.root is None):
        raise ParameterError("give both a cohort and its folder, or neither", where="medalign3d doctor [COHORT ROOT]")
    if arguments.cohort:
        from medalign3d.cohorts.preflight import preflight, preflight_dict, render
        from medalign3d.lineage import to_json

        answer = preflight(arguments.cohort, Path(arguments.root))
        print(to_json(preflight_dict(answer)) if arguments.json else render(answer))
        return EXIT_DONE if answer.complete else EXIT_ERROR
    if arguments.json:
        raise ParameterError("--json needs a cohort and its folder", where="medalign3d doctor COHORT ROOT --json")
    return EXIT_DONE if examine(Path(arguments.params or "params.yaml")) else EXIT_ERROR


def _explain(arguments: argparse.Namespace) -> int:
    from medalign3d import lineage

    results = lineage.open_results(arguments.data)
    try:
        answer = lineage.explain(results, arguments.image, _params(arguments.params))
    except lineage.NotOneImage as error:
        if arguments.json:
            print(lineage.to_json({"error": error.what, "asked": arguments.image, "choices": error.choices}))
            return EXIT_ERROR
        print(error, file=sys.stderr)
        if error.choices:
            print("  near or fitting images:\n    " + "\n    ".join(error.choices), file=sys.stderr)
        return EXIT_ERROR
    print(lineage.to_json(answer) if arguments.json else lineage.render(answer))
    return EXIT_DONE


def _why_missing(arguments: argparse.Namespace) -> int:
    from medalign3d import lineage, missing

    results = lineage.open_results(arguments.data)
    params = _params(arguments.params)
    if not arguments.query:
        rows = missing.summary(results, arguments.cohort)
        print(lineage.to_json(rows) if arguments.json else missing.render_summary(rows))
        return EXIT_DONE
    disk = missing.Disk(results, params, {name: Path(place) for name, place in _named_folders(arguments.root).items()})
    tracer = missing.Tracer(results, params, disk)
    answers = [
        missing.why_missing(results, query, params, cohort=arguments.cohort, tracer=tracer) for query in arguments.query
    ]
    if arguments.json:
        print(lineage.to_json([missing.answer_dict(answer) for answer in answers]))
    else:
        print("\n\n".join(missing.render(answer) for answer in answers))
    states = {answer.status for answer in answers}
    if states <= {"in the result"}:
        return EXIT_DONE
    return EXIT_QUARANTINED if states <= {"in the result", "stopped"} else EXIT_ERROR


def _parameter_counts(arguments: argparse.Namespace) -> int:
    from medalign3d.profiles import build_profile
    from medalign3d.training.parameter_report import parameter_lines

    params = build_profile(arguments.profile)[1] if arguments.profile else _params(arguments.params)
    print("\n".join(parameter_lines(params)))
    return EXIT_DONE


def _named_folders(items: Sequence[str] | None) -> dict[str, str]:
    """``COHORT=FOLDER`` options as a dictionary."""
    folders = {}
    for item in items or []:
        cohort, separator, folder = item.partition("=")
        if not separator or cohort not in COHORT_NAMES or not folder:
            raise ParameterError(
                "a folder is given wrongly",
                found=item,
                expected=f"COHORT=FOLDER, COHORT one of {', '.join(COHORT_NAMES)}",
            )
        folders[cohort] = folder
    return folders


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="medalign3d",
        description="From dementia cohorts as their custodians ship them to a trained 3D vision-language model. "
        "The whole pipeline is run by `dvc repro`; these commands do one step on your own files.",
    )
    parser.add_argument("--version", action="version", version=f"medalign3d {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--params", metavar="FILE", help="parameter file (default: params.yaml in this folder)")
        return command

    ingest = add(
        "ingest",
        "read one cohort's native files into tables, with a reason for each image that is left out",
        "  medalign3d ingest OASIS ~/downloads/OASIS-1 --out tables/OASIS",
    )
    ingest.add_argument("cohort", choices=COHORT_NAMES, metavar="COHORT", help=", ".join(COHORT_NAMES))
    ingest.add_argument("root", metavar="ROOT", help="the folder with the custodian's files")
    ingest.add_argument("--out", required=True, metavar="DIR", help="where the tables go")
    ingest.set_defaults(run=_ingest)

    bids = add(
        "bids",
        "write the accepted images with their tables as a BIDS dataset, or add them to one",
        "  medalign3d bids --out ~/bids/all                          # after `dvc repro`: all cohorts of the pipeline\n"
        "  medalign3d bids --tables tables/OASIS --root ~/downloads/OASIS-1 --out ~/bids/oasis1",
    )
    bids.add_argument("--out", required=True, metavar="DIR", help="the dataset's folder; new, or a BIDS dataset")
    bids.add_argument(
        "--cohort", action="append", choices=COHORT_NAMES, metavar="COHORT", help="only this cohort (repeatable)"
    )
    bids.add_argument("--tables", metavar="DIR", help="output of `medalign3d ingest`, in place of the pipeline's data/")
    bids.add_argument("--root", metavar="ROOT", help="the folder that those tables were made from")
    bids.add_argument("--all", action="store_true", help="every accepted image, not only the selected one of a visit")
    bids.add_argument(
        "--relative-dates", action="store_true", help="add the days from each person's first event to sessions.tsv"
    )
    bids.add_argument("--derivatives", action="store_true", help="also write the normalized volumes")
    bids.add_argument("--overwrite", action="store_true", help="write images anew that are up to date")
    bids.add_argument("--workers", type=int, metavar="N", help="processes (default: ingest.workers)")
    bids.set_defaults(run=_bids)

    normalize = add(
        "normalize",
        "bring volumes (NIfTI, Analyze, DICOM folder or zip) to MNI space, with a verdict and a picture of each",
        "  medalign3d normalize scan.nii.gz dicom_folder/ series.zip --out normalized",
    )
    normalize.add_argument("inputs", nargs="+", metavar="INPUT", help="a file, a DICOM folder or a zip")
    normalize.add_argument("--out", required=True, metavar="DIR", help="where volumes, pictures and index.parquet go")
    normalize.set_defaults(run=_normalize)

    counts = add(
        "params",
        "count the learnable parameters of the models, beside the published figures, without any checkpoint",
        "  medalign3d params --profile paper",
    )
    counts.add_argument("--profile", metavar="NAME", help="of this profile (default: the active one)")
    counts.set_defaults(run=_parameter_counts)

    export = add(
        "export-volumes",
        "write the pipeline's normalized volumes as .nii.gz in MNI space, or bring such a folder up to date",
        "  medalign3d export-volumes --out ~/archive --cohort OASIS",
    )
    export.add_argument("--out", required=True, metavar="DIR", help="gets one folder for each cohort")
    export.add_argument(
        "--cohort", action="append", choices=COHORT_NAMES, metavar="COHORT", help="only this cohort (repeatable)"
    )
    export.add_argument("--data", default="data", metavar="DIR", help="data/ of the pipeline (default)")
    export.add_argument("--workers", type=int, metavar="N", help="processes (default: normalize.workers)")
    export.set_defaults(run=_export_volumes)

    predict = add(
        "predict",
        "answer a question about one scan",
        '  medalign3d predict --image scan.nii.gz --text "Age 74 years; female; MMSE 24/30." \\\n'
        '      --question "What is the cognitive diagnosis of this person?"',
    )
    predict.add_argument("--image", required=True, metavar="FILE", help="NIfTI, Analyze, DICOM folder or zip")
    record = predict.add_mutually_exclusive_group()
    record.add_argument("--ehr", metavar="FILE", help="the record as JSON or one-row CSV with harmonized field names")
    record.add_argument("--text", metavar="TEXT", help="the record as text")
    predict.add_argument("--question", required=True, metavar="TEXT", help="what to ask")
    predict.add_argument("--model", metavar="DIR", help="a trained run (default: the registered best one)")
    predict.set_defaults(run=_predict)

    simulate = add(
        "simulate",
        "write simulated cohorts in the custodians' layouts: small with images, or the published size without",
        "  medalign3d simulate --size table1 --out simulated     # 30,371 rows in the published form, no voxels\n"
        "  medalign3d simulate --size mini --out simulated       # as params.yaml says, with images",
    )
    simulate.add_argument("--size", choices=("mini", "table1"), default="mini", help="default: mini")
    simulate.add_argument("--out", required=True, metavar="DIR", help="gets one folder for each cohort")
    simulate.add_argument("--seed", type=int, metavar="N", help="changes everybody (default: 7, or params.yaml's)")
    simulate.set_defaults(run=_simulate)

    table1 = add(
        "table1",
        "Table 1 of the cohorts in a folder, from their tables and the images' paths",
        "  medalign3d table1 --data simulated --out tables --form table1_emulation\n"
        "  medalign3d table1 --data ~/cohorts --out tables         # ~/cohorts/ADNI, ~/cohorts/NACC ...",
    )
    table1.add_argument("--data", required=True, metavar="DIR", help="holds folders named ADNI, NACC, OASIS ...")
    table1.add_argument("--out", required=True, metavar="DIR", help="where the table and the harmonized tables go")
    table1.add_argument(
        "--form",
        choices=("clean", "table1_emulation"),
        default="clean",
        help="clean: acquired scans (default); table1_emulation: what the published table counted",
    )
    table1.add_argument("--read-images", action="store_true", help="open and check every image (slow); default: do not")
    table1.set_defaults(run=_table1)

    profile = add(
        "profile",
        "show the profiles, or switch params.yaml to one of them",
        "  medalign3d profile oasis1 --data OASIS=~/downloads/OASIS-1 && dvc repro\n"
        "  medalign3d profile demo                                 # and back",
    )
    profile.add_argument("name", nargs="?", metavar="NAME", help="demo, oasis1, ixi, paper or your own in profiles/")
    profile.add_argument(
        "--data", action="append", metavar="COHORT=FOLDER", help="where a cohort's files are (repeatable)"
    )
    profile.set_defaults(run=_profile)

    doctor = add(
        "doctor",
        "say what is installed, which cohorts are found where and what is missing, GPU and disk, in seconds",
        "  medalign3d doctor                       # this workspace and its active profile\n"
        "  medalign3d doctor OASIS ~/downloads/OASIS-1",
    )
    doctor.add_argument("cohort", nargs="?", choices=COHORT_NAMES, metavar="COHORT")
    doctor.add_argument("root", nargs="?", metavar="ROOT")
    doctor.add_argument("--json", action="store_true", help="print JSON (with COHORT and ROOT)")
    doctor.set_defaults(run=_doctor)

    explain = add(
        "explain",
        "say where every value of one image came from, and what every stage did with it",
        "  medalign3d explain 3f2a9c                               # an image id or its beginning\n"
        "  medalign3d explain OAS1_0001_MR1/mpr-1 --data tables/OASIS   # a native image key, after one ingest",
    )
    explain.add_argument("image", metavar="IMAGE", help="image id or its beginning, native image key, or source path")
    explain.add_argument("--data", metavar="DIR", help="data/ of the pipeline (default), or what `ingest --out` wrote")
    explain.add_argument("--json", action="store_true", help="print JSON")
    explain.set_defaults(run=_explain)

    missing = add(
        "why-missing",
        "say why a participant, session, image or file is not in the result, or count all reasons",
        "  medalign3d why-missing                                  # all cohorts: found = accepted + quarantined\n"
        "  medalign3d why-missing 005_S_0223 'RID 223' NACC123456 downloads/ADNI/005_S_0223/scan.nii",
    )
    missing.add_argument(
        "query", nargs="*", metavar="QUERY", help="native id in any spelling, image key, image id, path"
    )
    missing.add_argument("--cohort", choices=COHORT_NAMES, metavar="COHORT", help="look only there")
    missing.add_argument("--data", metavar="DIR", help="data/ of the pipeline (default), or what `ingest --out` wrote")
    missing.add_argument(
        "--root", action="append", metavar="COHORT=FOLDER", help="where a cohort's files are, if not recorded"
    )
    missing.add_argument("--json", action="store_true", help="print JSON")
    missing.set_defaults(run=_why_missing)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    quiet.apply()
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except MedAlignError as error:
        print(error, file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
