import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign3d.errors import ParameterError
from medalign3d.params import load_params, parse_yaml, validate_params


def changed(text, **paths):
    values = parse_yaml(text)
    for path, value in paths.items():
        node = values
        *parents, last = path.split("__")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return values


def test_all_errors_are_reported_at_once_with_lines(params_text):
    values = changed(
        params_text, trainig=1, model__alignq__queries=0, vqa__seed="x", normalize__shape=[48, 60], report__rows=2
    )
    with pytest.raises(ParameterError) as caught:
        validate_params(values, text=params_text)
    message = str(caught.value)
    assert message.startswith("5 wrong parameters")
    for part in ("did you mean training?", "model.alignq.queries", "vqa.seed (line", "normalize.shape", "report.rows"):
        assert part in message


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        ("normalize__shape", [47, 60, 48], "does not divide normalize.shape along x, 47"),
        ("language_models", ["llama"], "expected one of"),
        ("external__cohorts", ["ADNI"], "never mixed"),
        ("training__control_runs", 9, "training.control_runs"),
        ("evaluate__headline_text", "no_cdr_", "evaluate.headline_text"),
        ("cohorts", ["ADNI"], "expected exactly the cohorts"),
    ],
)
def test_contradictions_are_named(params_text, path, value, part):
    with pytest.raises(ParameterError, match=part.replace(".", r"\.")):
        validate_params(changed(params_text, **{path: value}))


def test_numbers_are_not_read_from_text(params_text):
    with pytest.raises(ParameterError, match="learning_rate"):
        validate_params(changed(params_text, pretrain__learning_rate="0.001"))


def test_scientific_notation_is_a_number():
    assert parse_yaml("a: 2e-5") == {"a": 2e-5}


def test_missing_file_and_broken_yaml(tmp_path):
    with pytest.raises(ParameterError, match="no parameter file"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(ParameterError, match="not YAML"):
        load_params(tmp_path / "params.yaml")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_any_garbage_is_a_parameter_error(value):
    with pytest.raises(ParameterError):
        validate_params(value)


def test_every_leaf_of_the_demo_is_checked(params_text):
    """Replacing any leaf by an impossible value is an error: no key of params.yaml is decoration."""
    values = parse_yaml(params_text)

    def leaves(node, path=()):
        if isinstance(node, dict):
            for key, value in node.items():
                yield from leaves(value, (*path, key))
        else:
            yield path

    for path in leaves(values):
        broken = copy.deepcopy(values)
        node = broken
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = object()
        with pytest.raises(ParameterError):
            validate_params(broken)


def test_the_headline_of_oasis_is_without_the_cdr(demo_params):
    assert demo_params.headline_text("OASIS") == "no_cdr"
    assert {demo_params.headline_text(cohort) for cohort in ("ADNI", "NACC", "AIBL", "MIRIAD", "IXI")} == {"full"}
    fewer = demo_params.evaluate.model_copy(update={"headline_text": "demographics_only"})
    assert demo_params.model_copy(update={"evaluate": fewer}).headline_text("OASIS") == "demographics_only"
