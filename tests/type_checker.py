"""The checker of annotations in the test run; where a float is expected an int will do, as everywhere."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
