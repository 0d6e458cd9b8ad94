"""Arrays of keys, values and records as Arrow, for pyarrow, polars, duckdb and pandas."""

from fastmap.arrow.convert import Annotations, record_batch
from fastmap.arrow.writer import Writer

__all__ = ["Annotations", "Writer", "record_batch"]
