"""Reports: the result table in the terminal and one self-contained HTML page. Reads finished artefacts only."""

from lightning_dadpo.reports.inputs import ReportInputs
from lightning_dadpo.reports.page import write_report
from lightning_dadpo.reports.table import terminal_table

__all__ = ["ReportInputs", "write_report", "terminal_table"]
