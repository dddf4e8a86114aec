"""Threads of a model: the choose that serve it well, on a clock that the models advance."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from treadle.core.errors import FailedPrecondition, InvalidInput
from treadle.inference.batching.thread_tuner import ThreadTuner
from treadle.plugins.backend import LoadedModel
from treadle.plugins.checked import CheckedModel
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature, Tensors

SIGNATURE = Signature((TensorSpec("x", "FP64", (-1,)),), (TensorSpec("x", "FP64", (-1,)),))
SAMPLE = {"x": np.arange(3.0)}
Cost = Callable[[int, int], float]
"""Seconds by rows and threads."""


@dataclass
class Machine:
    """Models whose `predict` advances the clock by `cost`."""

    cost: Cost
    load_seconds: float = 0.001
    now: float = 0.0
    loads: list[int] = field(default_factory=list)
    open: list[int] = field(default_factory=list)

    def load(self, threads: int) -> CheckedModel:
        self.loads.append(threads)
        self.open.append(threads)
        self.now += self.load_seconds
        return CheckedModel(Costly(self, threads), SIGNATURE)

    def choose(self, most: int, *, largest: int = 1024, sample: Tensors = SAMPLE) -> tuple[int, str]:
        chosen = ThreadTuner(self.load, sample, largest, lambda: self.now).choose(most)
        assert isinstance(chosen.model.model, Costly)
        assert chosen.model.model.threads == chosen.threads
        assert self.open == [chosen.threads], "every other model is closed again"
        assert self.loads[-1] == chosen.threads, "what was tried last has set the limits of some libraries"
        return chosen.threads, chosen.reason


@dataclass
class Costly(LoadedModel):
    machine: Machine
    threads: int

    def predict(self, inputs: Tensors) -> Tensors:
        self.machine.now += self.machine.cost(self.threads, len(inputs["x"]))
        return {"x": inputs["x"]}

    def close(self) -> None:
        self.machine.open.remove(self.threads)


def scales(threads: int, rows: int) -> float:
    """The rows of a batch are divided among threads; a single row is not."""
    return 1e-4 + rows * 1e-4 / threads


def test_a_model_that_scales_gets_every_core() -> None:
    threads, reason = Machine(scales).choose(4)
    assert threads == 4
    assert "times as fast" in reason


def test_a_quick_model_keeps_one_thread_and_nothing_else_is_tried() -> None:
    machine = Machine(lambda threads, rows: 1e-7 * rows)
    threads, reason = machine.choose(8)
    assert (threads, machine.loads) == (1, [1])
    assert reason == "1024 rows take 0.10 ms"


@pytest.mark.parametrize(
    "cost",
    [
        lambda threads, rows: rows * 1e-4,
        lambda threads, rows: rows * 1e-4 / (1.2 if threads > 1 else 1),
        lambda threads, rows: scales(threads, rows) * (3 if rows == 1 and threads > 1 else 1),
        lambda threads, rows: rows * 1e-4 * threads,
    ],
    ids=["no gain", "little gain", "one row suffers", "worse"],
)
def test_more_threads_must_be_clearly_faster(cost: Cost) -> None:
    machine = Machine(cost)
    threads, reason = machine.choose(4)
    assert (threads, machine.loads) == (1, [1, 2, 1])
    assert "more threads are not 1.3 times as fast" in reason


def test_tuning_stops_where_more_threads_are_not_faster() -> None:
    machine = Machine(lambda threads, rows: 1e-5 + rows * 1e-4 / min(threads, 2))
    assert machine.choose(8)[0] == 2
    assert machine.loads == [1, 2, 4, 2]


def test_a_number_of_cores_that_is_not_a_power_of_two() -> None:
    machine = Machine(scales)
    assert machine.choose(3)[0] == 3
    assert machine.loads == [1, 2, 3]


@pytest.mark.parametrize(
    ("machine", "most", "sample", "words"),
    [
        (Machine(scales), 1, SAMPLE, "one core"),
        (Machine(scales), 4, {}, "no sample"),
        (Machine(scales, load_seconds=2.0), 4, SAMPLE, "loading took 2.0 s, too long"),
        (Machine(lambda threads, rows: 0.5), 4, SAMPLE, "too long to measure"),
    ],
)
def test_a_model_that_cannot_be_measured_gets_one_thread(
    machine: Machine, most: int, sample: Tensors, words: str
) -> None:
    threads, reason = machine.choose(most, sample=sample)
    assert (threads, machine.loads) == (1, [1])
    assert words in reason


@pytest.mark.parametrize("seconds", [1e-6, 1e-4, 1e-3, 1e-2, 0.09])
def test_measuring_ends_soon(seconds: float) -> None:
    machine = Machine(lambda threads, rows: rows * seconds / threads)
    machine.choose(4)
    assert machine.now < 3


def test_no_measured_batch_exceeds_the_batch_limit() -> None:
    seen: list[int] = []

    def cost(threads: int, rows: int) -> float:
        seen.append(rows)
        return 1e-6 * rows

    Machine(cost).choose(2, largest=16)
    assert max(seen) == 16


def test_a_model_that_cannot_be_loaded_with_more_threads_keeps_one() -> None:
    machine = Machine(scales)

    def load(threads: int) -> CheckedModel:
        if threads > 1:
            raise FailedPrecondition("no room")
        return machine.load(threads)

    assert ThreadTuner(load, SAMPLE, 1024, lambda: machine.now).choose(4).threads == 1
    with pytest.raises(InvalidInput):
        ThreadTuner(_refused, SAMPLE, 1024, lambda: machine.now).choose(4)


def _refused(threads: int) -> CheckedModel:
    raise InvalidInput("a signature that it does not have")
