"""Names of columns: RELION's, and our own, which begin with `OWN`."""

IMAGE_NAME, OPTICS_GROUP, HALF_SET = "rlnImageName", "rlnOpticsGroup", "rlnRandomSubset"
ANGLE_COLUMNS = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGIN_COLUMNS = ("rlnOriginXAngst", "rlnOriginYAngst")
ORIGIN_PIXEL_COLUMNS = ("rlnOriginX", "rlnOriginY")  # of RELION 3.0
DEFOCUS_COLUMNS = ("rlnDefocusU", "rlnDefocusV")
CTF_COLUMNS = (  # in the order of the fields of `CtfParameters`
    *DEFOCUS_COLUMNS,
    "rlnDefocusAngle",
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
)
OPTICS_OF_READING = (*CTF_COLUMNS[3:], "rlnImagePixelSize")  # which RELION 3.1 keeps in data_optics
PHASE_SHIFT = "rlnPhaseShift"
MICROGRAPH_NAME, CLASS_NUMBER = "rlnMicrographName", "rlnClassNumber"
JUNK_KIND = "simulatedJunkKind"  # of the truth about simulated particles
FIGURE_OF_MERIT, MODE_PROBABILITY = "rlnParticleFigureOfMerit", "rlnMaxValueProbDistribution"

OWN = "cryoforum"
LAMBDA_MAX, TRACE = "cryoforumLambdaMax", "cryoforumTrace"
EXPECTED_ERROR = "cryoforumExpectedErrorDeg"
CRAMER_RAO_BOUND = "cryoforumBoundDeg"
ORIGIN_ERROR = "cryoforumOriginErrorAngst"
LOG_LIKELIHOOD_GAIN = "cryoforumLogLikelihoodGain"
SIGNAL_SCALE = "cryoforumSignalScale"
DEFOCUS_CHANGE = "cryoforumDefocusChange"
CLASS_PROBABILITY = "cryoforumClassProbability"
ERROR, SHIFT_ERROR = "cryoforumErrorDeg", "cryoforumShiftErrorAngst"  # against a known truth; in no file
REFERENCE_HALF, MODEL_HALF = "cryoforumReferenceHalf", "cryoforumModelHalf"


def concentration_column(row: int, column: int) -> str:
    """Name of an element of the posterior's matrix A, both indices from 0, as cryoforumA11."""
    return f"{OWN}A{row + 1}{column + 1}"
