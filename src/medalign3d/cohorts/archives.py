r"""Reading archives that nobody vouches for: zip, tar, compressed tar and gzip.

Archives are hostile until shown otherwise: names may lead out of the folder, members may be links or devices, a few
kilobytes may expand to petabytes, the directory may claim wrong sizes or millions of entries. Every reader lists and
reads members through this module. Sizes are bounded twice, by what the directory claims *and* by what really comes out
while expanding. What is refused comes with a reason; nothing is written unless :func:`extract` is called, and then
never outside its target.

>>> safe_name("mri1ni/T1.nii"), safe_name("../up.nii"), safe_name("/etc/passwd"), safe_name("a\\..\\b")
('mri1ni/T1.nii', None, None, None)
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from medalign3d.errors import InputError
from medalign3d.files import CHUNK_BYTES, atomic_path

MAXIMUM_MEMBERS = 200_000  # a study's download holds tens of thousands of slices
MAXIMUM_DIRECTORY_BYTES = 64 << 20  # of a zip's list of members
MAXIMUM_MEMBER_BYTES = 4 << 30
MAXIMUM_TOTAL_BYTES = 64 << 30  # everything that one archive expands to
_MAXIMUM_TAR_HEADER = 4 << 20  # a longer name or attribute list is an attack
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)  # LZMA lets the archive choose the memory
_END_OF_DIRECTORY = b"PK\x05\x06"
_END_OF_DIRECTORY_64 = b"PK\x06\x06"
_DIRECTORY_ENTRY = b"PK\x01\x02"
_ENCRYPTED = 0x1
#: What the standard library raises on damaged archives.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    gzip.BadGzipFile,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    struct.error,
    UnicodeError,
)


class ArchiveError(InputError):
    """An archive, or one member of it, cannot be read or must not be."""


@dataclass(frozen=True)
class Member:
    """One file of an archive that may be read.

    Parameters
    ----------
    name
        Its path inside the archive, with ``/`` between folders.
    size
        Expanded size that the directory claims, in bytes.
    """

    name: str
    size: int
    info: Any = field(repr=False, compare=False, default=None)


@dataclass(frozen=True)
class Refused:
    """A member that is left alone, and why."""

    name: str
    why: str


def safe_name(name: str) -> str | None:
    """The member's name with plain slashes, or None when it is absolute, leaves its folder, or is no usable name."""
    plain = name.replace("\\", "/")
    if not plain or plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or any(ord(c) < 32 for c in plain):
        return None
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts):
        return None
    return "/".join(parts)


def _directory_size(stream: IO[bytes], size: int) -> tuple[int, int]:
    """Offset and length of a zip's central directory, from the record at its end."""
    tail = min(size, 66_000)
    stream.seek(size - tail)
    end = stream.read(tail)
    at = end.rfind(_END_OF_DIRECTORY)
    if at < 0 or len(end) - at < 22:
        raise zipfile.BadZipFile("no directory at its end")
    (length,) = struct.unpack("<I", end[at + 12 : at + 16])
    record_at = size - tail + at
    at_64 = end.rfind(_END_OF_DIRECTORY_64, 0, at)
    if at_64 >= 0 and len(end) - at_64 >= 56:
        (length,) = struct.unpack("<Q", end[at_64 + 40 : at_64 + 48])
        record_at = size - tail + at_64
    # Bytes may stand before the archive: the directory ends where its end record begins.
    return max(0, record_at - int(length)), int(length)


def _check_directory(path: Path) -> None:
    """Refuse a zip whose directory is too large, before the library makes an object of every entry."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        offset, length = _directory_size(stream, size)
        if length > min(size, MAXIMUM_DIRECTORY_BYTES):
            raise ArchiveError(
                "an archive's directory is too large",
                found=f"{length} bytes",
                expected=f"at most {MAXIMUM_DIRECTORY_BYTES}",
            )
        stream.seek(offset)
        rest, entries, before = size - offset, 0, b""
        while rest > 0 and (chunk := stream.read(min(CHUNK_BYTES, rest))):
            rest -= len(chunk)
            entries += (before[-3:] + chunk).count(_DIRECTORY_ENTRY)
            before = chunk
            if entries > MAXIMUM_MEMBERS:
                raise ArchiveError(
                    "an archive has too many members",
                    found=f"more than {MAXIMUM_MEMBERS}",
                    expected=f"at most {MAXIMUM_MEMBERS}",
                )


class _BoundedReads(io.RawIOBase):
    """A stream that refuses single reads and total lengths which no honest tar needs."""

    def __init__(self, stream: IO[bytes], total: int) -> None:
        self.stream = stream
        self.total = total

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _MAXIMUM_TAR_HEADER:
            raise ArchiveError("a tar archive has an oversized header", found=f"{size} bytes")
        self._check(self.stream.tell() + size)
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check(offset if whence == io.SEEK_SET else 0)
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def _check(self, position: int) -> None:
        if position > self.total:
            raise ArchiveError(
                "an archive expands beyond all bounds",
                found=f"more than {self.total} bytes",
                expected=f"at most {self.total}",
            )


class Archive:
    """A zip, tar or compressed tar, read without trusting it.

    Parameters
    ----------
    path
        The file; its kind is told from its content.
    total_limit
        Bytes that all members together may expand to.

    Attributes
    ----------
    members
        The files that may be read, sorted by name.
    refused
        What is left alone: links, devices, names that lead out of the folder, encrypted members, two members of one
        name with different content, unusual compression.

    Raises
    ------
    ArchiveError
        When it is no archive, is damaged, or is a bomb (too many members, overlapping members, too large in total).

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.zip"
    ...     with zipfile.ZipFile(path, "w") as made:
    ...         made.writestr("in/a.txt", "hello")
    ...         made.writestr("../b.txt", "out")
    ...     with Archive(path) as archive:
    ...         print([m.name for m in archive.members], [r.why for r in archive.refused], archive.read("in/a.txt"))
    ['in/a.txt'] ['its name leads out of the folder'] b'hello'
    """

    def __init__(self, path: str | os.PathLike[str], *, total_limit: int = MAXIMUM_TOTAL_BYTES) -> None:
        self.path = Path(path)
        self.total_limit = total_limit
        self.members: list[Member] = []
        self.refused: list[Refused] = []
        self._stack = contextlib.ExitStack()
        self._zip: zipfile.ZipFile | None = None
        self._tar: tarfile.TarFile | None = None
        try:
            with self._explained():
                with self.path.open("rb") as stream:
                    start = stream.read(4)
                if start[:2] == b"PK":
                    self._open_zip()
                else:
                    self._open_tar(start)
        except BaseException:
            self._stack.close()
            raise
        self._by_name = {member.name: member for member in self.members}
        self.members.sort(key=lambda member: member.name)

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def _explained(self, name: str | None = None) -> Iterator[None]:
        try:
            yield
        except ArchiveError as error:
            if error.where is not None:
                raise
            raise ArchiveError(
                error.what, where=self.path.name, found=error.found, expected=error.expected, remedy=error.remedy
            ) from error
        except _DAMAGE as error:
            if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError) and name is None:
                detail = error.strerror or type(error).__name__
            else:
                detail = type(error).__name__
            raise ArchiveError(
                "an archive is damaged or cannot be read" if name is None else "an archive member is damaged",
                where=self.path.name,
                found=detail,
                expected="an undamaged zip or tar archive",
                remedy="download the archive again",
            ) from error

    # -- opening

    def _open_zip(self) -> None:
        _check_directory(self.path)
        self._zip = self._stack.enter_context(zipfile.ZipFile(self.path))
        entries = [info for info in self._zip.infolist() if not info.is_dir()]
        end = 0
        for info in sorted(self._zip.infolist(), key=lambda info: info.header_offset):
            if info.header_offset < end:
                raise ArchiveError("members of an archive overlap", found="one stretch of data listed as several files")
            end = info.header_offset + info.compress_size
        names = Counter(safe_name(info.filename) for info in entries)
        kept: dict[str, zipfile.ZipInfo] = {}
        for info in entries:
            name = safe_name(info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if name is None:
                self._refuse(info.filename, "its name leads out of the folder")
            elif kind not in (0, stat.S_IFREG):
                self._refuse(name, "it is a link or a device, no file")
            elif info.flag_bits & _ENCRYPTED:
                self._refuse(name, "it is encrypted")
            elif info.compress_type not in _ZIP_METHODS:
                self._refuse(name, f"its compression method {info.compress_type} is not supported")
            elif names[name] > 1 and name in kept:
                if (kept[name].CRC, kept[name].file_size) != (info.CRC, info.file_size):
                    self._refuse(name, "two members of this name differ")
            else:
                kept[name] = info
        twice = {refused.name for refused in self.refused if refused.why == "two members of this name differ"}
        self.members = [Member(name, info.file_size, info) for name, info in kept.items() if name not in twice]

    def _open_tar(self, start: bytes) -> None:
        stream: Any = self._stack.enter_context(self.path.open("rb"))
        if start[:2] == b"\x1f\x8b":
            stream = self._stack.enter_context(gzip.GzipFile(fileobj=stream))
        bounded = _BoundedReads(stream, self.total_limit)
        self._tar = self._stack.enter_context(tarfile.TarFile(fileobj=bounded, mode="r"))
        kept: dict[str, Member] = {}
        twice: set[str] = set()
        count = 0
        while (info := self._tar.next()) is not None:
            count += 1
            if count > MAXIMUM_MEMBERS:
                raise ArchiveError(
                    "an archive has too many members",
                    found=f"more than {MAXIMUM_MEMBERS}",
                    expected=f"at most {MAXIMUM_MEMBERS}",
                )
            if info.isdir():
                continue
            name = safe_name(info.name)
            if name is None:
                self._refuse(info.name, "its name leads out of the folder")
            elif not info.isreg() or info.issparse():
                self._refuse(name, "it is a link or a device, no file")
            elif name in kept:
                twice.add(name)
            else:
                kept[name] = Member(name, info.size, info)
        while bounded.read(CHUNK_BYTES):  # to the end: only there stands the checksum of what was read
            pass
        for name in sorted(twice):
            self._refuse(name, "two members of this name differ")
        self.members = [member for name, member in kept.items() if name not in twice]

    def _refuse(self, name: str, why: str) -> None:
        self.refused.append(Refused(name.encode("ascii", "backslashreplace").decode()[:200], why))

    # -- reading

    def member(self, name: str) -> Member:
        """The member of this name.

        Raises
        ------
        ArchiveError
            When it is absent or refused; says which.
        """
        found = self._by_name.get(safe_name(name) or "")
        if found is not None:
            return found
        why = next((refused.why for refused in self.refused if refused.name == name), "the archive does not have it")
        raise ArchiveError("an archive member cannot be read", where=self.path.name, found=why)

    def chunks(self, name: str, limit: int = MAXIMUM_MEMBER_BYTES) -> Iterator[bytes]:
        """The member's expanded bytes, a chunk at a time.

        Parameters
        ----------
        name
            The member.
        limit
            Bytes at most, by the claim of the directory and by count.

        Raises
        ------
        ArchiveError
            When it is larger, damaged, or not what the directory claims.
        """
        member = self.member(name)
        if member.size > limit:
            raise ArchiveError(
                "an archive member is too large",
                where=self.path.name,
                found=f"{member.size} bytes",
                expected=f"at most {limit}",
            )
        with self._explained(name):
            source = self._zip.open(member.info) if self._zip is not None else self._tar_file(member)
            count = 0
            with source:
                while chunk := source.read(min(CHUNK_BYTES, limit + 1)):
                    count += len(chunk)
                    if count > limit:
                        raise ArchiveError("an archive member expands beyond its claim", found=f"{count} bytes")
                    yield chunk
            if count != member.size:
                raise EOFError

    def _tar_file(self, member: Member) -> IO[bytes]:
        assert self._tar is not None
        source = self._tar.extractfile(member.info)
        if source is None:
            raise ArchiveError("an archive member cannot be read", found="it is no file")
        return source

    def read(self, name: str, limit: int = MAXIMUM_MEMBER_BYTES) -> bytes:
        """The member's content; see :meth:`chunks`."""
        return b"".join(self.chunks(name, limit))


def read_file(path: Path, limit: int) -> bytes:
    """A file's content, at most ``limit`` bytes.

    Raises
    ------
    ArchiveError
        When it is larger.
    """
    size = path.stat().st_size
    if size > limit:
        raise ArchiveError("a file is too large", where=path.name, found=f"{size} bytes", expected=f"at most {limit}")
    with path.open("rb") as stream:
        return stream.read(limit)


class Gunzip:
    """Expand gzip data as it comes, without ever holding more than is asked for.

    Several gzip members in a row are one stream; padding with zero bytes behind the last is legal.

    Attributes
    ----------
    complete
        Whether the stream so far ends at the end of a member, whose checksum fits.

    Examples
    --------
    >>> expander = Gunzip()
    >>> b"".join(expander.expand(gzip.compress(b"abc"))), expander.complete
    (b'abc', True)
    """

    def __init__(self) -> None:
        self._decompressor = zlib.decompressobj(wbits=31)
        self._started = False
        self._members = 0
        self.complete = False

    def expand(self, data: bytes) -> Iterator[bytes]:
        """Expanded pieces of at most a mebibyte each; stop iterating to stop expanding.

        Raises
        ------
        zlib.error
            When the data is damaged.
        """
        while data:
            if not self._started:
                if self._members and not data.strip(b"\x00"):
                    return
                self._started, self.complete = True, False
            piece = self._decompressor.decompress(data, CHUNK_BYTES)
            data = self._decompressor.unconsumed_tail
            if piece:
                yield piece
            if self._decompressor.eof:
                data = self._decompressor.unused_data
                self._decompressor = zlib.decompressobj(wbits=31)
                self._started, self.complete = False, True
                self._members += 1


def extract(
    path: str | os.PathLike[str], target: str | os.PathLike[str], *, total_limit: int = MAXIMUM_TOTAL_BYTES
) -> list[Refused]:
    """Unpack an archive into the new folder ``target``: all of it that is safe, or nothing.

    Only plain files are made, with ordinary permissions; links, devices and members whose names lead out of the folder
    are left out. The folder appears at once and only when everything succeeded.

    Parameters
    ----------
    path
        A zip, tar or compressed tar.
    target
        A folder that does not exist yet, or is empty.
    total_limit
        Bytes that may be written.

    Returns
    -------
    list
        The members that were left out, with reasons.

    Raises
    ------
    ArchiveError
        When the archive is damaged or a bomb, or the disk has too little space; nothing is left behind.
    """
    place = Path(target)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ArchiveError("the folder to unpack into is not empty", where=place.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    with Archive(path, total_limit=total_limit) as archive:
        claimed = sum(member.size for member in archive.members)
        room = shutil.disk_usage(place.parent).free
        if claimed > min(total_limit, room):
            raise ArchiveError(
                "an archive expands beyond all bounds",
                where=archive.path.name,
                found=f"{claimed} bytes",
                expected=f"at most {min(total_limit, room)}",
            )
        refused = list(archive.refused)
        with atomic_path(place) as temporary:
            temporary.mkdir()
            rest = total_limit
            # In the order of the file: going back in a compressed stream means expanding it anew.
            for member in sorted(archive.members, key=lambda m: getattr(m.info, "offset_data", 0)):
                inside = temporary / member.name
                try:
                    inside.parent.mkdir(parents=True, exist_ok=True)
                    handle = os.open(inside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
                except OSError:
                    refused.append(Refused(member.name, "its name collides with another member"))
                    continue
                with os.fdopen(handle, "wb") as sink:
                    for chunk in archive.chunks(member.name, min(rest, MAXIMUM_MEMBER_BYTES)):
                        sink.write(chunk)
                        rest -= len(chunk)
    return refused
