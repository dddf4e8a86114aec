"""Suggestions for names that were misspelt: what an error message adds after "unknown NAME"."""

from collections.abc import Iterable
from difflib import get_close_matches

_MAX_LISTED = 10


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the closest known names ("; did you mean 'wind'?").

    Where none is close, the first ten known names ("; known: gusts, wind").
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    if not names:
        return "; there are none"
    return f"; known: {', '.join(names[:_MAX_LISTED])}{', …' if len(names) > _MAX_LISTED else ''}"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The whole message: "unknown metric 'roc_acu'; did you mean 'roc_auc'?"."""
    return f"unknown {kind} {name!r:.80}{did_you_mean(name, known)}"
