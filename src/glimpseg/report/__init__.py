"""Evaluations and comparisons as single HTML files that need nothing else."""

from glimpseg.report.comparison import write_comparison as write_comparison
from glimpseg.report.evaluation import text_table as text_table
from glimpseg.report.evaluation import write_report as write_report
