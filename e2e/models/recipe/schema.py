# SPDX-License-Identifier: Apache-2.0
"""The command a shop-floor instruction stands for, and its one JSON form.

Canonical text: compact JSON, keys in the order of the fields below, absent fields left out, `mods` sorted.
Two commands are equal exactly when their canonical texts are.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from e2e.models.recipe import menu

MAX_TABLE: Final = 20
MAX_QUANTITY: Final = 12
PAYMENTS: Final = ("card", "cash")
INTENTS: Final = ("order", "cancel", "bill", "move", "restock")


class CommandError(ValueError):
    """The text is not the canonical JSON of a command; the message says what differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """`qty` portions of one thing on the menu, all prepared in the same way."""

    name: str
    qty: int
    mods: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The item as a JSON object."""
        body: dict[str, Any] = {"name": self.name, "qty": self.qty}
        return body | ({"mods": sorted(self.mods)} if self.mods else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Bring `items` to `table`."""

    table: int
    items: tuple[Item, ...]

    def to_json(self) -> dict[str, Any]:
        """The command as a JSON object."""
        return {"intent": "order", "table": self.table, "items": [i.to_json() for i in self.items]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Take `items` back from the order of `table`; no items means the whole order."""

    table: int
    items: tuple[Item, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The command as a JSON object."""
        body: dict[str, Any] = {"intent": "cancel", "table": self.table}
        return body | ({"items": [i.to_json() for i in self.items]} if self.items else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Bring the bill to `table`, split in `split` parts (1: not split), paid by `pay` ("": not said)."""

    table: int
    split: int = 1
    pay: str = ""

    def to_json(self) -> dict[str, Any]:
        """The command as a JSON object."""
        body: dict[str, Any] = {"intent": "bill", "table": self.table}
        body |= {"split": self.split} if self.split > 1 else {}
        return body | ({"pay": self.pay} if self.pay else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The guests of table `source` now sit at table `target`."""

    source: int
    target: int

    def to_json(self) -> dict[str, Any]:
        """The command as a JSON object."""
        return {"intent": "move", "from": self.source, "to": self.target}


@dataclass(frozen=True, slots=True, kw_only=True)
class Restock:
    """Get `qty` `unit`s of `item` from the store room."""

    item: str
    qty: int
    unit: str

    def to_json(self) -> dict[str, Any]:
        """The command as a JSON object."""
        return {"intent": "restock", "item": self.item, "qty": self.qty, "unit": self.unit}


Command = Order | Cancel | Bill | Move | Restock


def render_command(command: Command) -> str:
    """The canonical text of `command`."""
    return json.dumps(command.to_json(), separators=(",", ":"))


def parse_command(text: str) -> Command:
    """The command whose canonical text is exactly `text`; raises CommandError for anything else."""
    try:
        body = json.loads(text)
        command = _read(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"not a command: {error!r}: {text[:200]}") from error
    if render_command(command) != text:
        raise CommandError(f"not canonical: {text[:200]} should be {render_command(command)}")
    return command


def _read(body: dict[str, Any]) -> Command:
    match body["intent"]:
        case "order":
            items = tuple(_item(row) for row in body["items"])
            if not items:
                raise ValueError("an order needs items")
            return Order(table=_table(body["table"]), items=items)
        case "cancel":
            return Cancel(table=_table(body["table"]), items=tuple(_item(r) for r in body.get("items", ())))
        case "bill":
            pay = body.get("pay", "")
            if pay not in ("", *PAYMENTS):
                raise ValueError(f"pay: {pay!r}")
            return Bill(table=_table(body["table"]), split=_quantity(body.get("split", 1)), pay=pay)
        case "move":
            return Move(source=_table(body["from"]), target=_table(body["to"]))
        case "restock":
            item, unit = body["item"], body["unit"]
            if unit not in menu.STOCK[item]:
                raise ValueError(f"{item} does not come in {unit}")
            return Restock(item=item, qty=_quantity(body["qty"]), unit=unit)
        case other:
            raise ValueError(f"intent: {other!r}")


def _item(row: dict[str, Any]) -> Item:
    name, mods = row["name"], tuple(row.get("mods", ()))
    allowed = menu.MENU[name].mods
    if any(mod not in allowed for mod in mods):
        raise ValueError(f"{name} cannot be had {mods}")
    return Item(name=name, qty=_quantity(row["qty"]), mods=mods)


def _table(value: object) -> int:
    return _within(value, MAX_TABLE)


def _quantity(value: object) -> int:
    return _within(value, MAX_QUANTITY)


def _within(value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{value!r} is not a whole number from 1 to {most}")
    return value
