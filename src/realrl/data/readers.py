"""Files of rows: JSON, CSV and Parquet, each read exactly or refused."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from realrl.errors import DataError

# A row with its place in the file; a text in place of a record says why the row cannot be read.
Row = tuple[str, Any]

_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_MARKS = {  # UTF-32's begins with UTF-16's, so it comes first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# How the "surrogateescape" handler marks a byte that is not UTF-8.
_ESCAPED = re.compile("[\udc80-\udcff]")


def is_file_name(name: str) -> bool:
    """Whether the name ends as those of the files that can be read."""
    return _kind(Path(name))[0] in _READERS


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a file, by its suffix. Raises DataError for an unknown kind and for a file that is damaged as a whole."""
    kind, compression = _kind(path)
    if kind not in _READERS or (kind == ".parquet" and compression):
        raise DataError(
            f"{path}: unknown file type {kind + compression!r}; known: {', '.join(_READERS)}; all but Parquet also with "
            f"{', '.join(_COMPRESSIONS)}"
        )
    try:
        yield from _READERS[kind](path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}; get the file again") from error
    except UnicodeError as error:
        raise DataError(f"{path} cannot be read: {error}; save it as UTF-8") from error


def records(table: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """The rows of an Arrow table. A float32 becomes the double that is written alike: 0.1, not 0.10000000149011612."""
    schema = table.schema
    if any(_retyped(field.type, pa.string()) != field.type for field in schema):
        columns = [
            column.cast(_retyped(column.type, pa.string())).cast(_retyped(column.type, pa.float64()))
            if _retyped(column.type, pa.string()) != column.type
            else column
            for column in table.columns
        ]
        return pa.Table.from_arrays(columns, names=schema.names).to_pylist()
    return table.to_pylist()


def _retyped(kind: pa.DataType, leaf: pa.DataType) -> pa.DataType:
    """The type with `leaf` in place of each float32, also within structs and lists."""
    if pa.types.is_float32(kind):
        return leaf
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_retyped(field.type, leaf)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_retyped(kind.value_type, leaf))
    return kind


def _kind(path: Path) -> tuple[str, str]:
    """The suffix that says the format, and that of the compression or ""."""
    suffix = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), suffix) if suffix in _COMPRESSIONS else (suffix, "")


def _open_text(path: Path, newline: str | None = None) -> io.TextIOWrapper:
    """The file as text: UTF-8, or what its byte order mark says. `_not_utf8` finds the bytes that are neither."""
    compression = _COMPRESSIONS.get(path.suffix.lower())

    def opened() -> Any:
        return pa.input_stream(str(path), compression=compression) if compression else path.open("rb")

    with opened() as file:
        start = file.read(4)
    encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8-sig")
    return io.TextIOWrapper(opened(), encoding=encoding, errors="surrogateescape", newline=newline)


def _not_utf8(text: str) -> str:
    """Why the text cannot be used, or ""."""
    found = _ESCAPED.search(text)
    return f"not UTF-8 text (byte 0x{ord(found[0]) - 0xDC00:02x}); save the file as UTF-8" if found else ""


def _read_json(path: Path) -> Iterator[Row]:
    """One object a line, or one document: a list of objects, or an object over several lines."""
    with _open_text(path) as file:
        start = ""
        while not start.strip() and (line := file.readline()):
            start += line
        is_list = start.lstrip().startswith("[")
        if not is_list and _is_json(start):
            yield from _lines(chain(io.StringIO(start), file))
            return
        text = start + file.read()
    try:
        if reason := _not_utf8(text):
            raise ValueError(reason)
        document = _parse_json(text)
    except (ValueError, RecursionError) as error:
        if is_list:
            raise DataError(f"{path} begins as a JSON list and cannot be read as one: {error}") from error
        yield from _lines(io.StringIO(text))
        return
    items = document if isinstance(document, list) else [document]
    yield from ((f"item {number}", item) for number, item in enumerate(items, start=1))


def _lines(lines: Iterable[str]) -> Iterator[Row]:
    return ((f"line {number}", _line(line)) for number, line in enumerate(lines, start=1) if line.strip())


def _line(line: str) -> Any:
    if reason := _not_utf8(line):
        return reason
    try:
        return _parse_json(line)
    # Also a number of thousands of digits, and lists in lists without end.
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({error})"


def _is_json(text: str) -> bool:
    try:
        _parse_json(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values. Python by itself would keep the last of two values of one key."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"the key {_repeated(key for key, _ in pairs)!r} occurs twice")
    return record


def _repeated(names: Iterable[str]) -> str | None:
    """A name that occurs more than once; "" may."""
    return next((name for name, count in Counter(names).items() if count > 1 and name), None)


def _refuse_repeated(path: Path, names: Iterable[str]) -> None:
    if (name := _repeated(names)) is not None:
        raise DataError(f"{path} has two columns named {name!r}; rename one")


def _read_csv(path: Path) -> Iterator[Row]:
    with _open_text(path, newline="") as file:
        reader = csv.reader(file, delimiter="\t" if _kind(path)[0] == ".tsv" else ",", strict=True)
        header: list[str] = []
        try:
            for fields in reader:
                reason = _not_utf8("".join(fields))
                if not fields:
                    continue
                if not header:
                    if reason:
                        raise DataError(f"{path}, line {reader.line_num}: {reason}")
                    _refuse_repeated(path, fields)
                    header = fields
                    continue
                more = fields[len(header) :]
                if any(more):
                    reason = f"{len(fields)} fields where the header has {len(header)}; quote a field that holds a separator"
                fields += [None] * (len(header) - len(fields))  # pyright: ignore[reportArgumentType]
                yield f"line {reader.line_num}", reason or dict(zip(header, fields, strict=False))
        except csv.Error as error:
            raise DataError(
                f'{path}, line {reader.line_num}: not CSV ({error}); quote a field with " and write "" for a quote within '
                "it, or give a JSONL file"
            ) from error


def _read_parquet(path: Path) -> Iterator[Row]:
    number, place = 0, "its footer"
    try:
        table = pq.ParquetFile(path)
        _refuse_repeated(path, table.schema_arrow.names)
        for group in range(table.num_row_groups):
            place = f"row group {group}, after row {number}"
            for batch in table.iter_batches(batch_size=1024, row_groups=[group]):
                for record in records(batch):
                    number += 1
                    yield f"row {number}", record
                place = f"row group {group}, after row {number}"
    # A flipped byte can also make text that is no UTF-8, or a date that is none.
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({place}): {error}; get the file again") from error


_READERS = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
