"""Reports: one self-contained page, and one picture, that show what the policies of a run directory reached."""

from agents.report.overview import save_overview
from agents.report.page import write_report

__all__ = ["save_overview", "write_report"]
