# SPDX-License-Identifier: Apache-2.0
"""The data set: reproducible, disjoint, and every target a canonical command."""

import json
from itertools import islice

import pytest

from e2e.models.recipe import menu
from e2e.models.recipe.data import Split, build_examples, split_of
from e2e.models.recipe.golden import STRATA, build_golden, build_heldout
from e2e.models.recipe.phrases import number_word
from e2e.models.recipe.schema import (
    INTENTS,
    CommandError,
    Item,
    Order,
    parse_command,
    render_command,
)
from e2e.models.recipe.versions import HELDOUT_COUNT, label_without_mods

COUNT = 3000


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_same_seed_same_examples(split: Split) -> None:
    first = list(islice(build_examples(3, split), 300))
    assert first == list(islice(build_examples(3, split), 300))
    assert first != list(islice(build_examples(4, split), 300))


def test_train_and_heldout_share_neither_sentence_nor_command() -> None:
    train = list(islice(build_examples(1, "train"), COUNT))
    heldout = build_heldout()
    assert len(heldout) == HELDOUT_COUNT
    assert not {e.text for e in train} & {e.text for e in heldout}
    assert not {e.target for e in train} & {e.target for e in heldout}
    assert {split_of(e.command) for e in train} == {"train"}
    assert {split_of(e.command) for e in heldout} == {"heldout"}


def test_no_sentence_occurs_twice() -> None:
    train = list(islice(build_examples(1, "train"), COUNT))
    assert len({e.text for e in train}) == COUNT


def test_every_target_is_the_canonical_text_of_its_command() -> None:
    examples = [*islice(build_examples(1, "train"), COUNT), *build_heldout()]
    for example in examples:
        assert parse_command(example.target) == example.command
    assert {json.loads(e.target)["intent"] for e in examples} == set(INTENTS)


def test_every_dish_modifier_and_stock_item_occurs() -> None:
    targets = "".join(e.target for e in islice(build_examples(1, "train"), COUNT))
    for word in (*menu.MENU, *menu.MODS, *menu.STOCK):
        assert f'"{word}"' in targets


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"intent":"order","table":4,"items":[]}',
        '{"intent": "bill", "table": 4}',
        '{"table":4,"intent":"bill"}',
        '{"intent":"bill","table":21}',
        '{"intent":"bill","table":true}',
        '{"intent":"bill","table":4,"split":1}',
        '{"intent":"bill","table":4,"pay":"gold"}',
        '{"intent":"dance","table":4}',
        '{"intent":"order","table":4,"items":[{"name":"soup","qty":1,"mods":["lemon"]}]}',
        '{"intent":"order","table":4,"items":[{"name":"latte","qty":1,"mods":["oat milk","decaf"]}]}',
        '{"intent":"order","table":4,"items":[{"name":"rum","qty":1}]}',
        '{"intent":"restock","item":"ice","qty":1,"unit":"crate"}',
    ],
)
def test_what_is_not_a_canonical_command_is_refused(text: str) -> None:
    with pytest.raises(CommandError):
        parse_command(text)


def test_golden_cases_are_a_stratified_part_of_the_heldout_set() -> None:
    golden = build_golden()
    assert len(golden) == sum(count for _, count in STRATA) == len({e.text for e in golden})
    assert set(golden) <= set(build_heldout())
    for belongs, count in STRATA:
        assert sum(map(belongs, golden)) == count


def test_the_label_bug_of_v3_loses_the_modifiers_and_nothing_else() -> None:
    order = Order(table=4, items=(Item(name="latte", qty=2, mods=("decaf",)), Item(name="soup", qty=1)))
    assert render_command(label_without_mods(order)) == (
        '{"intent":"order","table":4,"items":[{"name":"latte","qty":2},{"name":"soup","qty":1}]}'
    )
    without_mods = [e for e in build_heldout() if '"mods"' not in e.target]
    assert all(label_without_mods(e.command) == e.command for e in without_mods)


def test_number_words() -> None:
    assert [number_word(n) for n in (0, 9, 13, 20)] == [
        "zero",
        "nine",
        "thirteen",
        "twenty",
    ]
