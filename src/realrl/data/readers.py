"""Read files of rows (JSON, CSV, Parquet) without changing any value; files that cannot be read so are errors."""

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

# (place in the file, record). If the row cannot be read, a string with the reason replaces the record.
Row = tuple[str, Any]

_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_MARKS = {  # UTF-32 first, because its mark begins with the mark of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# The "surrogateescape" handler turns bytes that are not UTF-8 into these characters.
_ESCAPED = re.compile("[\udc80-\udcff]")


def is_file_name(name: str) -> bool:
    """Whether the name has the suffix of a file type that can be read."""
    return _kind(Path(name))[0] in _READERS


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a file; its suffix decides how it is read. Raises DataError for an unknown file type or a damaged file."""
    kind, compression = _kind(path)
    if kind not in _READERS or (kind == ".parquet" and compression):
        raise DataError(
            f"{path}: unknown file type {kind + compression!r}; known: {', '.join(_READERS)}; all except Parquet may also be "
            f"compressed ({', '.join(_COMPRESSIONS)})"
        )
    try:
        yield from _READERS[kind](path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}; get the file again") from error
    except UnicodeError as error:
        raise DataError(f"{path} cannot be read: {error}; save it as UTF-8") from error


def records(table: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """The rows of an Arrow table. A float32 becomes the double with the same short text: 0.1, not 0.10000000149011612."""
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
    """The type with each float32 replaced by `leaf`, also inside structs and lists."""
    if pa.types.is_float32(kind):
        return leaf
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_retyped(field.type, leaf)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_retyped(kind.value_type, leaf))
    return kind


def _kind(path: Path) -> tuple[str, str]:
    """The suffix of the format, and the suffix of the compression or ""."""
    suffix = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), suffix) if suffix in _COMPRESSIONS else (suffix, "")


def _open_text(path: Path, newline: str | None = None) -> io.TextIOWrapper:
    """The file as text, in UTF-8 or the encoding of its byte order mark. `_not_utf8` finds bytes that do not fit."""
    compression = _COMPRESSIONS.get(path.suffix.lower())

    def opened() -> Any:
        return pa.input_stream(str(path), compression=compression) if compression else path.open("rb")

    with opened() as file:
        start = file.read(4)
    encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8-sig")
    return io.TextIOWrapper(opened(), encoding=encoding, errors="surrogateescape", newline=newline)


def _not_utf8(text: str) -> str:
    """The reason why the text cannot be used, or ""."""
    found = _ESCAPED.search(text)
    return f"not UTF-8 text (byte 0x{ord(found[0]) - 0xDC00:02x}); save the file as UTF-8" if found else ""


def _read_json(path: Path) -> Iterator[Row]:
    """Read one object per line, or one document: a list of objects, or a single object on several lines."""
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
            raise DataError(f"{path} begins like a JSON list but cannot be read as one: {error}; correct the file") from error
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
    # Also raised for a number with thousands of digits and for very deep nesting.
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
    """Build an object; raise ValueError if a key occurs twice, where Python would keep only the last value."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"the key {_repeated(key for key, _ in pairs)!r} occurs twice")
    return record


def _repeated(names: Iterable[str]) -> str | None:
    """A name that occurs more than once, or None; "" may repeat."""
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
                    reason = f"{len(fields)} fields, but the header has {len(header)}; quote fields that contain a separator"
                fields += [None] * (len(header) - len(fields))  # pyright: ignore[reportArgumentType]
                yield f"line {reader.line_num}", reason or dict(zip(header, fields, strict=False))
        except csv.Error as error:
            raise DataError(
                f'{path}, line {reader.line_num}: not CSV ({error}); quote fields with ", write a quote inside a field as "", '
                "or give a JSONL file"
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
    # A damaged byte can also give invalid UTF-8 or an invalid date.
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
