# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slmserve.sampling import NOT_A_NUMBER, Sampler, SamplingParams, choose_tokens


def _shares(params: SamplingParams, logits: list[float], draws: int = 4000) -> np.ndarray:
    sampler = Sampler(params)
    row = np.array(logits, np.float32)
    counts = np.bincount([sampler.pick(row) for _ in range(draws)], minlength=len(logits))
    return counts / draws


def test_greedy_takes_the_first_of_the_best() -> None:
    assert Sampler(SamplingParams()).pick(np.array([1, 5, 5, 2], np.float32)) == 1


def test_temperature_one_follows_the_probabilities() -> None:
    shares = _shares(SamplingParams(temperature=1.0, seed=1), list(np.log([0.7, 0.2, 0.1])))
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.03)


def test_a_low_temperature_sharpens() -> None:
    shares = _shares(SamplingParams(temperature=0.5, seed=1), list(np.log([0.6, 0.3, 0.1])))
    sharpened = np.array([0.36, 0.09, 0.01]) / 0.46
    assert shares == pytest.approx(sharpened, abs=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    shares = _shares(SamplingParams(temperature=1.0, top_p=0.8, seed=2), list(np.log([0.1, 0.5, 0.4])))
    assert shares == pytest.approx([0, 5 / 9, 4 / 9], abs=0.03)


def test_a_tiny_top_p_is_greedy() -> None:
    shares = _shares(SamplingParams(temperature=2.0, top_p=1e-6, seed=2), [0.1, 0.3, 0.2], draws=50)
    assert shares.tolist() == [0, 1, 0]


@settings(max_examples=200, deadline=None)
@given(
    logits=hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-30, 30, width=32)),
    top_p=st.floats(0.001, 0.999),
    temperature=st.floats(0.05, 2),
    seed=st.integers(0, 2**64 - 1),
)
def test_the_choice_is_in_the_nucleus(
    logits: np.ndarray, top_p: float, temperature: float, seed: int
) -> None:
    token = Sampler(SamplingParams(temperature=temperature, top_p=top_p, seed=seed)).pick(logits)
    scaled = (logits.astype(np.float64) - logits.max()) / temperature
    probabilities = np.exp(scaled) / np.exp(scaled).sum()
    # Likelier tokens than the chosen one never reach top_p together: else it is not in the set.
    assert probabilities[probabilities > probabilities[token]].sum() <= top_p + 1e-9


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(-(2**63), 2**64 - 1), temperature=st.floats(0.1, 2), top_p=st.floats(0.1, 1))
def test_the_same_seed_gives_the_same_answer(seed: int, temperature: float, top_p: float) -> None:
    rows = np.random.default_rng(5).standard_normal((20, 50)).astype(np.float32)
    params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
    first, second = Sampler(params), Sampler(params)
    assert [first.pick(row) for row in rows] == [second.pick(row) for row in rows]


def test_without_a_seed_answers_differ() -> None:
    rows = np.zeros((30, 50), np.float32)
    samplers = [Sampler(SamplingParams(temperature=1.0)) for _ in range(2)]
    assert [samplers[0].pick(row) for row in rows] != [samplers[1].pick(row) for row in rows]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_no_number_is_told(bad: float, temperature: float) -> None:
    row = np.array([0.0, bad, 1.0], np.float32)
    assert Sampler(SamplingParams(temperature=temperature)).pick(row) == NOT_A_NUMBER
    rows = np.stack([row, np.array([0, 1, 0], np.float32)])
    samplers = [Sampler(SamplingParams(temperature=temperature, seed=1)), Sampler(SamplingParams())]
    assert choose_tokens(rows, samplers) == [NOT_A_NUMBER, 1]


def test_minus_infinity_only_forbids_a_token() -> None:
    shares = _shares(SamplingParams(temperature=1.0, seed=3), [-np.inf, 0.0, 0.0], draws=300)
    assert shares[0] == 0
