"""HTML reports of evaluations and comparisons: single files that need nothing else."""

from glimpseg.report.comparison import comparison_text as comparison_text
from glimpseg.report.evaluation import text_table as text_table
from glimpseg.report.writing import write_html as write_html
