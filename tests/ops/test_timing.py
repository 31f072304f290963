import pytest

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.timing import interleave, machine, ratio


def test_variants_take_turns_in_a_rotating_order():
    calls = []
    times = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, 0.0, least=3)
    assert "".join(calls) == "aabb" + "ab" + "ba" + "ab"
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}


def test_ratios_are_of_the_same_round():
    assert ratio({"a": [1.0, 10.0, 3.0], "b": [2.0, 20.0, 2.0]}, "a", "b") == 0.5


@pytest.mark.parametrize("clock", ["cpu", "wall"])
def test_both_clocks_count_seconds(clock):
    (found,) = interleave({"a": lambda: sum(range(20000))}, 0.0, least=1, clock=clock).values()
    assert 0 < found[0] < 1


def test_an_unknown_clock():
    with pytest.raises(ArgumentError, match="unknown clock 'wal'. Did you mean 'wall'"):
        interleave({}, 0.0, clock="wal")


def test_the_machine_is_named():
    assert set(machine()) == {"cpu", "cores", "torch", "threads"}
    assert machine()["cores"] >= 1
