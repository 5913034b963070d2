"""What a run leaves to look at: metrics on disk, progress on the terminal, and one page that shows both."""

from vlm_jax.report.artifacts import Gallery, Matrix, Table
from vlm_jax.report.format import duration
from vlm_jax.report.html import write_page, write_report
from vlm_jax.report.progress import Progress
from vlm_jax.report.writers import (
    JsonlWriter,
    TensorBoardWriter,
    WandbWriter,
    Writers,
    or_told,
    read_metrics,
    replace_file,
)

__all__ = [
    "Gallery",
    "JsonlWriter",
    "Matrix",
    "Progress",
    "Table",
    "TensorBoardWriter",
    "WandbWriter",
    "Writers",
    "duration",
    "or_told",
    "read_metrics",
    "replace_file",
    "write_page",
    "write_report",
]
