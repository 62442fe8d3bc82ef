# SPDX-License-Identifier: Apache-2.0
"""The synthetic data set: instructions with the commands they stand for, from a seed, standard library only.

Training and held-out data never share a command: a hash of the command's canonical text decides on which
side it falls. The held-out figure therefore counts only combinations that no model was trained on.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from e2e.models.recipe import menu
from e2e.models.recipe.phrases import (
    chance,
    corrected_table,
    dress,
    pick,
    say_correction,
    say_item,
    say_list,
    say_name,
    say_number,
    say_quantity,
    say_table,
)
from e2e.models.recipe.schema import (
    MAX_QUANTITY,
    MAX_TABLE,
    Bill,
    Cancel,
    Command,
    Item,
    Move,
    Order,
    Restock,
    render_command,
)

Split = Literal["train", "heldout"]
HELDOUT_SHARE: Final = 20
"""One command in this many is held out."""

_ORDERS: Final = (
    "{items} to {table}",
    "{items} for {table}",
    "{items}, {table}",
    "{table}: {items}",
    "{table} wants {items}",
    "{table} would like {items}",
    "{table} is asking for {items}",
    "can I get {items} for {table}",
    "could you bring {items} to {table}",
    "bring {items} over to {table}",
    "put {items} on {table}",
    "{items}, that goes to {table}",
    "new order for {table}, {items}",
    "for {table}, {items}",
)
_CANCEL_ITEMS: Final = (
    "cancel the {items} for {table}",
    "cancel the {items} at {table}",
    "take the {items} off {table}",
    "{table} doesn't want the {items} anymore",
    "remove the {items} from {table}",
    "no more need for the {items} on {table}",
    "{table} sends back the {items}",
)
_CANCEL_ALL: Final = (
    "cancel everything for {table}",
    "cancel the whole order of {table}",
    "{table} left, drop their order",
    "forget the order for {table}",
    "{table} changed their mind, cancel it all",
    "scrap the order at {table}",
)
_BILLS: Final = (
    "bill for {table}",
    "the bill to {table}",
    "{table} wants the bill",
    "check for {table}",
    "{table} would like to pay",
    "{table} is ready to pay",
    "bring {table} the bill",
    "can {table} get the check",
)
_SPLITS: Final = ("split {n} ways", "split in {n}", "split by {n}", "divided by {n}", "in {n} equal parts")
_PAYMENTS: Final = {
    "card": ("by card", "with card", "on card", "paying by card"),
    "cash": ("in cash", "cash", "paying cash", "with cash"),
}
_MOVES: Final = (
    "move {source} to {target}",
    "move the guests from {source} to {target}",
    "{source} is moving to {target}",
    "{source} wants to sit at {target}",
    "the guests at {source} go over to {target}",
    "put the party of {source} on {target}",
    "{target} takes over the guests from {source}",
    "{target} is for the people from {source} now",
)
_RESTOCKS: Final = (
    "restock {amount} of {item}",
    "we're out of {item}, get {amount}",
    "we need {amount} of {item}",
    "{item} is running low, {amount}",
    "bring {amount} of {item} from the store room",
    "order {amount} of {item} for the bar",
    "fill up the {item}, {amount}",
    "{item} is empty, fetch {amount}",
    "get {amount} of {item} up here",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An instruction and the command that it stands for."""

    text: str
    command: Command

    @property
    def target(self) -> str:
        """The canonical text of the command: what a model has to answer."""
        return render_command(self.command)


def split_of(command: Command) -> Split:
    """On which side `command` falls, whatever the seed."""
    digest = hashlib.sha256(render_command(command).encode()).digest()
    return "heldout" if int.from_bytes(digest[:4], "big") % HELDOUT_SHARE == 0 else "train"


def build_examples(seed: int, split: Split) -> Iterator[Example]:
    """Endless examples of `split`, none with the text of an earlier one; the same for the same seed."""
    rng = random.Random(f"{seed}/{split}")
    seen: set[str] = set()
    while True:
        example = _draw(rng)
        if split_of(example.command) == split and example.text not in seen:
            seen.add(example.text)
            yield example


def _draw(rng: random.Random) -> Example:
    makers: tuple[Callable[[random.Random], tuple[str, Command]], ...]
    makers = (_order, _cancel, _bill, _move, _restock)
    (make,) = rng.choices(makers, weights=(52, 12, 12, 10, 14))
    text, command = make(rng)
    return Example(text=dress(rng, text), command=command)


def _dishes(rng: random.Random, count: int) -> list[str]:
    return rng.sample(list(menu.MENU), count)


def _item(rng: random.Random, name: str) -> Item:
    (quantity,) = rng.choices((1, 2, 3, 4, 5, 6), weights=(48, 24, 13, 7, 4, 4))
    (mods,) = rng.choices((0, 1, 2), weights=(66, 29, 5))
    chosen = rng.sample(menu.MENU[name].mods, mods)
    if set(chosen) == {"oat milk", "soy milk"}:
        chosen.pop()
    return Item(name=name, qty=quantity, mods=tuple(sorted(chosen)))


def _order(rng: random.Random) -> tuple[str, Command]:
    (count,) = rng.choices((1, 2, 3), weights=(44, 46, 10))
    items = [_item(rng, name) for name in _dishes(rng, count)]
    number = rng.randint(1, MAX_TABLE)
    table, correction = corrected_table(rng, number)
    said = say_list(rng, [say_item(rng, item) for item in items])
    text = pick(rng, _ORDERS).format(items=said, table=table) + correction
    if not correction and chance(rng, 0.3):
        clause, items = _afterthought(rng, items)
        text += clause
    return text, Order(table=number, items=tuple(items))


def _afterthought(rng: random.Random, items: list[Item]) -> tuple[str, list[Item]]:
    """A clause at the end that changes the order, and the changed order; "" where none fits."""
    several = [i for i in items if i.qty > 1]
    if len(several) == 1 and several[0].qty <= 3 and not several[0].mods and chance(rng, 0.7):
        return _one_of_them(rng, items, several[0])
    return "", items


def _one_of_them(rng: random.Random, items: list[Item], item: Item) -> tuple[str, list[Item]]:
    """ "the second one decaf": one portion of `item` differs from the others."""
    mod = rng.choice(menu.MENU[item.name].mods)
    which = ["one of them", f"one of the {menu.MENU[item.name].plural}", f"one {item.name}"]
    ordinal = {2: "second", 3: "third"}[item.qty]
    which += [f"the {ordinal} one", f"the {ordinal} one", f"the {ordinal} {item.name}"]
    clause = f", {rng.choice(which)} {pick(rng, menu.MODS[mod].clause)}"
    changed: list[Item] = []
    for each in items:
        rest = (Item(name=item.name, qty=item.qty - 1), Item(name=item.name, qty=1, mods=(mod,)))
        changed += rest if each is item else (each,)
    return clause, changed


def _cancel(rng: random.Random) -> tuple[str, Command]:
    number = rng.randint(1, MAX_TABLE)
    table, correction = corrected_table(rng, number)
    if chance(rng, 0.25):
        return pick(rng, _CANCEL_ALL).format(table=table) + correction, Cancel(table=number)
    items: list[Item] = []
    said: list[str] = []
    for name in _dishes(rng, rng.choice((1, 1, 2))):
        (quantity,) = rng.choices((1, 2, 3, 4), weights=(60, 25, 10, 5))
        items.append(Item(name=name, qty=quantity))
        words = say_name(rng, name, quantity)
        said.append(words if quantity == 1 else f"{say_number(rng, quantity)} {words}")
    text = pick(rng, _CANCEL_ITEMS).format(items=say_list(rng, said), table=table) + correction
    return text, Cancel(table=number, items=tuple(items))


def _bill(rng: random.Random) -> tuple[str, Command]:
    number = rng.randint(1, MAX_TABLE)
    table, correction = corrected_table(rng, number)
    split = rng.randint(2, 8) if chance(rng, 0.5) else 1
    pay = pick(rng, ("card", "cash")) if chance(rng, 0.55) else ""
    parts = []
    if split > 1:
        parts.append(pick(rng, _SPLITS).format(n=say_number(rng, split)))
    if pay:
        parts.append(pick(rng, _PAYMENTS[pay]))
    rng.shuffle(parts)
    text = ", ".join([pick(rng, _BILLS).format(table=table), *parts]) + correction
    return text, Bill(table=number, split=split, pay=pay)


def _move(rng: random.Random) -> tuple[str, Command]:
    source, target = rng.sample(range(1, MAX_TABLE + 1), 2)
    form = pick(rng, _MOVES)
    correction = ""
    said = target
    if form.endswith("{target}") and chance(rng, 0.08):
        said = rng.choice([n for n in range(1, MAX_TABLE + 1) if n not in (source, target)])
        correction = say_correction(rng, say_table(rng, target))
    short = form.endswith("{target}") and chance(rng, 0.3)
    goal = say_number(rng, said) if short else say_table(rng, said)
    text = form.format(source=say_table(rng, source), target=goal) + correction
    return text, Move(source=source, target=target)


def _restock(rng: random.Random) -> tuple[str, Command]:
    item = rng.choice(list(menu.STOCK))
    unit = pick(rng, menu.STOCK[item])
    quantity = rng.randint(1, MAX_QUANTITY)
    amount = say_quantity(rng, quantity, unit if quantity == 1 else menu.UNITS[unit])
    text = pick(rng, _RESTOCKS).format(amount=amount, item=item)
    if chance(rng, 0.06):
        other = rng.choice([n for n in range(2, MAX_QUANTITY + 1) if n != quantity])
        wrong = f"{say_number(rng, other)} {menu.UNITS[unit]}"
        text = pick(rng, _RESTOCKS).format(amount=wrong, item=item) + say_correction(rng, amount)
    return text, Restock(item=item, qty=quantity, unit=unit)
