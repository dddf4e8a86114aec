"""Real meshes for all end-to-end tests, with a feature store, three models and a deployment with fallbacks in each."""

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from treadle.client import AsyncClient, Fallback
from treadle.mesh.supervisor import Mesh

from ..conftest import BasePort

PROJECT = Path(__file__).parent / "project"
CUSTOMERS = 200
SECRET_STREET = "Rosengasse"
T = TypeVar("T")


class LiveMesh:
    """A mesh whose supervisor runs on a thread of its own, so that tests in any event loop can use it."""

    def __init__(self, home: Path, base_port: int, host: str | None, *, colocate: bool = False) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        # What `treadle up` does with no setting made, whatever this run's environment holds.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TREADLE_")}
        if host is not None:
            environ["TREADLE_HOST"] = host
        self.mesh = Mesh(home, base_port, PROJECT, environ=environ, colocate=colocate)
        self.home = home
        self.run(self.mesh.__aenter__())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` on the supervisor's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(90)

    def address(self, name: str) -> str:
        """The gRPC address of a service."""
        return self.mesh.address(name)

    @property
    def rest(self) -> str:
        """The URL of the gateway's REST port."""
        return f"http://{self.mesh.rest_address}"

    def kill(self, name: str) -> None:
        """SIGKILL; the supervisor starts it again."""

        async def kill() -> None:
            self.mesh.kill(name)

        self.run(kill())

    def ready(self, name: str) -> None:
        """Waits until a service serves."""
        self.run(self.mesh.ready(name))

    def stop(self, name: str) -> None:
        """Drains a service and keeps it down."""
        self.run(self.mesh.stop(name))

    def start(self, name: str) -> None:
        """Starts it again and waits until it serves."""
        self.run(self.mesh.start(name))

    def close(self) -> None:
        """Ends everything."""
        self.run(self.mesh.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


DEFAULT = pytest.param((None, False), id="default")
WAYS = (
    DEFAULT,
    pytest.param((None, True), id="colocated"),
    pytest.param(("grpcio", False), id="grpcio"),
    pytest.param(("grpcio", True), id="grpcio-colocated"),
)
default_alone = pytest.mark.parametrize("live", [DEFAULT], indirect=True)
"""For tests that stop single services, or need no more than one mesh."""


@pytest.fixture(scope="session", params=WAYS)
def live(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, base_port: BasePort
) -> Iterator[LiveMesh]:
    """A mesh as `treadle up` starts it: on its default host (Envoy where it can run) or grpcio, colocated or not."""
    host, colocate = request.param
    mesh = LiveMesh(tmp_path_factory.mktemp("mesh"), base_port(), host, colocate=colocate)
    yield mesh
    mesh.close()


@dataclass(frozen=True)
class Shop:
    """The mesh with the shop in it, and what a request to it needs."""

    mesh: LiveMesh
    deployment: str = "purchase"

    def entities(self, *customers: int) -> dict[str, Any]:
        """Entity columns for these customers."""
        return {"customer": np.array(customers)}

    def context(self, *baskets: float) -> dict[str, Any]:
        """Context columns for these baskets."""
        return {"basket": np.array(baskets)}

    def client(self, **options: Any) -> AsyncClient:
        """A client of the gateway."""
        return AsyncClient(self.mesh.address("gateway"), actor="e2e", **options)


@pytest.fixture(scope="session")
def shop(live: LiveMesh, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The mesh, with features applied and pushed, models registered, and a deployment that answers."""
    found = Shop(live)
    asyncio.run(_open_shop(found, tmp_path_factory.mktemp("shop")))
    return found


async def _open_shop(shop: Shop, folder: Path) -> None:
    from treadle.features import load_definitions
    from treadle.features.definition_codec import service_to_proto, view_to_proto

    definitions = load_definitions(PROJECT / "shop_features.py")
    async with shop.client() as client:
        await client.apply_features(
            [view_to_proto(view) for view in definitions.views],
            [service_to_proto(service) for service in definitions.services],
        )
        chance = np.random.default_rng(3)
        rows: dict[str, Any] = {
            "customer": np.arange(CUSTOMERS),
            "visits": chance.integers(1, 30, CUSTOMERS),
            "mean_amount": chance.uniform(5, 200, CUSTOMERS),
            "street": [f"{SECRET_STREET} {number}" for number in range(CUSTOMERS)],
        }
        known = datetime.now(UTC) - timedelta(hours=1)
        await client.push_features("spending", rows, known)
        _save_models(rows, folder)
        for name, part in (("purchase", "model"), ("purchase", "newer"), ("small-basket", "rule")):
            await client.push_model(name, folder / part)
        await client.deploy(
            shop.deployment,
            {"purchase/1": 100},
            fallbacks=[
                Fallback("small-basket", version="small-basket/1"),
                Fallback("coin", constant={"probability": [[0.5, 0.5]]}),
            ],
            sticky_entity="customer",
        )
        await client.wait_until_ready(shop.deployment)


def _save_models(rows: dict[str, Any], folder: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    from treadle.plugins.packaging import save_model

    chance = np.random.default_rng(4)
    basket = chance.uniform(1, 300, CUSTOMERS)
    names = ["spending__visits", "spending__mean_amount", "basket", "ratio"]
    ratio = basket / np.maximum(rows["mean_amount"], 1)
    features = np.column_stack([rows["visits"], rows["mean_amount"], basket, ratio]).astype(float)
    bought = (ratio + chance.normal(0, 0.5, CUSTOMERS) < 1.2).astype(int)
    for part, strength in (("model", 1.0), ("newer", 0.1)):
        model = LogisticRegression(C=strength, max_iter=5000).fit(features, bought)
        save_model(
            model, folder / part, {"features": features[:20]}, columns={"features": names}, feature_service="purchase"
        )
    sys.path.insert(0, str(PROJECT))
    import shop_rules

    save_model(shop_rules.small_basket, folder / "rule", {"basket": basket[:10]}, backend="python")
