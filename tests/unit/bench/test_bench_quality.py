# SPDX-License-Identifier: Apache-2.0
"""The quality table: recipes that parse, rows as of the other benchmarks, the page between its markers."""

import json

import pytest

from e2e.bench.quality import (
    BEGIN,
    END,
    PAGE,
    PROMISED,
    RECIPES,
    Measured,
    build_points,
    build_rows,
    render_table,
    replace_between,
)
from slmopt.job import parse_job
from slmwire.jobs import EvaluateReport


def report(exact: float) -> EvaluateReport:
    return EvaluateReport(
        engine="onnxruntime",
        samples=500,
        exact_match=exact,
        perplexity=1.01,
        decode_tokens_per_second=9000.0,
        prompt_tokens_per_second=90_000.0,
        memory_bytes=90_000_000,
    )


def measured(name: str, size: int, exact: float | None) -> Measured:
    given = None if exact is None else report(exact)
    return Measured(name=name, size_bytes=size, gzip_bytes=size // 2, golden=given, heldout=given)


RESULTS = [
    measured("as it is (fp32)", 2_800_000, 0.98),
    measured("int8", 1_000_000, 0.975),
    measured("int4, blocks of 32", 800_000, 0.96),
    measured("GGUF Q4_0", 500_000, None),
]


def test_every_recipe_is_one_that_the_product_reads() -> None:
    for steps in RECIPES.values():
        parse_job(json.dumps({"steps": list(steps)}))
    assert set(RECIPES) > PROMISED


def test_rows_compare_with_the_model_as_it_is_and_judge_what_is_promised() -> None:
    rows = {row["measure"]: row for row in build_rows(RESULTS)}
    assert rows["int8: size"]["ratio"] == pytest.approx(0.357)
    assert rows["int8: exact match, held out"]["met"] is True
    assert rows["int4, blocks of 32: exact match, held out"]["met"] is False
    assert rows["GGUF Q4_0: perplexity, held out"]["ours"] is None
    assert rows["as it is (fp32): exact match, held out"]["met"] is None
    json.dumps(list(rows.values()), allow_nan=False)


def test_the_table_and_the_picture() -> None:
    lines = render_table(RESULTS).splitlines()
    assert lines[2] == "| as it is (fp32) | 2,800 | 1,400 | 98.0 % | 98.0 % | 1.0100 | 90 | 9,000 |"
    assert lines[-1].count("not measured") == 5
    points = build_points(RESULTS)
    assert [(point.name, point.accepted) for point in points] == [
        ("as it is (fp32)", "yes"),
        ("int8", "yes"),
        ("int4, blocks of 32", "no"),
    ]


def test_only_what_lies_between_the_markers_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replace_between(page, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert replace_between(PAGE.read_text(), "x")
    with pytest.raises(ValueError, match="markers"):
        replace_between("no markers", "new")
