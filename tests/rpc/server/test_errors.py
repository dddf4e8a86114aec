"""Every error class survives a real wire, and nothing else leaks through it."""

import inspect

import grpc
import pytest

from treadle.core import errors
from treadle.core.errors import Internal, Overloaded, StorageFull, TreadleError, Violation

CLASSES = list(errors.error_classes())


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
async def test_an_error_raised_by_a_servicer_is_raised_by_the_client(mesh, cls):
    async def answer(name):
        raise cls(f"no {name}", [Violation("entities[0]", "is wrong")], retry_after_seconds=0.25)

    async with mesh(answer) as (stubs, _):
        with pytest.raises(TreadleError) as caught:
            await stubs.predict("luck")
    expected = Overloaded if cls is StorageFull else cls  # the same code; a pushback makes it retryable
    assert type(caught.value) is expected
    assert caught.value.message == "no luck"
    assert caught.value.violations == (Violation("entities[0]", "is wrong"),)
    assert caught.value.retry_after_seconds == 0.25


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_each_class_owns_a_code_that_is_documented(cls):
    assert isinstance(cls.code, grpc.StatusCode)
    assert f"{cls.__name__} " in errors.__doc__
    assert cls.code.name in errors.__doc__
    assert inspect.getdoc(cls) != inspect.getdoc(TreadleError)


def test_codes_are_told_apart():
    shared = {cls.code for cls in CLASSES if cls != StorageFull}
    assert len(shared) == len(CLASSES) - 1


async def test_a_full_store_is_not_retryable_but_overload_is(mesh):
    async def answer(name):
        raise StorageFull("no room")

    async with mesh(answer) as (stubs, _):
        with pytest.raises(StorageFull):
            await stubs.predict()
    assert Overloaded.retryable
    assert not StorageFull.retryable


async def test_an_unexpected_exception_shows_an_id_and_nothing_of_itself(mesh):
    async def answer(name):
        raise RuntimeError("password=hunter2")

    async with mesh(answer) as (stubs, _):
        with pytest.raises(Internal) as caught:
            await stubs.predict()
    assert "hunter2" not in caught.value.message
    assert "internal error" in caught.value.message


async def test_one_callers_error_leaves_others_alone(mesh):
    async def answer(name):
        if name == "bad":
            raise RuntimeError
        return name

    async with mesh(answer) as (stubs, _):
        with pytest.raises(Internal):
            await stubs.predict("bad")
        assert await stubs.predict("good") == "good"
