"""The benchmark's modules lie beside the source roots: they are found from the repository's folder."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
