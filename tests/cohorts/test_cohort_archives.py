"""Hostile archives: nothing outside the target, bounded time, memory and disk, and a reason."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import subprocess
import sys
import tarfile
import textwrap
import time
import warnings
import zipfile
from pathlib import Path

import pytest
from cohort_trees import image_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.cohorts import archives
from medalign3d.cohorts.archives import Archive, ArchiveError, Gunzip, extract, safe_name
from medalign3d.cohorts.images import inspect_image
from medalign3d.cohorts.tables import load_table
from medalign3d.errors import InputError, VolumeError

MEGABYTE = 1 << 20


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return path


def make_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for info, content in members:
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return path


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def everything_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def in_small_process(code: str, *, memory: int, seconds: float, argument: Path) -> str:
    """Run code in a process with bounded address space and CPU time; what it prints."""
    limits = f"import resource, sys; resource.setrlimit(resource.RLIMIT_CPU, ({int(seconds)},) * 2)\n"
    imports = (
        "import medalign3d.cohorts.images, medalign3d.cohorts.tables\n"
        "from pathlib import Path\npath = Path(sys.argv[1])\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (used + {memory},) * 2)\n"
    )
    script = limits + imports + textwrap.dedent(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(argument)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# --- names


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../../b", "/a", "//a", "C:\\a", "c:a", "a\\..\\b", "..", "", ".", "./", "a\x00b", "a\nb", "x" * 300],
)
def test_names_that_lead_out_or_are_none(name: str) -> None:
    assert safe_name(name) is None


@given(st.text(max_size=60))
def test_a_safe_name_stays_inside_and_is_settled(name: str) -> None:
    safe = safe_name(name)
    if safe is not None:
        assert os.path.normpath(os.path.join("/target", safe)).startswith("/target/")
        assert safe_name(safe) == safe


# --- extraction


def test_nothing_is_written_outside_the_target(tmp_path: Path) -> None:
    evil = ["../out.txt", "../../out.txt", str(tmp_path / "absolute.txt"), "a/../../out.txt", "..\\out.txt"]
    zip_path = make_zip(tmp_path / "evil.zip", {**dict.fromkeys(evil, b"x"), "good/a.txt": b"good"})
    with zipfile.ZipFile(zip_path, "a") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(tmp_path))
        archive.writestr("link/through.txt", b"x")
    tar_path = make_tar(
        tmp_path / "evil.tgz",
        [
            *((tar_member(name), b"x") for name in evil),
            (tar_member("link", tarfile.SYMTYPE, str(tmp_path)), b""),
            (tar_member("link/through.txt"), b"x"),
            (tar_member("hard", tarfile.LNKTYPE, "/etc/passwd"), b""),
            (tar_member("pipe", tarfile.FIFOTYPE), b""),
            (tar_member("disk", tarfile.BLKTYPE), b""),
            (tar_member("good/a.txt"), b"good"),
        ],
    )
    before = everything_below(tmp_path)
    for number, path in enumerate((zip_path, tar_path)):
        target = tmp_path / f"target{number}"
        refused = {one.name for one in extract(path, target)}
        assert {"../out.txt", "link"} <= refused
        # What stood behind the link becomes an ordinary folder.
        assert everything_below(target) == {"good", "good/a.txt", "link", "link/through.txt"}
        assert not (target / "link").is_symlink()
        before |= {f"target{number}"} | {f"target{number}/{name}" for name in everything_below(target)}
    assert everything_below(tmp_path) == before


def test_permissions_of_the_archive_are_not_taken_over(tmp_path: Path) -> None:
    info = tar_member("tool")
    info.mode = 0o6777
    extract(make_tar(tmp_path / "a.tar", [(info, b"x")], "w"), tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out" / "tool").stat().st_mode) & 0o7111 == 0


def test_a_failed_extraction_leaves_nothing_behind(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": b"a" * 5000, "b": os.urandom(5000)}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[-400] ^= 0xFF  # in the data of b
    path.write_bytes(bytes(content))
    with pytest.raises(ArchiveError):
        extract(path, tmp_path / "out")
    with pytest.raises(ArchiveError, match="beyond all bounds"):
        extract(make_zip(tmp_path / "b.zip", {"a": bytes(5000)}), tmp_path / "out", total_limit=1000)
    assert everything_below(tmp_path) == {"a.zip", "b.zip"}


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": b"file", "a/b": b"inside"})
    assert [one.name for one in extract(path, tmp_path / "out")] == ["a/b"]
    with pytest.raises(ArchiveError, match="not empty"):
        extract(path, tmp_path / "out")


# --- reading


def test_members_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in (b"one", b"two"):
            archive.writestr("differ", content)
            archive.writestr("equal", b"same")
    with Archive(path) as read:
        assert [member.name for member in read.members] == ["equal"]
        with pytest.raises(ArchiveError, match="of this name differ"):
            read.read("differ")
        with pytest.raises(ArchiveError, match="does not have it"):
            read.read("absent")


def test_encrypted_and_unusual_members_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.nii": b"x" * 100})
    content = path.read_bytes()
    locked = content.replace(b"PK\x03\x04\x14\x00\x00\x00", b"PK\x03\x04\x14\x00\x01\x00").replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
    )
    assert locked != content
    path.write_bytes(locked)
    with Archive(path) as archive:
        assert archive.members == []
        assert [one.why for one in archive.refused] == ["it is encrypted"]
    with Archive(make_zip(tmp_path / "b.zip", {"a": b"x"}, zipfile.ZIP_LZMA)) as archive:
        assert "compression method 14" in archive.refused[0].why


@pytest.mark.parametrize("claim", [0, 10, 10**6])
def test_a_wrong_size_in_the_directory_is_found(tmp_path: Path, claim: int) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": b"x" * 5000})
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", claim)
    path.write_bytes(bytes(content))
    with Archive(path) as archive, pytest.raises(ArchiveError):
        archive.read("a")


def test_overlapping_members_are_a_bomb(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{n}": b"x" * 5000 for n in range(3)})
    content = bytearray(path.read_bytes())
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        content[at + 42 : at + 46] = struct.pack("<I", 0)  # all of them begin at the first one's data
    path.write_bytes(bytes(content))
    with pytest.raises(ArchiveError, match="overlap"):
        Archive(path)


@pytest.mark.parametrize("limit", [0, 10, 99, 100, 10**6])
def test_reading_is_bounded(tmp_path: Path, limit: int) -> None:
    for path in (
        make_zip(tmp_path / "a.zip", {"a": b"x" * 100}),
        make_tar(tmp_path / "a.tgz", [(tar_member("a"), b"x" * 100)]),
    ):
        with Archive(path) as archive:
            if limit < 100:
                with pytest.raises(ArchiveError, match="too large"):
                    archive.read("a", limit)
            else:
                assert archive.read("a", limit) == b"x" * 100


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_archives_give_the_right_content_or_an_archive_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    members = {"a/b.txt": b"hello " * 50, "c.bin": bytes(range(256))}
    if data.draw(st.booleans()):
        path = make_zip(folder / "a.zip", members)
    else:
        path = make_tar(folder / "a.tgz", [(tar_member(name), content) for name, content in members.items()])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content))) or None]))
    try:
        with Archive(path) as archive:
            for member in archive.members:
                assert archive.read(member.name) in members.values()
    except ArchiveError:
        return


# --- bombs


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAXIMUM_MEMBERS", 50)
    many = {f"{n}": b"" for n in range(60)}
    with pytest.raises(ArchiveError, match="too many members"):
        Archive(make_zip(tmp_path / "a.zip", many))
    with pytest.raises(ArchiveError, match="too many members"):
        Archive(make_tar(tmp_path / "a.tgz", [(tar_member(name), b"") for name in many]))


def test_a_million_entries_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    count = 1_000_000
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    end = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, len(entry) * count, len(local), 0
    )
    path.write_bytes(local + entry * count + end)
    printed = in_small_process(
        """
        from medalign3d.cohorts.archives import Archive, ArchiveError
        try:
            Archive(path)
        except ArchiveError as error:
            print(error.what)
        """,
        memory=64 * MEGABYTE,
        seconds=20,
        argument=path,
    )
    assert "too many members" in printed


def write_gzip_bomb(path: Path, size: int, start: bytes = b"", fill: bytes = b"\0") -> Path:
    block = gzip.compress(fill * (16 * MEGABYTE))
    path.write_bytes(gzip.compress(start) + block * (size // (16 * MEGABYTE)))
    return path


@pytest.mark.parametrize("honest_header", [True, False])
def test_a_compressed_image_that_never_ends(tmp_path: Path, honest_header: bool) -> None:
    start = image_bytes(1) if honest_header else b"\0" * 400
    path = write_gzip_bomb(tmp_path / "a.nii.gz", 800 * MEGABYTE, start)
    assert path.stat().st_size < 4 * MEGABYTE
    printed = in_small_process(
        """
        from medalign3d.cohorts.images import inspect_image
        from medalign3d.errors import VolumeError
        try:
            inspect_image(path)
        except VolumeError as error:
            print(error.reason, error.what)
        """,
        memory=100 * MEGABYTE,
        seconds=15,
        argument=path,
    )
    assert printed.startswith("IMAGE_UNREADABLE")


def test_a_zip_of_zips_is_not_expanded(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", {"a.nii": bytes(20 * MEGABYTE)})
    outer = make_zip(tmp_path / "outer.zip", {f"{n}.zip": inner.read_bytes() for n in range(20)})
    with Archive(outer) as archive:
        assert {member.name for member in archive.members} == {f"{n}.zip" for n in range(20)}
        assert all(member.size < MEGABYTE for member in archive.members)
    with pytest.raises(VolumeError):
        inspect_image(outer)


def test_a_member_whose_claim_is_enormous(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("T1.nii", "w", force_zip64=True) as member,
    ):
        member.write(image_bytes(1))
        for _ in range(250):
            member.write(bytes(MEGABYTE))
    printed = in_small_process(
        """
        from medalign3d.cohorts.images import inspect_image
        from medalign3d.errors import VolumeError
        try:
            inspect_image(path)
        except VolumeError as error:
            print(error.reason, error.what)
        """,
        memory=100 * MEGABYTE,
        seconds=15,
        argument=path,
    )
    assert printed.startswith("IMAGE_UNREADABLE")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_compressed_table_without_line_breaks(tmp_path: Path, name: str) -> None:
    path = write_gzip_bomb(tmp_path / name, 320 * MEGABYTE, b"RID,MMSCORE\n1,", b"2")
    printed = in_small_process(
        """
        from medalign3d.cohorts.tables import load_table
        from medalign3d.errors import InputError
        try:
            load_table(path)
        except InputError as error:
            print(error.what, error.found)
        """,
        memory=250 * MEGABYTE,
        seconds=15,
        argument=path,
    )
    assert "not a table" in printed


def test_a_spreadsheet_that_is_a_bomb(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.xlsx", {"xl/sharedStrings.xml": bytes(MEGABYTE)})
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 3 << 30)
    path.write_bytes(bytes(content))
    started = time.monotonic()
    with pytest.raises(InputError, match="too large"):
        load_table(path)
    assert time.monotonic() - started < 2


def test_a_tar_with_an_oversized_header(tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 500 * MEGABYTE
    write_gzip_bomb(path, 500 * MEGABYTE, info.tobuf(tarfile.USTAR_FORMAT))
    with pytest.raises(ArchiveError, match="oversized header"):
        Archive(path)


def test_a_tar_that_expands_beyond_the_limit(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.size = 300 * MEGABYTE
    write_gzip_bomb(tmp_path / "a.tgz", 300 * MEGABYTE, info.tobuf())
    with pytest.raises(ArchiveError, match="beyond all bounds"):
        Archive(tmp_path / "a.tgz", total_limit=50 * MEGABYTE)


# --- gzip


@given(st.lists(st.binary(max_size=3000), max_size=4), st.integers(1, 500), st.integers(0, 20))
def test_gzip_streams_expand_to_what_was_packed(parts: list[bytes], step: int, padding: int) -> None:
    packed = b"".join(map(gzip.compress, parts)) + bytes(padding if parts else 0)
    expander = Gunzip()
    expanded = b"".join(
        piece for at in range(0, len(packed), step) for piece in expander.expand(packed[at : at + step])
    )
    assert expanded == b"".join(parts)
    assert expander.complete == bool(parts)


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_cut_gzip_streams_are_not_complete(content: bytes, data: st.DataObject) -> None:
    packed = gzip.compress(content)
    expander = Gunzip()
    expanded = b"".join(expander.expand(packed[: data.draw(st.integers(0, len(packed) - 1))]))
    assert content.startswith(expanded)
    assert not expander.complete
