"""Atomic writes and content hashes: nothing half-written ever stands at a final path."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medalign3d.errors import InputError, MedAlignError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

CHUNK_BYTES = 1 << 20


def remove(path: Path) -> None:
    """Remove a file, link or folder if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


@contextlib.contextmanager
def _explain_full_disk(path: Path) -> Iterator[None]:
    """Turn ``ENOSPC`` (or an exceeded quota) into an error that names the place and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MedAlignError(
                "the disk is full",
                where=path,
                found=os.strerror(error.errno),
                expected="free space for this output",
                remedy="free some space (`dvc gc -w` drops unused cached outputs) and run `dvc repro` again; "
                "nothing was left half-written at the path above",
            ) from error
        raise


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on failure it is removed.

    Works for a file and for a folder (create either at the yielded path). The temporary name keeps the suffix, so that
    writers which look at it (``.nii.gz``, ``.png``) behave as for the final name.

    Raises
    ------
    MedAlignError
        When the disk is full.
    """
    final = Path(path)
    with _explain_full_disk(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=".writing-", dir=final.parent))
        temporary = holder / final.name
        try:
            yield temporary
            if not temporary.exists():
                raise MedAlignError("a writer produced nothing", where=final)
            if temporary.is_dir():
                # A folder cannot be replaced in one system call: move the old one away first.
                old = holder / ".old"
                if final.exists() or final.is_symlink():
                    os.replace(final, old)
                os.replace(temporary, final)
            else:
                if final.is_dir() and not final.is_symlink():
                    shutil.rmtree(final)
                os.replace(temporary, final)
        finally:
            remove(holder)


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``source`` stand at ``target`` too: as a hard link where the file system can, else as a copy. Atomic.

    Only for files that are replaced and never written in place.
    """
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content``, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as readable JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises
    ------
    InputError
        When the file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("a file is missing", where=path, remedy="run `dvc repro` to make it") from error
    except json.JSONDecodeError as error:
        raise InputError(
            "a JSON file is damaged", where=f"{path}, line {error.lineno}", found=error.msg, remedy="make it again"
        ) from error


def write_csv(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]], columns: list[str]) -> None:
    """Write ``rows`` as a CSV file with exactly ``columns``, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: str | os.PathLike[str], table: pd.DataFrame, metadata: Mapping[str, str] | None = None) -> None:
    """Write ``table`` as parquet, atomically and byte-reproducibly, with ``metadata`` in the file's key-value metadata.

    ``metadata`` carries at least ``simulated: "true" | "false"`` for tables that describe people.
    """
    import pyarrow as pa

    write_arrow(path, pa.Table.from_pandas(table, preserve_index=False), metadata)


def write_arrow(path: str | os.PathLike[str], table: pa.Table, metadata: Mapping[str, str] | None = None) -> None:
    """Write an Arrow table as :func:`write_parquet` does, with exactly its types."""
    import pyarrow.parquet as pq

    combined = {**(table.schema.metadata or {}), **{k.encode(): v.encode() for k, v in (metadata or {}).items()}}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(combined), temporary, compression="zstd")


def read_parquet(path: str | os.PathLike[str], columns: list[str] | None = None) -> pd.DataFrame:
    """Read a parquet file into pandas; its key-value metadata stand in ``DataFrame.attrs`` (text to text).

    Dictionary-encoded text is read as plain text, and maps as Python dictionaries.

    Raises
    ------
    InputError
        When the file is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=columns)
    except FileNotFoundError as error:
        raise InputError("a table is missing", where=path, remedy="run `dvc repro` to make it") from error
    except pa.ArrowInvalid as error:
        raise InputError(
            "a parquet table is damaged",
            where=path,
            found=str(error).splitlines()[0],
            remedy="delete it and run `dvc repro` again",
        ) from error
    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            plain = pa.field(field.name, field.type.value_type)
            table = table.set_column(number, plain, table.column(number).cast(plain.type))
    frame = table.to_pandas(maps_as_pydicts="strict")
    metadata = table.schema.metadata or {}
    frame.attrs = {k.decode(): v.decode() for k, v in metadata.items() if k not in (b"pandas", b"ARROW:schema")}
    return frame


def sha256_bytes(content: bytes) -> str:
    """SHA-256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value in canonical form (sorted keys, no blanks)."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode())
