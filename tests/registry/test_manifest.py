"""What a manifest must fulfil: each rule by a manifest that breaks it, with the field that the error names."""

from typing import TYPE_CHECKING, Any

import pytest

from treadle.core.errors import InvalidInput
from treadle.v1 import registry_pb2 as pb
from treadle.v1 import types_pb2

if TYPE_CHECKING:
    from tests.registry.conftest import Registry

FP32, FP64, INT64 = types_pb2.DATA_TYPE_FP32, types_pb2.DATA_TYPE_FP64, types_pb2.DATA_TYPE_INT64
OUT = types_pb2.TensorSpec(name="y", dtype=FP64, shape=[-1])
INPUTS = "manifest.signature.inputs"


def tensor(**changes: Any) -> types_pb2.TensorSpec:
    """An FP32 tensor "x" of rows of three."""
    fields: dict[str, Any] = {"name": "x", "dtype": FP32, "shape": [-1, 3]}
    return types_pb2.TensorSpec(**(fields | changes))


def rows(name: str, count: int, width: int | None = 3, **changes: Any) -> types_pb2.Column:
    """Zeros: `count` rows of `width` values (None: scalars)."""
    shape = [] if width is None else [width]
    values = types_pb2.Doubles(values=[0.0] * count * (width or 1))
    fields: dict[str, Any] = {"name": name, "dtype": FP32, "row_shape": shape, "doubles": values}
    return types_pb2.Column(**(fields | changes))


def signature(*inputs: types_pb2.TensorSpec, outputs: list[types_pb2.TensorSpec] | None = None) -> types_pb2.Signature:
    return types_pb2.Signature(inputs=inputs, outputs=[OUT] if outputs is None else outputs)


def file(path: str, sha256: str = "0" * 64, size_bytes: int = 1) -> pb.ModelFile:
    return pb.ModelFile(path=path, sha256=sha256, size_bytes=size_bytes)


TENSORS = [
    (signature(), INPUTS),
    (signature(tensor(), outputs=[]), "manifest.signature.outputs"),
    (signature(tensor(), tensor()), f"{INPUTS}[1].name"),
    (signature(tensor(name="")), f"{INPUTS}[0].name"),
    (signature(tensor(dtype=0)), f"{INPUTS}[0].dtype"),
    (signature(tensor(dtype=99)), f"{INPUTS}[0].dtype"),
    (signature(tensor(shape=[])), f"{INPUTS}[0].shape"),
    (signature(tensor(shape=[1, 3])), f"{INPUTS}[0].shape"),
    (signature(tensor(shape=[-1, 0])), f"{INPUTS}[0].shape"),
    (signature(tensor(shape=[-1, -2])), f"{INPUTS}[0].shape"),
    (signature(tensor(columns=["a", "b"])), f"{INPUTS}[0].columns"),
    (signature(tensor(columns=["a", "b", "a"])), f"{INPUTS}[0].columns"),
    (signature(tensor(shape=[-1], columns=["a"])), f"{INPUTS}[0].columns"),
    (signature(tensor(shape=[-1, 2, 3], columns=["a", "b", "c"])), f"{INPUTS}[0].columns"),
    (signature(tensor(units=["m", "s"])), f"{INPUTS}[0].units"),
    (signature(tensor(dtype=INT64, allow_nan=True)), f"{INPUTS}[0].allow_nan"),
]

GOOD = signature(tensor())
SAMPLES: list[tuple[dict[str, Any], str]] = [
    ({"sample_inputs": [rows("z", 1)]}, "manifest.sample_inputs"),
    ({"sample_inputs": [rows("x", 1), rows("x", 1)]}, "manifest.sample_inputs[x]"),
    ({"sample_inputs": [rows("x", 1), rows("z", 1)]}, "manifest.sample_inputs[z]"),
    ({"sample_inputs": [rows("x", 0)]}, "manifest.sample_inputs"),
    ({"sample_inputs": [rows("x", 1, dtype=FP64)]}, "manifest.sample_inputs[x]"),
    ({"sample_inputs": [rows("x", 1, width=4)]}, "manifest.sample_inputs[x]"),
    ({"sample_inputs": [rows("x", 1, width=None)]}, "manifest.sample_inputs[x]"),
    ({"sample_inputs": [types_pb2.Column(name="x")]}, "manifest.sample_inputs[x]"),
    ({"sample_outputs": [rows("y", 1, width=None, dtype=FP64)]}, "manifest.sample_outputs"),
    (
        {"sample_inputs": [rows("x", 2)], "sample_outputs": [rows("y", 1, width=None, dtype=FP64)]},
        "manifest.sample_inputs",
    ),
    ({"sample_inputs": [rows("x", 1)], "sample_outputs": [rows("z", 1)]}, "manifest.sample_outputs[z]"),
]

BAD_PATHS = [
    "",
    "/etc/passwd",
    "..",
    "../a",
    "a/../b",
    "a/..",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "a\\b",
    "..\\a",
    "C:a",
    "a\0b",
    "a\nb",
    "x" * 513,
    "x" * 256,
    "é" * 128,
]
FILES = [
    *(([file(path)], "manifest.files[0].path") for path in BAD_PATHS),
    ([file("a"), file("a")], "manifest.files"),
    ([file("a/b"), file("a")], "manifest.files[0].path"),
    ([file("a", sha256="0" * 63)], "manifest.files[0].sha256"),
    ([file("a", sha256="../" * 21 + "a")], "manifest.files[0].sha256"),
    ([file("a", size_bytes=-1)], "manifest.files[0].size_bytes"),
]

KEPT: dict[str, Any] = {"backend": "onnx", "folder": "compiled", "relative_tolerance": 1e-5, "absolute_tolerance": 1e-6}
COMPILED: list[tuple[dict[str, Any], str]] = [
    *(({"folder": path}, "manifest.compiled.folder") for path in ["/a", "../up", "a//b", "elsewhere", "comp"]),
    ({"folder": "compiled/model.onnx"}, "manifest.compiled.folder"),
    ({"backend": ""}, "manifest.compiled.backend"),
    ({"relative_tolerance": -1.0}, "manifest.compiled.relative_tolerance"),
    ({"absolute_tolerance": float("nan")}, "manifest.compiled.absolute_tolerance"),
]

OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"backend": ""}, "manifest.backend"),
    ({"backend": "../sklearn"}, "manifest.backend"),
    ({"lineage": pb.Lineage(parent=types_pb2.ModelRef(model="", version=1))}, "manifest.lineage.parent.model"),
    ({"lineage": pb.Lineage(parent=types_pb2.ModelRef(model="a", version=0))}, "manifest.lineage.parent.version"),
]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        *(({"signature": broken}, field) for broken, field in TENSORS),
        *(({"signature": GOOD} | changes, field) for changes, field in SAMPLES),
        *(({"files": files}, field) for files, field in FILES),
        *(
            ({"compiled": pb.Compiled(**(KEPT | changes)), "files": [file("compiled/model.onnx")]}, field)
            for changes, field in COMPILED
        ),
        *OTHERS,
    ],
)
async def test_an_invalid_manifest_is_refused_with_the_field(
    registry: "Registry", changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await registry.make_version(**changes)
    assert field in [violation.field for violation in caught.value.violations]
    assert await registry.history() == []


async def test_one_error_lists_every_violation(registry: "Registry") -> None:
    with pytest.raises(InvalidInput, match="and 2 more") as caught:
        await registry.make_version(backend="", files=[file("/a"), file("b", size_bytes=-1)])
    assert [violation.field for violation in caught.value.violations] == [
        "manifest.backend",
        "manifest.files[0].path",
        "manifest.files[1].size_bytes",
    ]


async def test_a_compiled_form_and_the_reason_for_none_are_kept(registry: "Registry") -> None:
    sent = await registry.upload(b"model")
    files = [file("compiled/model.onnx", sha256=sent.sha256, size_bytes=sent.size_bytes)]
    kept = await registry.make_version(compiled=pb.Compiled(**KEPT), files=files)
    assert kept.manifest.compiled == pb.Compiled(**KEPT)
    none = await registry.make_version(compiled=pb.Compiled(reason="it is not faster"))
    assert none.manifest.compiled.reason == "it is not faster"


async def test_samples_that_fit_are_kept(registry: "Registry") -> None:
    text = types_pb2.TensorSpec(name="carrier", dtype=types_pb2.DATA_TYPE_STRING, shape=[-1])
    image = types_pb2.TensorSpec(name="image", dtype=FP32, shape=[-1, -1], allow_nan=True, units=["lux"])
    made = await registry.make_version(
        signature=signature(tensor(columns=["a", "b", "c"], units=["m", "s", "kg"]), text, image),
        sample_inputs=[
            rows("x", 2),
            types_pb2.Column(name="carrier", strings=types_pb2.Strings(values=["AA", "DL"])),
            types_pb2.Column(name="image", dtype=FP32, row_shape=[5], raw=bytes(2 * 5 * 4)),
        ],
        sample_outputs=[rows("y", 2, width=None, dtype=FP64)],
    )
    got = await registry.rpc.GetModelVersion(pb.GetModelVersionRequest(model="delay", version=1))
    assert got.manifest == made.manifest
    assert len(got.manifest.sample_inputs) == 3
