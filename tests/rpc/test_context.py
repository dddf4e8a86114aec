"""The request context: made in one way, whatever the host."""

import re
from pathlib import Path

import treadle.rpc.context
from treadle.rpc.context import RequestContext

ROOT = Path(treadle.rpc.context.__file__).parents[3]


def test_it_knows_what_the_metadata_says() -> None:
    metadata = {"treadle-tenant": "acme", "treadle-actor": "ada"}
    request = RequestContext.from_metadata(metadata, deadline=5.0, trace_id="ab" * 16)
    assert (request.deadline, request.tenant, request.trace_id) == (5.0, "acme", "ab" * 16)
    assert request.metadata == metadata
    assert RequestContext.from_metadata({}).tenant == ""


def test_nothing_but_from_metadata_makes_one() -> None:
    sources = [path for area in ("gateway", "services") for path in (ROOT / area).rglob("*.py")]
    makers = {path.name for path in sources if re.search(r"\bRequestContext\(", path.read_text())}
    assert len(sources) > 100
    assert makers == {"context.py"}  # the empty one, for code outside of any request
