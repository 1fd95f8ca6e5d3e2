"""Reports: one HTML page for a run, which needs no other file, and the pictures and charts in it."""

from dqcore.report.page import Gallery
from dqcore.report.pictures import error_map, grain_overlay, side_by_side
from dqcore.report.run import report_run

__all__ = ["Gallery", "error_map", "grain_overlay", "report_run", "side_by_side"]
