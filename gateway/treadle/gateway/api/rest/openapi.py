"""The OpenAPI document of REST, and the page that shows it."""

import html
from typing import Any

_ROWS = {"type": "array", "items": {}, "description": "One item a row; null is a null."}
_COLUMNS = {"type": "object", "additionalProperties": _ROWS}
_STRINGS = {"type": "array", "items": {"type": "string"}}
_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array", "items": {}, "description": "Nested or flat."},
        "parameters": {"type": "object"},
    },
}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _operation(
    summary: str, answer: dict[str, Any], error: str, *, body: str = "", names: tuple[str, ...] = ()
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": _json(answer, "The answer"), "default": _json(_ref(error), "What went wrong")},
    }
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if body:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    return operation


def _of_model(summary: str, answer: str, suffix: str, method: str, body: str = "") -> dict[str, Any]:
    base, versioned = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    return {
        f"{base}{suffix}": {method: _operation(summary, _ref(answer), "OipError", body=body, names=("model",))},
        f"{versioned}{suffix}": {
            method: _operation(summary, _ref(answer), "OipError", body=body, names=("model", "version"))
        },
    }


_PREDICT = _operation(
    "Predicts N rows, by entity keys and context or by tensors",
    _ref("Prediction"),
    "Error",
    body="Predict",
    names=("name",),
)
_PREDICT["parameters"] += [
    {
        "name": "treadle-pin-version",
        "in": "header",
        "description": "Ask this version of the deployment's model.",
        "schema": {"type": "integer", "minimum": 1},
    },
    {
        "name": "treadle-timeout-seconds",
        "in": "header",
        "description": "The deadline, at every hop; without it the deployment's own timeout applies.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    {"name": "traceparent", "in": "header", "description": "W3C trace context.", "schema": {"type": "string"}},
]

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "Treadle gateway",
        "version": "1",
        "description": "Predictions from every deployed model. Answers hold null where a number is NaN or infinite.",
    },
    "paths": {
        "/healthz": {"get": _operation("Whether the gateway answers", _ref("Status"), "Error")},
        "/v1/deployments/{name}:predict": {"post": _PREDICT},
        "/v2": {"get": _operation("The inference server", _ref("OipServer"), "OipError")},
        "/v2/health/live": {"get": _operation("Whether the gateway lives", _ref("OipLive"), "OipError")},
        "/v2/health/ready": {"get": _operation("Whether inference is ready", _ref("OipReady"), "OipError")},
        **_of_model("Inputs and outputs of a model or deployment", "OipModel", "", "get"),
        **_of_model("Whether a model or deployment is ready", "OipModelReady", "/ready", "get"),
        **_of_model("Infers by tensors", "OipInferResponse", "/infer", "post", body="OipInferRequest"),
    },
    "components": {
        "schemas": {
            "Predict": {
                "type": "object",
                "additionalProperties": False,
                "description": "Either entities (with context), or tensors. All columns have the same number of rows.",
                "properties": {
                    "entities": {**_COLUMNS, "description": "Entity keys by name."},
                    "context": {**_COLUMNS, "description": "Values known only now, by name."},
                    "tensors": {**_COLUMNS, "description": "The model's inputs by name, rows nested."},
                    "outputs": {**_STRINGS, "description": "Outputs wanted; without it all."},
                    "request_id": {"type": "string"},
                    "sticky_key": {"type": "string", "description": "Equal keys go to the same version."},
                    "return_features": {"type": "boolean"},
                    "now_micros": {"type": "integer", "description": "The moment that ages are counted from."},
                },
            },
            "Prediction": {
                "type": "object",
                "required": [
                    "request_id", "outputs", "model", "prediction_ids", "served_by", "degraded_reason", "trace_id",
                ],
                "properties": {
                    "request_id": {"type": "string"},
                    "outputs": _COLUMNS,
                    "model": {
                        "type": "object",
                        "required": ["name", "version"],
                        "properties": {"name": {"type": "string"}, "version": {"type": "integer", "minimum": 0}},
                    },
                    "prediction_ids": {"type": "array", "items": {"type": "string", "format": "uuid"}},
                    "provenance": _ref("Provenance"),
                    "features": {
                        "type": "object",
                        "description": "With return_features: what was looked up, by name.",
                        "additionalProperties": _ref("Feature"),
                    },
                    "served_by": {"type": "string", "description": "traffic, pinned or fallback:NAME."},
                    "degraded_reason": {"type": "string", "description": "Empty when all went as meant."},
                    "trace_id": {"type": "string"},
                },
            },
            "Provenance": {
                "type": "object",
                "description": "The features behind the answer, in short; absent where nothing was looked up.",
                "required": ["oldest_age_seconds", "stale", "missing", "null"],
                "properties": {
                    "oldest_age_seconds": {"type": ["number", "null"]},
                    "stale": _STRINGS,
                    "missing": _STRINGS,
                    "null": _STRINGS,
                },
            },
            "Feature": {
                "type": "object",
                "required": ["values", "statuses", "ages_seconds"],
                "properties": {
                    "values": _ROWS,
                    "statuses": {
                        "type": "array",
                        "items": {"enum": ["PRESENT", "NULL", "MISSING", "STALE", "UNSPECIFIED"]},
                    },
                    "ages_seconds": {"type": "array", "items": {"type": ["number", "null"]}},
                },
            },
            "Error": {
                "type": "object",
                "required": ["error", "code", "violations"],
                "properties": {
                    "error": {"type": "string"},
                    "code": {"type": "string", "description": "Name of the gRPC code."},
                    "violations": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["field", "description"],
                            "properties": {"field": {"type": "string"}, "description": {"type": "string"}},
                        },
                    },
                },
            },
            "Status": {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}},
            "OipError": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
            "OipLive": {"type": "object", "required": ["live"], "properties": {"live": {"type": "boolean"}}},
            "OipReady": {"type": "object", "required": ["ready"], "properties": {"ready": {"type": "boolean"}}},
            "OipServer": {
                "type": "object",
                "required": ["name", "version", "extensions"],
                "properties": {"name": {"type": "string"}, "version": {"type": "string"}, "extensions": _STRINGS},
            },
            "OipModelReady": {
                "type": "object",
                "required": ["name", "ready"],
                "properties": {"name": {"type": "string"}, "ready": {"type": "boolean"}},
            },
            "OipModel": {
                "type": "object",
                "required": ["name", "versions", "platform", "inputs", "outputs"],
                "properties": {
                    "name": {"type": "string"},
                    "versions": _STRINGS,
                    "platform": {"type": "string"},
                    "inputs": {"type": "array", "items": _ref("OipTensor")},
                    "outputs": {"type": "array", "items": _ref("OipTensor")},
                },
            },
            "OipTensor": _TENSOR,
            "OipInferRequest": {
                "type": "object",
                "required": ["inputs"],
                "additionalProperties": False,
                "properties": {
                    "id": {"type": "string"},
                    "parameters": {"type": "object"},
                    "inputs": {"type": "array", "items": _ref("OipTensor")},
                    "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
                },
            },
            "OipInferResponse": {
                "type": "object",
                "required": ["model_name", "model_version", "id", "outputs"],
                "properties": {
                    "model_name": {"type": "string"},
                    "model_version": {"type": "string"},
                    "id": {"type": "string"},
                    "parameters": {"type": "object"},
                    "outputs": {"type": "array", "items": _ref("OipTensor")},
                },
            },
        }
    },
}  # fmt: skip


def page() -> str:
    """A page that needs nothing from elsewhere."""
    rows = [
        f"<tr><td><code>{method.upper()}</code></td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(operation['summary'])}</td></tr>"
        for path, operations in DOCUMENT["paths"].items()
        for method, operation in operations.items()
    ]
    return _PAGE.format(
        title=html.escape(DOCUMENT["info"]["title"]),
        description=html.escape(DOCUMENT["info"]["description"]),
        rows="\n".join(rows),
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}}
td{{padding:.3rem 1rem .3rem 0;vertical-align:top}}
pre{{overflow-x:auto;padding:1rem;border:1px solid #8888}}
</style></head>
<body><h1>{title}</h1><p>{description} The whole contract: <a href="/openapi.json">openapi.json</a>.</p>
<table>{rows}</table>
<h2>A prediction</h2>
<pre>curl -s localhost:7710/v1/deployments/NAME:predict \\
  -H 'content-type: application/json' \\
  -d '{{"entities": {{"tail_number": ["N14228"]}}, "return_features": true}}'</pre>
</body></html>
"""
