"""What is said of written poses that cannot be right."""

import numpy as np
import pytest

from cryoforum.commands.pose_files import summary_of
from cryoforum.dataset.columns import CRAMER_RAO_BOUND, EXPECTED_ERROR, LOG_LIKELIHOOD_GAIN, SIGNAL_SCALE


def columns(expected_deg: float, bound_deg: float) -> dict[str, np.ndarray]:
    values = {EXPECTED_ERROR: expected_deg, CRAMER_RAO_BOUND: bound_deg, LOG_LIKELIHOOD_GAIN: 100.0}
    return {name: np.full(30, value) for name, value in (values | {SIGNAL_SCALE: 1.0}).items()}


@pytest.mark.parametrize(("expected_deg", "is_said"), [(0.6, False), (2.4, False), (44.0, True)])
def test_errors_far_above_their_bound_are_told_with_their_likeliest_cause(
    expected_deg: float, is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    summary = summary_of(columns(expected_deg, bound_deg=0.5))
    assert summary.expected_error_deg == pytest.approx(expected_deg) and summary.bound_deg == 0.5
    assert ("the likeliest cause is a wrong pixel size of the reference" in caplog.text) == is_said
