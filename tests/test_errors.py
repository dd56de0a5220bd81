from medalign3d.errors import InputError, MedAlignError, VolumeError


def test_message_names_place_and_remedy():
    error = MedAlignError("wrong", where="a.csv, row 3", found="x", expected="a number", remedy="correct it")
    text = str(error)
    for part in ("wrong", "a.csv, row 3", "found:    x", "expected: a number", "remedy:   correct it"):
        assert part in text


def test_absent_parts_leave_no_empty_lines():
    assert str(MedAlignError("wrong")) == "wrong"


def test_volume_error_carries_its_reason_and_is_an_input_error():
    error = VolumeError("IMAGE_EMPTY", "all voxels are equal", found="0.0")
    assert error.reason == "IMAGE_EMPTY"
    assert isinstance(error, InputError)
    assert "0.0" in str(error)
