"""Laws of revisions, watches, paging and validation, for random operations and values."""

import asyncio
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.core.errors import InvalidInput, TreadleError
from treadle.core.model_ref import ModelRef
from treadle.registry import deployments, history, models, paging
from treadle.registry.manifest import Manifest, path_error
from treadle.registry.policy import DeploymentPolicy, TrafficShare, check
from treadle.registry.store import RegistryStore
from treadle.registry.watch import Applied, CaughtUp, Deleted, Watches

NAMES = st.sampled_from(["a", "b", "c"])
# (name, expected revision), or (name, None) to delete.
ACTIONS = st.lists(st.tuples(NAMES, st.one_of(st.none(), st.integers(-1, 4))), max_size=25)


def _policy(name: str) -> DeploymentPolicy:
    return DeploymentPolicy(name, body=name.encode(), traffic=(TrafficShare(ModelRef("delay", 1), 100.0),))


async def _act(store: RegistryStore, name: str, expected: int | None) -> None:
    try:
        if expected is None:
            await store.write(lambda tx: deployments.delete(tx, name))
        else:
            await store.write(lambda tx: deployments.apply(tx, _policy(name), expected))
    except TreadleError:
        pass  # not found, there already, someone was first: then nothing may have changed


async def _state(store: RegistryStore) -> dict[str, int]:
    changes, _ = await store.read(deployments.snapshot)
    return {change.name: change.revision or 0 for change in changes}


async def _replay(watches: Watches, cursor: str, state: dict[str, int]) -> list[tuple[str, dict[str, int]]]:
    """The cursor and the state after each event, up to the marker, beginning with `state`."""
    steps = []
    async for event in watches.events(cursor):
        match event:
            case Applied(at, deployment):
                state = {**state, deployment.body.decode(): deployment.revision}
            case Deleted(at, name):
                state = {key: value for key, value in state.items() if key != name}
            case CaughtUp(at):
                steps.append((at, state))
                break
        steps.append((at, state))
    return steps


@settings(max_examples=30, deadline=None)
@given(ACTIONS)
def test_revisions_are_consecutive_and_a_watch_from_any_cursor_ends_in_the_same_state(
    actions: list[tuple[str, int | None]],
) -> None:
    async def follow(folder: Path) -> None:
        store = RegistryStore.open(f"sqlite:///{folder / 'registry.db'}")
        await store.write(lambda tx: models.create_version(tx, "delay", Manifest(backend="x", body=b"")))
        watches = Watches(store)
        half = len(actions) // 2
        for name, expected in actions[:half]:
            await _act(store, name, expected)
        before = await _replay(watches, "", {})
        for name, expected in actions[half:]:
            await _act(store, name, expected)
        final = await _state(store)
        # From nothing, and from every cursor that an earlier watcher could have stopped at.
        for cursor, state in [("", {}), *before]:
            assert (await _replay(watches, cursor, dict(state)))[-1][1] == final
        events = (await store.read(lambda c: history.list_events(c, "", 1000, ""))).items
        assert [event.sequence for event in reversed(events)] == list(range(1, len(events) + 1))
        for name in ("a", "b", "c"):
            applied = [e for e in events if e.action == "deployment.apply" and e.subject == f"deployment:{name}"]
            for revision in range(1, len(applied) + 1):
                found = await store.read(partial(deployments.get, name=name, revision=revision))
                assert found.revision == revision
        await store.close()

    with TemporaryDirectory() as folder:
        asyncio.run(follow(Path(folder)))


@given(st.text(), st.one_of(st.integers(-(2**63), 2**63 - 1), st.text()))
def test_a_page_token_gives_back_its_key(scope: str, last: int | str) -> None:
    token = paging.encode_token(scope, last)
    assert (
        paging.decode_token(scope, token, int) if isinstance(last, int) else paging.decode_token(scope, token, str)
    ) == last


@given(st.text(min_size=1))
def test_no_page_token_raises_anything_but_invalid_input(token: str) -> None:
    with suppress(InvalidInput):
        assert paging.decode_token("scope", token, int) is not None


@given(st.lists(st.sampled_from([*"ab/.\\:~ \0\n", "..", "é", "\u202e"]), max_size=12).map("".join))
def test_a_path_that_is_accepted_can_be_written_and_lies_in_its_folder(path: str) -> None:
    if path_error(path):
        return
    with TemporaryDirectory() as name:
        folder = Path(name).resolve()
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"")
        assert folder in target.resolve().parents
        assert target.relative_to(folder).as_posix() == path


@given(st.lists(st.integers(0, 100), min_size=1, max_size=4) | st.integers(0, 100).map(lambda w: [w, 100 - w]))
def test_weights_are_taken_exactly_if_they_sum_to_100(weights: list[int]) -> None:
    shares = tuple(TrafficShare(ModelRef("delay", i), float(weight)) for i, weight in enumerate(weights, 1))
    policy = DeploymentPolicy("a", b"", traffic=shares, feature_policy="SERVE")
    with nullcontext() if sum(weights) == 100 else pytest.raises(InvalidInput):
        check(policy)


@given(st.integers(1, 1000))
def test_equal_shares_always_sum_to_100(count: int) -> None:
    shares = tuple(TrafficShare(ModelRef("delay", i), 100 / count) for i in range(1, count + 1))
    check(DeploymentPolicy("a", b"", traffic=shares, feature_policy="SERVE"))
