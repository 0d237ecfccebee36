"""Classes of `pyllm.records` do what those of the standard library do."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from typing import Any

import pytest

from pyllm import records

Make = Callable[..., Any]


class Base:
    """A class without decorator, whose fields are the decorated ones'."""

    __slots__ = ()


def classes(dataclass: Make, **more: Any) -> tuple[Any, Any, Any]:
    """A class with every kind of field, one that inherits from it, and one without fields."""

    @dataclass(frozen=True, **more)
    class Point(Base):
        """A point."""

        x: int
        y: float = 2.0
        tags: list[str] = field(default_factory=list)
        note: str = field(default="", compare=False, repr=False)
        length: float = field(init=False, default=0.0)
        key: str = field(default="k", kw_only=True)
        seen: int = field(default=1, hash=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "length", math.hypot(self.x, self.y))

    @dataclass(frozen=True, **more)
    class Named(Point):
        """A point with a name."""

        name: str = "origin"
        y: float = 5.0

    @dataclass(frozen=True, **more)
    class Nothing:
        """No fields."""

    return Point, Named, Nothing


BOTH = [classes(records.dataclass, slots=slots) for slots in (True, False)]
STANDARD = classes(dataclasses.dataclass, slots=True)
CALLS: list[tuple[int, tuple[Any, ...], dict[str, Any]]] = [
    (0, (3,), {}),
    (0, (3, 4.0, ["a"]), {"note": "n", "key": "l", "seen": 9}),
    (1, (3,), {"name": "here"}),
    (1, (3, 4.0), {}),
    (2, (), {}),
]


@pytest.mark.parametrize("made", BOTH, ids=["slots", "dict"])
@pytest.mark.parametrize("call", CALLS)
def test_objects_are_those_of_the_standard_library(made: Any, call: Any) -> None:
    which, args, kwargs = call
    ours, theirs = made[which](*args, **kwargs), STANDARD[which](*args, **kwargs)
    assert repr(ours) == repr(theirs)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert ours == made[which](*args, **kwargs)
    assert ours == copy.copy(ours) == copy.deepcopy(ours)
    if which == 0:
        assert dataclasses.replace(ours, x=1).length == dataclasses.replace(theirs, x=1).length
        assert ours == dataclasses.replace(ours, note="another")
        assert ours != dataclasses.replace(ours, x=-1)
    assert ours != theirs
    assert ours.__eq__(5) is NotImplemented


def parameters(made: Any) -> list[tuple[str, object, bool]]:
    found = inspect.signature(made).parameters.values()
    return [(p.name, p.kind, p.default is inspect.Parameter.empty) for p in found]


@pytest.mark.parametrize("made", BOTH, ids=["slots", "dict"])
def test_classes_are_those_of_the_standard_library(made: Any) -> None:
    for ours, theirs in zip(made, STANDARD, strict=True):
        assert parameters(ours) == parameters(theirs)
        assert ours.__match_args__ == theirs.__match_args__
        assert ours.__doc__ == theirs.__doc__
        assert ours.__dataclass_params__.frozen
        assert [f.name for f in dataclasses.fields(ours)] == [f.name for f in dataclasses.fields(theirs)]


@pytest.mark.parametrize("made", BOTH, ids=["slots", "dict"])
def test_fields_cannot_be_changed(made: Any) -> None:
    for kind in made[:2]:
        point = kind(1)
        for change in (lambda: setattr(point, "x", 2), lambda: delattr(point, "x"), lambda: setattr(point, "z", 2)):  # noqa: B023
            with pytest.raises((FrozenInstanceError, TypeError)):
                change()
        assert point.x == 1


@pytest.mark.parametrize("args", [(), (1, 2.0, [], "", "k", 3, 4)])
def test_calls_that_do_not_fit_are_pythons_own_errors(args: Any) -> None:
    for made in (*BOTH, STANDARD):
        with pytest.raises(TypeError, match=r"Point.__init__\(\) (missing|takes)"):
            made[0](*args)


@records.dataclass(frozen=True, slots=True)
class Pair:
    """At the top of a module, as pickling needs it."""

    a: int
    b: tuple[int, ...] = ()
    me: Any = None

    @property
    def total(self) -> int:
        return self.a + sum(self.b)


@records.dataclass(frozen=True, slots=True, eq=False)
class Apart:
    """Compared by identity."""

    a: int


@records.dataclass(frozen=True, slots=True)
class Own:
    """Methods of its own stay."""

    a: int

    def __repr__(self) -> str:
        return "own"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own)


class Plain(Pair):
    """A subclass that is no dataclass."""

    def __init__(self) -> None:
        super().__init__(7)


def test_pickles_and_hashes() -> None:
    pair = Pair(1, (2, 3))
    assert pickle.loads(pickle.dumps(pair)) == pair
    assert len({pair, Pair(1, (2, 3)), Pair(2)}) == 2
    assert pair.total == 6
    with pytest.raises(TypeError, match="unhashable"):
        hash(Pair(1, me=[]))


def test_what_a_class_says_itself_goes_first() -> None:
    assert Apart(1) != Apart(1)
    assert len({Apart(1), Apart(1)}) == 2
    assert (repr(Own(1)), Own(1) == Own(2)) == ("own", True)
    assert hash(Own(1)) == hash(Own(1))
    assert Plain() == Plain()
    assert list(inspect.signature(Plain).parameters) == []


def test_standard_and_own_classes_inherit_from_one_another() -> None:
    @dataclasses.dataclass(frozen=True)
    class Below(Pair):
        c: int = 3

    @records.dataclass(frozen=True, slots=True)
    class Lower(Below):
        d: int = 4

    assert (Below(1).c, Lower(1, d=5).d, Lower(1)) == (3, 5, Lower(1, c=3))
    with pytest.raises(FrozenInstanceError):
        Lower(1).a = 2  # type: ignore[misc]


def test_an_object_within_itself_is_shown_once() -> None:
    pair = Pair(1)
    object.__setattr__(pair, "me", pair)
    assert repr(pair) == "Pair(a=1, b=(), me=...)"


def test_others_are_the_standard_librarys() -> None:
    @records.dataclass(order=True)
    class Open:
        a: int

    assert Open(1) < Open(2)
    thing = Open(1)
    thing.a = 3
    assert thing == Open(3)
