import pytest

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.timing import interleave, machine, ratio


def order_of(names, rounds):
    calls = []
    times = interleave({name: lambda name=name: calls.append(name) for name in names}, 0.0, least=rounds)
    assert {name: len(found) for name, found in times.items()} == dict.fromkeys(names, rounds)
    return "".join(calls)


def test_variants_take_turns():
    calls = order_of("ab", 3)
    assert calls[:4] == "aabb"  # to warm up
    assert [sorted(calls[at : at + 2]) for at in (4, 6, 8)] == [["a", "b"]] * 3


def test_who_runs_before_a_variant_changes_and_is_the_same_in_every_run():
    calls = order_of("abcd", 50)
    before = {calls[at - 1] for at in range(9, len(calls)) if calls[at] == "a"}
    assert before >= {"b", "c", "d"}  # a rotating order has one neighbour only
    assert calls == order_of("abcd", 50)


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
