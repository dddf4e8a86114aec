"""Suggestions for error messages about unknown names: the closest known names."""

from collections.abc import Iterable
from difflib import get_close_matches

_LISTED = 10


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The closest known names, or the first few of all: "; did you mean 'wind'?", "; known: gusts, wind"."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    if not names:
        return "; there are none"
    return f"; known: {', '.join(names[:_LISTED])}{', …' if len(names) > _LISTED else ''}"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The whole message: "unknown metric 'roc_acu'; did you mean 'roc_auc'?"."""
    return f"unknown {kind} {name!r:.80}{did_you_mean(name, known)}"
