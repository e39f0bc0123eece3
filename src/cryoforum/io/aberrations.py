"""Aberrations that a particle file describes, and that nothing here computes with."""

import logging

import numpy as np
import pandas as pd

from cryoforum.dataset.particle_table import ParticleTable
from cryoforum.io.cryosparc.reading import lost_in_table

logger = logging.getLogger(__name__)

# Numbers that mean none; a list in brackets stands for coefficients.
_NEUTRAL = {
    "rlnBeamTiltX": 0.0,
    "rlnBeamTiltY": 0.0,
    "rlnMagMat00": 1.0,
    "rlnMagMat01": 0.0,
    "rlnMagMat10": 0.0,
    "rlnMagMat11": 1.0,
    "rlnOddZernike": 0.0,
    "rlnEvenZernike": 0.0,
}


def unused_aberrations(table: ParticleTable) -> tuple[str, ...]:
    """Columns and cryoSPARC's fields of beam tilt, magnification and higher aberrations that are not none."""
    frames = [table.particles] if table.optics is None else [table.optics, table.particles]
    columns = (
        column
        for column, neutral in _NEUTRAL.items()
        if any(column in frame and _differs(frame[column], neutral) for frame in frames)
    )
    return (*columns, *lost_in_table(table))


def warn_of_unused_aberrations(table: ParticleTable) -> None:
    """Say which aberrations of the file are not used."""
    found = unused_aberrations(table)
    if found:
        logger.warning(
            f"{table.path}: not used, as the CTF is computed without them: {', '.join(found)}; this costs "
            "signal at high resolution"
        )


def _differs(texts: pd.Series, neutral: float) -> bool:
    """Whether a value, or one of a list as in ``[0,0.1]``, is another number."""
    parts = texts.unique() if len(texts) else np.array([], dtype=str)
    numbers = pd.Series([part for text in parts for part in str(text).strip("[]").split(",")], dtype=str)
    values = pd.to_numeric(numbers, errors="coerce").to_numpy(dtype=np.float64)
    return bool((np.abs(values - neutral) > 1e-9).any())
