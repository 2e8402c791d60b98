"""Pickles read as data: a small machine for pickle's instructions that can neither import nor call anything.

What a pickle names is looked up in a table given by the caller (`Known`); what isn't in it, and every instruction that
would run code, is refused by name. Lengths are held against the bytes that are there, so memory stays within a few
times the file's size. What the tables of StyleGAN snapshots hold stands in snapshots.py.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from gankern.errors import InputError

MOST_INSTRUCTIONS = 2_000_000
"""A StyleGAN snapshot has some ten thousand; each may take 200 bytes."""

MOST_GIVEN = 4
"""What calls may be given in all, as a multiple of the file: an argument can be given again and copied each time."""

PLAIN_KEYS = (str, int, float, bytes, type(None))
"""What may be a key or a member of a set: hashing a tuple nested a million times over overruns the stack."""


class Refused(InputError):
    """What a pickle tried and mustn't, or a form that no pickle has."""


@dataclass(frozen=True)
class Global:
    """Something that the pickle names, "module.name", and what stands for it in the table."""

    name: str
    stands: Any


@dataclass(frozen=True)
class Known:
    """What a pickle may name. `calls`: functions of ours that stand for its callables; `classes`: of which it makes
    empty objects, which are our results; `values`: plain things. `missing(name)` may explain an unknown name;
    `persistent(id)` loads what lies outside of the pickle."""

    calls: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    classes: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    missing: Callable[[str], str] = lambda name: f"it tries to use {name}"
    persistent: Callable[[Any], Any] | None = None


class Buildable:
    """Something of the table that a pickle gives a state after it is made."""

    def build(self, state: Any) -> Any:
        """What stands in its place then."""
        raise NotImplementedError


class _Mark:
    """Where a tuple, list or dict on the stack begins."""


def load(file: BinaryIO, known: Known, size: int) -> Any:
    """The object that the pickle at the file's position describes, which is left after its end. `size`: the file's.

    Raises Refused (an InputError) for what it mustn't name, do or be.
    """
    machine = _Machine(known, MOST_GIVEN * size)
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
            if count > MOST_INSTRUCTIONS:
                raise Refused(f"it has more than {MOST_INSTRUCTIONS:,} instructions")
            machine.run(instruction.name, argument)
        return machine.pop()
    except Refused:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
        raise Refused(f"it is truncated or malformed ({reason(error)})") from None


class _Machine:
    """pickle's stack and memo. `most`: what its calls may be given, in all."""

    def __init__(self, known: Known, most: int):
        self.known, self.left = known, most
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        if name in PUSHED:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in MADE:
            self.stack.append(MADE[name]())
        elif name not in IGNORED:
            act = getattr(self, "do_" + name.lower(), None)
            if act is None:
                raise Refused(f"it has the instruction {name}, which no snapshot needs")
            act(argument)

    def pop(self) -> Any:
        top = self.stack.pop()
        if isinstance(top, _Mark):
            raise ValueError("a mark where an object was expected")
        return top

    def pop_to_mark(self) -> list[Any]:
        for at in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[at], _Mark):
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        raise ValueError("no mark on the stack")

    # -- stack and memo -----------------------------------------------------------------------------------------------

    def do_mark(self, _) -> None:
        self.stack.append(_Mark())

    def do_pop(self, _) -> None:
        self.stack.pop()

    def do_pop_mark(self, _) -> None:
        self.pop_to_mark()

    def do_memoize(self, _) -> None:
        self.do_put(len(self.memo))

    def do_put(self, number: int) -> None:
        top = self.pop()
        self.memo[number] = top
        self.stack.append(top)

    def do_get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    do_binput = do_long_binput = do_put
    do_binget = do_long_binget = do_get

    # -- containers ---------------------------------------------------------------------------------------------------

    def do_tuple(self, _) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def _tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(items[::-1]))

    def do_tuple1(self, _) -> None:
        self._tuple_of(1)

    def do_tuple2(self, _) -> None:
        self._tuple_of(2)

    def do_tuple3(self, _) -> None:
        self._tuple_of(3)

    def do_list(self, _) -> None:
        self.stack.append(self.pop_to_mark())

    def do_dict(self, _) -> None:
        self.stack.append(_put({}, self.pop_to_mark()))

    def do_frozenset(self, _) -> None:
        self.stack.append(frozenset(map(plain, self.pop_to_mark())))

    def do_append(self, _) -> None:
        item = self.pop()
        _a(list, self.stack[-1]).append(item)

    def do_appends(self, _) -> None:
        items = self.pop_to_mark()
        _a(list, self.stack[-1]).extend(items)

    def do_additems(self, _) -> None:
        items = self.pop_to_mark()
        _a(set, self.stack[-1]).update(map(plain, items))

    def do_setitem(self, _) -> None:
        value, key = self.pop(), self.pop()
        _put(_a(dict, self.stack[-1]), [key, value])

    def do_setitems(self, _) -> None:
        items = self.pop_to_mark()
        _put(_a(dict, self.stack[-1]), items)

    # -- what would import, call or change something ------------------------------------------------------------------

    def do_global(self, argument: str) -> None:
        self._name(argument.replace(" ", ".", 1))

    def do_stack_global(self, _) -> None:
        name, module = self.pop(), self.pop()
        self._name(f"{_a(str, module)}.{_a(str, name)}")

    def _name(self, name: str) -> None:
        for table in (self.known.calls, self.known.classes, self.known.values):
            if name in table:
                self.stack.append(Global(name, table[name]) if table is not self.known.values else table[name])
                return
        raise Refused(self.known.missing(name[:200]))

    def do_reduce(self, _) -> None:
        arguments, what = _a(tuple, self.pop()), self.pop()
        self._call(what, arguments)

    def do_newobj(self, _) -> None:
        arguments, what = _a(tuple, self.pop()), self.pop()
        if not isinstance(what, Global) or what.name not in self.known.classes or arguments:
            raise Refused(f"it tries to make an object of {word(what)}")
        self.stack.append(what.stands())

    def _call(self, what: Any, arguments: tuple) -> None:
        if not isinstance(what, Global) or (what.name in self.known.classes and arguments):
            raise Refused(f"it tries to call {word(what)}")
        self.left -= sum(map(_weight, arguments))
        if self.left < 0:
            raise Refused(f"it gives {what.name} the same things again and again")
        self.stack.append(what.stands(*arguments))

    def do_build(self, _) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Buildable):
            self.stack[-1] = target.build(state)
        elif not isinstance(target, dict) or not isinstance(state, dict | None) or state:  # a dict's attributes: none
            raise Refused(f"it tries to change the state of {word(target)}")

    def do_persid(self, argument: str) -> None:
        if self.known.persistent is None:
            raise Refused(f"it asks for the object {argument[:200]!r} from outside")
        self.stack.append(self.known.persistent(argument))

    def do_binpersid(self, _) -> None:
        self.do_persid(_a(tuple, self.pop()) if self.known.persistent else word(self.pop()))

    def do_inst(self, argument: str) -> None:
        raise Refused(f"it tries to make an object of {argument.replace(' ', '.', 1)[:200]}")


PUSHED = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING"}
PUSHED |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
PUSHED |= {"FLOAT", "BINFLOAT"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
MADE: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
IGNORED = {"PROTO", "FRAME", "STOP"}


def _a(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{word(value)} where a {kind.__name__} was expected")
    return value


def plain(key: Any) -> Any:
    """What may be a key, or a member of a set."""
    if not isinstance(key, PLAIN_KEYS):
        raise Refused(f"it has {word(key)} where a plain word or number belongs")
    return key


def _put(target: dict, items: list[Any]) -> dict:
    for at in range(0, len(items), 2):
        target[plain(items[at])] = items[at + 1]
    return target


def _weight(argument: Any) -> int:
    """The bytes that a copy of it takes, roughly: an item of a list or set has a pointer or two."""
    if isinstance(argument, str | bytes):
        return len(argument)
    return 16 * len(argument) if isinstance(argument, tuple | list | set | frozenset | dict) else 0


def reason(error: Exception) -> str:
    """An error's first line, or its kind."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def word(value: Any) -> str:
    """What a message says of an object; never its contents, which may be endless, but a text's beginning."""
    if isinstance(value, str):
        return repr(value[:50])
    return value.name if isinstance(value, Global) else f"a {type(value).__name__}"
