"""The synchronous client has the methods of the async one, and leaves no stream or thread behind."""

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from treadle.client import AsyncClient, Client, StreamRequest
from treadle.core.errors import InvalidInput


def public_methods(cls: type) -> dict[str, Callable[..., Any]]:
    return {
        name: member
        for name, member in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and name != "close"
    }


def test_both_clients_have_the_same_methods_and_parameters() -> None:
    ours, theirs = public_methods(Client), public_methods(AsyncClient)
    assert set(ours) == set(theirs)
    for name, method in ours.items():
        assert inspect.signature(method).parameters == inspect.signature(theirs[name]).parameters
        assert method.__doc__ == theirs[name].__doc__


async def test_predicts_without_async(prediction_address: str) -> None:
    def use() -> tuple[Any, list[Any]]:
        with Client(prediction_address) as client:
            one = client.predict("any", context={"x": [1.0, 2.0]})
            requests = [StreamRequest("any", context={"x": [float(number)]}) for number in range(5)]
            return one["twice"], [answer.result()["twice"][0] for answer in client.predict_stream(requests)]

    one, many = await asyncio.to_thread(use)
    np.testing.assert_array_equal(one, [2.0, 4.0])
    assert sorted(many) == [0.0, 2.0, 4.0, 6.0, 8.0]


async def test_errors_are_raised_and_the_client_stays_usable(prediction_address: str) -> None:
    def use() -> float:
        with Client(prediction_address) as client:
            with pytest.raises(InvalidInput, match="x is wrong"):
                client.predict("broken", context={"x": [1.0]})
            return float(client.predict("any", context={"x": [4.0]})["twice"][0])

    assert await asyncio.to_thread(use) == 8.0


async def test_leaving_a_stream_early_ends_it(prediction_address: str) -> None:
    def use() -> float:
        with Client(prediction_address) as client:
            for _ in client.predict_stream([StreamRequest("any", context={"x": [1.0]})] * 100):
                break
            return float(client.predict("any", context={"x": [5.0]})["twice"][0])

    assert await asyncio.to_thread(use) == 10.0


async def test_threads_share_one_client(prediction_address: str) -> None:
    def use() -> list[float]:
        with Client(prediction_address) as client:
            found: list[float] = []
            threads = [
                threading.Thread(
                    target=lambda n=number: found.append(client.predict("a", context={"x": [n]})["twice"][0])
                )
                for number in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return sorted(found)

    assert await asyncio.to_thread(use) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_client_must_be_opened_and_leaves_no_thread() -> None:
    with pytest.raises(RuntimeError, match="with Client"):
        Client().predict("any", context={"x": [1.0]})
    before = client_threads()  # grpcio's own threads come and go
    with Client("127.0.0.1:1"):
        assert len(client_threads() - before) == 1
    assert client_threads() == before


def client_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "treadle-client"}
