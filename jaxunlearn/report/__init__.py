"""The run folder: ``results.json``, the checkpoint, a Markdown report and its pictures."""

from jaxunlearn.report.folder import Run, check_out, is_run, read_run, write_run
from jaxunlearn.report.record import RunRecord
from jaxunlearn.report.tables import summary_table

__all__ = ["Run", "RunRecord", "check_out", "is_run", "read_run", "summary_table", "write_run"]
