"""Reads and writes Parquet files with pyarrow, which the extra `parquet` installs. It is imported when it is needed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.runtime.files import check_file

_ROWS_PER_GROUP = 10_000


def require_pyarrow(what: str) -> None:
    """Raise UserError if pyarrow is not installed. `what` names in the message what needs it."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{what} needs pyarrow, which is not installed. Run pip install 'efficientnet_tf[parquet]'.")


def check_paths(output: str, paths: Iterable[str], other: str) -> None:
    """Raise UserError if a file cannot hold the names of some files, which need not be UTF-8.

    Args:
        output: The Parquet file to write.
        paths: The file names.
        other: A kind of file that can hold them, for the message.
    """
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"output={escape(output)} has file names as text, but {escape(path)} is not UTF-8. Rename it, or use "
                f"--output={other}."
            ) from None


def open_parquet(path: str) -> Any:
    """Open a local file and return its `pyarrow.parquet.ParquetFile`. Its rows are not read yet.

    Raises:
        UserError: If it cannot be read or is no Parquet file.
    """
    require_pyarrow(escape(path))
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_file(path)
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{escape(path)} is no Parquet file, or is damaged: {_explain(error)}") from None


def read_column(file: Any, name: str, path: str) -> Any:
    """Return a column as a `pyarrow.Array`.

    Args:
        file: What `open_parquet` returns.
        name: Name of the column, which must exist.
        path: Path of the file, for messages.

    Raises:
        UserError: If the file is damaged.
    """
    import pyarrow as pa

    try:
        return file.read(columns=[name]).column(name).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{escape(path)}, column {escape(name)}: the file is damaged: {_explain(error)}") from None


def _explain(error):
    return escape(shorten(" ".join(str(error).split()), 300))


class ParquetWriter:
    """Writes rows to a file. Use it as a context manager, whose end completes the file.

    Args:
        file: A file that is open for writing bytes.
        columns: Name and type of each column: "text", "number", or "numbers" for a list of float32.
        notes: Texts by name that are stored with the columns.
    """

    def __init__(self, file: Any, columns: dict[str, str], notes: dict[str, str] | None = None):
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {"text": pa.string(), "number": pa.float64(), "numbers": pa.list_(pa.float32())}
        schema = pa.schema([(name, types[kind]) for name, kind in columns.items()], metadata=notes)
        self._schema, self._writer = schema, pq.ParquetWriter(file, schema)
        self._rows: list[Sequence[Any]] = []

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def write(self, cells: Sequence[Any]) -> None:
        """Add a row. None is an empty cell."""
        self._rows.append(cells)
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def _flush(self):
        import pyarrow as pa

        columns = zip(*self._rows, strict=True) if self._rows else [[] for _ in self._schema.names]
        arrays = [pa.array(list(cells), field.type) for cells, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows.clear()
