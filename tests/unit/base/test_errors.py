"""Every error has an exit code, and bad input has 2."""

from afterfit import errors

BAD_INPUT = {"ConfigError", "DataError", "NetworkError"}


def test_bad_input_ends_with_2_and_everything_else_with_1():
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(classes) >= 10
    for one in classes:
        assert issubclass(one, errors.AfterfitError)
        assert one.exit_code == (2 if one.__name__ in BAD_INPUT else 1), one
        assert issubclass(one, ValueError) == (one.__name__ in BAD_INPUT), one
