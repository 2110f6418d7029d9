"""What became of a job: its figures, and the page that shows them."""

from __future__ import annotations

from producer.report.build import build_report
from producer.report.model import Report
from producer.report.page import render_page

__all__ = ["Report", "build_report", "render_page"]
