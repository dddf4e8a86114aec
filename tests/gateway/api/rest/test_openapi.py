"""The document of REST and what is served."""

import re

from starlette.routing import Route

from treadle.gateway.api.rest.app import Rest
from treadle.gateway.api.rest.openapi import DOCUMENT


def test_the_document_and_the_routes_are_the_same() -> None:
    routes = [r for r in Rest(None, None, 1).routes() if isinstance(r, Route)]  # type: ignore[arg-type]
    pages = {"/", "/docs", "/openapi.json"}
    served = {(r.path, m) for r in routes for m in (r.methods or ()) if m != "HEAD" and r.path not in pages}
    said = {(path, method.upper()) for path, operations in DOCUMENT["paths"].items() for method in operations}
    assert served == said
    named = set(re.findall(r"#/components/schemas/(\w+)", str(DOCUMENT)))
    assert named == DOCUMENT["components"]["schemas"].keys()
