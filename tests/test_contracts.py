"""The contracts: stubs are what the protos say, and everything in them is documented."""

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from .conftest import module_of_file

PROTOS = Path(__file__).parents[1] / "protos"
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi", "*.binpb", "messages.pyi")


@pytest.fixture(scope="module")
def generate():
    return module_of_file(PROTOS / "generate.py")


def test_the_committed_stubs_are_what_the_protos_generate(generate, tmp_path):
    generate.generate(tmp_path)
    fresh = {p.relative_to(tmp_path): p.read_bytes() for pattern in GENERATED for p in tmp_path.rglob(pattern)}
    committed = {p.relative_to(PROTOS): p.read_bytes() for pattern in GENERATED for p in PROTOS.rglob(pattern)}
    assert sorted(fresh) == sorted(committed), "run `make protos`"
    assert [str(path) for path in fresh if fresh[path] != committed[path]] == [], "run `make protos`"


def undocumented(file: descriptor_pb2.FileDescriptorProto):
    """Services, RPCs, messages, fields and enum values without a comment of their own."""
    documented = {
        tuple(at.path) for at in file.source_code_info.location if at.leading_comments or at.trailing_comments
    }
    for at, service in enumerate(file.service):
        for number, method in enumerate(service.method):
            if (6, at, 2, number) not in documented:
                yield f"{service.name}.{method.name}"
    for at, message in enumerate(file.message_type):
        yield from _fields(message, (4, at), documented)
    for at, enum in enumerate(file.enum_type):
        if (5, at) not in documented:
            yield enum.name


def _fields(message, path, documented):
    for number, field in enumerate(message.field):
        if (*path, 2, number) not in documented:
            yield f"{message.name}.{field.name}"
    for number, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _fields(nested, (*path, 3, number), documented)


@pytest.mark.parametrize("path", sorted(PROTOS.glob("treadle/v1/*.proto")), ids=lambda p: p.stem)
def test_every_rpc_and_field_is_documented(generate, path, tmp_path):
    out = tmp_path / "set.binpb"
    generate._run(f"--descriptor_set_out={out}", "--include_source_info", str(path.relative_to(PROTOS)))
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    assert list(undocumented(file)) == []
