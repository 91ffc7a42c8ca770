"""Result tables as CSV: the rows of a case replace those of its last run, so single cases can be measured again."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from recognizers.errors import FileError
from recognizers.files import read_text, write_text

Row = dict[str, str | int | float | None]


def rounded(row: Mapping[str, str | int | float | None]) -> Row:
    """The same row with floats of six significant digits, as many as any clock here is good for."""
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table, none where the file does not exist.

    Raises:
        FileError: unreadable, or a row has more or fewer cells than the header.
    """
    if not path.exists():
        return []
    reader = csv.DictReader(io.StringIO(read_text(path)))
    rows = list(reader)
    if any(None in row or None in row.values() for row in rows):
        raise FileError(f"{path} is no table: a row has more or fewer cells than the header; move the file away")
    return rows


def replace_rows(path: Path, key: Sequence[str], rows: Sequence[Row]) -> None:
    """Write ``rows`` in place of the table's rows with the same values in the ``key`` columns, atomically.

    New cases go to the end. Columns that only old rows have stay, to the right of the new ones.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    old = read_rows(path)
    columns += [column for column in (old[0] if old else ()) if column not in columns]
    table: dict[tuple[str, ...], list[Mapping[str, object]]] = {}
    for name, group in (*_groups(old, key).items(), *_groups(rows, key).items()):
        table[name] = group  # a case keeps its place in the table
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for group in table.values() for row in group)
    write_text(path, text.getvalue())


def _groups(
    rows: Iterable[Mapping[str, object]], key: Sequence[str]
) -> dict[tuple[str, ...], list[Mapping[str, object]]]:
    groups: dict[tuple[str, ...], list[Mapping[str, object]]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row.get(column, "")) for column in key), []).append(row)
    return groups
