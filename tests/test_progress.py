import io

import pytest

from medalign3d.progress import Progress, format_seconds, track


def test_plain_output_ends_with_one_line_of_total():
    stream = io.StringIO()
    with Progress("volumes", 3, stream) as progress:
        for _ in range(3):
            progress.advance()
    assert stream.getvalue() == "volumes: 3/3 in 0s\n"


def test_time_left_is_proportional(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("medalign3d.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with Progress("steps", 4, stream) as progress:
        now[0] = 20.0
        progress.advance(note="loss 1.0")
        assert stream.getvalue() == "steps: 1/4, 1m00s left  loss 1.0\n"


def test_time_left_leaves_the_start_up_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("medalign3d.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with Progress("volumes", 10, stream, parallel=2) as progress:
        for moment in (60.0, 61.0, 80.0, 81.0):  # a minute of start-up, then two volumes every 20 s
            now[0] = moment
            progress.advance()
        assert stream.getvalue().splitlines() == ["volumes: 1/10", "volumes: 3/10"]
        now[0] = 101.0
        progress.advance(2)
        assert stream.getvalue().splitlines()[-1] == "volumes: 6/10, 40s left"


def test_terminal_rewrites_its_line():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress("items", 1, stream) as progress:
        progress.advance()
    assert stream.getvalue().startswith("\r")
    assert stream.getvalue().endswith("\n")


def test_failure_is_not_reported_as_done():
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Progress("steps", 2, stream) as progress:
        progress.advance()
        raise RuntimeError
    assert " in " not in stream.getvalue()


def test_track_yields_everything():
    assert list(track(iter("abc"), "letters", 3)) == ["a", "b", "c"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59.6, "1m00s"), (3599, "59m59s"), (7200, "2h00m")])
def test_durations(seconds, text):
    assert format_seconds(seconds) == text
