"""The tests of this project run where it is installed, not with those of Treadle."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("treadle_centroid") else ["tests"]
