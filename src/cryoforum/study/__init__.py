"""The paper's tables and figures: variants run over several seeds, collected beside the paper's numbers."""

from cryoforum.study.pages import write_pages
from cryoforum.study.runs import read_records, run_all
from cryoforum.study.variants import STUDIES, planned_runs, runs_on

__all__ = [
    "STUDIES",
    "planned_runs",
    "read_records",
    "run_all",
    "runs_on",
    "write_pages",
]
