"""Numbers of several runs as text of a table cell; rows are the runs, keys the columns of runs.csv."""

import math
import re
from collections.abc import Collection

import pandas as pd

from cryoforum.config import preset
from cryoforum.report.wording import percent, thousands
from cryoforum.study.variants import SCALES

WITHOUT_TTA = "single_view_median_rad"  # column: median error without test-time augmentation


def batch_size(settings: str) -> int:
    """Batch size in the settings of a run: the name of a preset, followed by changes."""
    given = re.findall(r"training\.batch_size=(\d+)", settings)
    return int(given[-1]) if given else preset(settings.split()[0]).training.batch_size


def scale_of(rows: pd.DataFrame) -> str:
    """Scale of the study, cpu or paper: the same for all rows."""
    return str(rows["scale"].iloc[0])


def seed_count(rows: pd.DataFrame) -> str:
    """As "3 seeds"."""
    return f"{len(rows)} seed{'s' if len(rows) > 1 else ''}"


def range_of(rows: pd.DataFrame) -> str:
    """Smallest and largest median error over seeds; a dash for one seed."""
    medians = rows["median_rad"]
    return f"{medians.min():.4f} – {medians.max():.4f}" if len(rows) > 1 else "–"


def radians(value: float | None) -> str:
    """A number of the paper; a dash where it is not known."""
    return "–" if value is None else f"{value:.4f}"


def mean_and_deviation(rows: pd.DataFrame, key: str, digits: int = 4) -> str:
    """Mean ± standard deviation over seeds; only the mean of one seed, a dash where no value is known."""
    text = mean(rows, key, digits)
    return f"{text} ± {rows[key].std():.{digits}f}" if text != "–" and len(rows) > 1 else text


def mean(rows: pd.DataFrame, key: str, digits: int = 4) -> str:
    """Mean over seeds; a dash where no value is known."""
    value = rows[key].mean() if key in rows else math.nan
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def share(rows: pd.DataFrame, key: str) -> str:
    """Mean over seeds in per cent; a dash where no value is known."""
    value = rows[key].mean() if key in rows else math.nan
    return percent(value, decimals=1) if math.isfinite(value) else "–"


def span(values: Collection[float]) -> str:
    """The common value, or the smallest to the largest."""
    return " to ".join(thousands(value) for value in sorted({min(values), max(values)}))


def by_scale(records: pd.DataFrame) -> list[pd.DataFrame]:
    """The runs at each scale, the smallest scale first; scales without runs are left out."""
    parts = [records[records["scale"] == scale] for scale in SCALES]
    return [rows for rows in parts if len(rows)]
