"""Every choice that a user makes by name. Words only, so that the command line can list them at once."""

from typing import Literal

CandidateSource = Literal["network", "search", "both"]
HalfMapsChoice = Literal["own", "all"]
SplitPart = Literal["train", "validation", "test"]
CertaintyStatistic = Literal["error", "trace", "max", "gap"]
Orientations = Literal["random", "grid"]
RelionDialect = Literal["3.0", "3.1"]
PresetName = Literal["tiny", "small", "paper", "expedited"]
StudyName = Literal["table1", "snr", "symmetry", "real", "all"]
StudyScale = Literal["cpu", "paper"]
RelionAction = Literal["train", "predict", "filter"]
TtaCopies = Literal["1", "4", "8"]
Precision = Literal["auto", "float32", "bfloat16"]
