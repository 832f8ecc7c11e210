"""Options that are words."""

from typing import Any, get_args


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Check that an option is one of its words: a misspelt one would silently mean another.

    Args:
        name: Of the argument, for the error.
        value: What was given.
        choices: A ``typing.Literal`` of the words.

    Raises:
        ValueError: If it is none of them.
    """
    if value not in get_args(choices):
        known = ", ".join(map(repr, get_args(choices)))
        raise ValueError(f"{name}={value!r} is unknown: use one of {known}.")
