"""The run-time type checker of the tests: an int passes for a float, as it does for Python's own type checkers."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
