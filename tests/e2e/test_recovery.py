"""Kill any service under load: requests are answered or refused cleanly, and nothing that was accepted is lost."""

import asyncio

import pytest

from treadle.core.errors import TreadleError, Unavailable

from .conftest import default_alone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), default_alone]

SERVICES = ("features", "inference", "evaluation", "registry", "gateway")


class Load:
    """Asks without pause from several tasks, and remembers the ids of the predictions that it was given."""

    def __init__(self, shop) -> None:
        self._shop = shop
        self.accepted: list[str] = []
        self.refused: list[TreadleError] = []
        self._on = True

    async def run(self, client) -> None:
        customer = 0
        while self._on:
            customer = (customer + 1) % 200
            try:
                answer = await client.predict("purchase", self._shop.entities(customer), self._shop.context(30))
                self.accepted.extend(answer.prediction_ids)
            except TreadleError as error:
                self.refused.append(error)
                await asyncio.sleep(0.02)

    def stop(self) -> None:
        self._on = False


async def recorded(client, ids) -> int:
    """How many of these predictions the ledger knows: a label for an unknown one would not be counted as labelled."""
    async with asyncio.timeout(60):
        while True:
            try:
                await client.record_labels(ids, [1] * len(ids))
                metrics = await client.live_metrics("purchase", score_output="probability", include_fallbacks=True)
            except Unavailable:  # the gateway finds a service that was restarted within a second
                await asyncio.sleep(0.1)
            else:
                return next(int(each.labelled) for each in metrics if not each.model.model)


@pytest.mark.parametrize("service", SERVICES)
async def test_a_killed_service_comes_back_and_loses_nothing(shop, service):
    load = Load(shop)
    async with shop.client(timeout_seconds=10) as client:
        models = {model.name: model.latest_version for model in await client.models()}
        before = await recorded(client, [])
        tasks = [asyncio.create_task(load.run(client)) for _ in range(4)]
        await until(lambda: len(load.accepted) > 50)
        shop.mesh.kill(service)
        await asyncio.to_thread(shop.mesh.ready, service)
        await until_answered_by_the_model(client, shop)
        load.stop()
        await asyncio.gather(*tasks)
        async with asyncio.timeout(60):
            while await recorded(client, load.accepted) - before < len(load.accepted):
                await asyncio.sleep(0.3)
        assert await recorded(client, load.accepted) - before == len(load.accepted)
        assert {model.name: model.latest_version for model in await client.models()} == models
    if service != "gateway":
        assert load.refused == []


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def until_answered_by_the_model(client, shop) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                answer = await client.predict("purchase", shop.entities(1), shop.context(30))
                if answer.served_by == "traffic":
                    return
            except TreadleError:
                pass
            await asyncio.sleep(0.1)


async def test_with_registry_evaluation_and_features_down_the_gateway_still_answers(shop):
    for service in ("registry", "evaluation", "features"):
        await asyncio.to_thread(shop.mesh.stop, service)
    try:
        async with shop.client() as client:
            answer = await client.predict("purchase", shop.entities(1), shop.context(30))
            assert answer.served_by == "fallback:small-basket"
            assert "features" in answer.degraded_reason
    finally:
        for service in ("registry", "evaluation", "features"):
            await asyncio.to_thread(shop.mesh.start, service)
    async with shop.client() as client:
        await until_answered_by_the_model(client, shop)
