"""Options of plugins: an unknown option is an error that names it."""

from collections.abc import Iterable, Mapping

from treadle.core.errors import InvalidInput, Violation


def check_options(whose: str, known: Iterable[str], given: Mapping[str, str]) -> None:
    """Raises InvalidInput, naming each of `given` that is not among `known`."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InvalidInput(
            f"{whose} has no option {', '.join(map(repr, unknown))}; it has: {', '.join(sorted(known)) or 'none'}",
            violations=[Violation(f"options.{option}", "unknown option") for option in unknown],
        )
