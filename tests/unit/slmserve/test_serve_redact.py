# SPDX-License-Identifier: Apache-2.0
"""What identifies somebody by its form is gone from any text, and little else is."""

import ipaddress
import json
import re
import string
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slmserve.redact import RedactionError, Redactor, build_rules, redact
from slmwire.examples import ExampleSettings

_ALL = build_rules(ExampleSettings(retention_seconds=60, max_examples=1))
_MANY = settings(max_examples=300, deadline=None)
_AROUND = st.text(max_size=40)


def _settings(*patterns: str, redact: tuple[str, ...] = ()) -> ExampleSettings:
    return ExampleSettings(retention_seconds=60, max_examples=1, redact=redact, patterns=patterns)


def _luhn(digits: str) -> str:
    doubled = [int(digit) * (2 - place % 2) for place, digit in enumerate(reversed(digits))]
    total = sum(value - 9 * (value > 9) for value in doubled)
    return digits + str(-total % 10)


@st.composite
def cards(draw: st.DrawFn) -> str:
    number = _luhn(draw(st.text(string.digits, min_size=12, max_size=18)))
    gap = draw(st.sampled_from(["", " ", "-", ".", "\u00a0"]))
    return gap.join(number[at : at + 4] for at in range(0, len(number), 4))


@st.composite
def ibans(draw: st.DrawFn) -> str:
    country = draw(st.text(string.ascii_uppercase, min_size=2, max_size=2))
    rest = draw(st.text(string.ascii_uppercase + string.digits, min_size=11, max_size=30))
    number = int("".join(str(int(letter, 36)) for letter in f"{rest}{country}00"))
    code = f"{country}{98 - number % 97:02d}{rest}"
    gap = draw(st.sampled_from(["", " ", "-"]))
    width = draw(st.sampled_from([4, 8]))
    shown = gap.join(code[at : at + width] for at in range(0, len(code), width))
    return shown.lower() if draw(st.booleans()) else shown


@st.composite
def phones(draw: st.DrawFn) -> str:
    groups = draw(st.lists(st.text(string.digits, min_size=2, max_size=4), min_size=2, max_size=3))
    begin = draw(st.sampled_from(["+49", "+1", "030", "(0221)", "0044"]))
    gap = draw(st.sampled_from([" ", "-", "/", "\u2011"]))
    shown = gap.join([begin, *groups])
    assume(8 <= len(re.sub(r"\D", "", shown)) <= 15)
    return shown


urls = st.builds(
    "{}://{}.{}/{}".format,
    st.sampled_from(["http", "https", "ftp", "wss"]),
    st.text(string.ascii_letters + string.digits, min_size=1, max_size=20),
    st.sampled_from(["com", "example", "de"]),
    st.text(string.ascii_letters + string.digits + "-_/?&=%#", max_size=20),
)
emails = st.builds(
    "{}{}@{}.{}".format,
    st.text(string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~", min_size=1, max_size=40),
    st.text(string.ascii_letters + string.digits, min_size=1, max_size=10),
    st.text(string.ascii_letters + string.digits + "äö-", min_size=1, max_size=30),
    st.sampled_from(["de", "com", "co.uk", "museum", "xn--p1ai"]),
)
ips = st.one_of(st.ip_addresses().map(str), st.ip_addresses(v=6).map(lambda ip: ip.exploded))


@_MANY
@given(
    before=_AROUND,
    after=_AROUND,
    gap=st.sampled_from([" ", "\n", ", "]),
    secret=st.one_of(emails, cards(), ibans(), phones(), urls, ips),
)
def test_any_of_them_is_gone_from_any_text(before: str, after: str, gap: str, secret: str) -> None:
    assume(secret not in {"::", "::1"})
    text = f"{before}{gap}{secret}{gap}{after}"
    cleaned = redact(text, _ALL)
    assert secret not in cleaned
    digits = re.sub(r"\D", "", secret)
    if len(digits) >= 7:
        assert digits not in re.sub(r"[^\w\n<>]", "", cleaned)
    assert redact(cleaned, _ALL) == cleaned


@_MANY
@given(secret=st.one_of(emails, cards(), ibans(), phones(), urls), hidden=st.booleans())
def test_what_was_json_is_json_without_them(secret: str, hidden: bool) -> None:
    text = json.dumps({"items": [{"name": "tea", "note": f"for {secret}"}], "table": 8})
    if hidden:
        text = text.replace(secret, "".join(f"\\u{ord(letter):04x}" for letter in secret))
    cleaned = json.loads(redact(text, _ALL))
    assert cleaned["table"] == 8
    assert cleaned["items"][0]["name"] == "tea"
    assert secret not in cleaned["items"][0]["note"]


@_MANY
@given(st.text(max_size=200))
def test_any_text_is_taken(text: str) -> None:
    cleaned = redact(text, _ALL)
    assert cleaned == text or "<" in cleaned


@_MANY
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda part: st.lists(part) | st.dictionaries(st.text(), part),
        max_leaves=8,
    )
)
def test_json_that_identifies_nobody_keeps_its_form(value: object) -> None:
    text = json.dumps(value)
    assert redact(text, build_rules(_settings())) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("mail bob.x@mail.example.de!", "mail <Email>!"),
        ("call +49 30 1234567 or 030/123456.", "call <Phone> or <Phone>."),
        ("(555) 123-4567, 555.123.4567 or 555-1234", "<Phone>, <Phone> or <Phone>"),
        ("pay 12 4111 1111 1111 1111 5 times", "pay 12 <CardNumber> 5 times"),
        ("DE89 3704 0044 0532 0130 00 please", "<Iban> please"),
        ("at 10.0.0.1:80, [2001:db8::7]:80", "at <IpAddress>:80, [<IpAddress>]:80"),
        ("(see https://x.de/a?b=c).", "(see <Url>)."),
        ("www.example.com, example.com/menu", "<Url>, <Url>"),
        ('{"phone": 4930123456789, "table": 8}', '{"phone": "<Phone>", "table": 8}'),
        ("call +41\u200b79\u200b123\u00ad45\u200b67 é", "call <Phone> é"),
        ("bob\uff20example.de, b@ex\u2060ample.de", "<Email>, <Email>"),
        ("\uff2393\uff280 \uff23\uff28930076 2011 6238 5295 7", "\uff2393\uff280 <Iban>"),
        ("bob%40example.de bob&#64;example.de", "<Email> <Email>"),
        (r'{"mail":"bob\u0040example.de","table":8}', '{"mail":"<Email>","table":8}'),
    ],
)
def test_examples_of_each_kind(text: str, cleaned: str) -> None:
    assert redact(text, _ALL) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "two teas to table 17 on 2024-05-06 12:30",
        "06.05.2024 at 11:15:30, order 12345678",
        "3.14159265358979 and 0.123456789",
        "std::vector<int> x; 1.2.3",
        "4111 1111 1111 1112",
        "za\u200dn\u200cje: cr\u00e8me br\u00fbl\u00e9e \U0001f468\u200d\U0001f373 2 m\u00b2",
        '{"intent":"order","table":8,"items":[{"name":"bagel","qty":2}]}',
    ],
)
def test_what_identifies_nobody_stays(text: str) -> None:
    assert (
        redact(text, build_rules(_settings(redact=("Email", "Iban", "CardNumber", "IpAddress", "Url"))))
        == text
    )
    if "4111" not in text:
        assert redact(text, _ALL) == text


def test_only_the_kinds_that_are_asked_for() -> None:
    text = "bob@example.de at 10.0.0.1"
    assert redact(text, build_rules(_settings(redact=("IpAddress",)))) == "bob@example.de at <IpAddress>"
    assert redact(text, build_rules(_settings())) == text


def test_patterns_of_ones_own() -> None:
    redactor = Redactor(_settings(r"customer \d+", "x*", redact=("Email",)))
    assert redactor.apply(["customer 17, customer", "bob@a.de"]) == ["<Redacted>, customer", "<Email>"]
    assert redactor.apply([]) == []


def test_overlapping_finds_leave_nothing_between() -> None:
    rules = build_rules(_settings(r"\d{4}", r"bob@a", redact=("CardNumber", "Email")))
    assert redact("378282246310005 bob@a.de", rules) == "<CardNumber> <Email>"


def test_a_pattern_that_takes_for_ever_keeps_nothing() -> None:
    redactor = Redactor(_settings(r"(a+)+$"))
    with pytest.raises(RedactionError) as caught:
        redactor.apply([f"{'a' * 60}!"])
    assert "aaa" not in str(caught.value)
    assert redactor.apply(["b aaa"]) == ["b <Redacted>"]


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "[z-a]"])
def test_what_is_no_pattern_is_named(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"patterns\[1\] is no regular expression"):
        build_rules(_settings("a", pattern))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="'Name', which is not one of Email, Phone"):
        build_rules(_settings(redact=("Name",)))


@pytest.mark.parametrize("part", ["1 ", "ab12", "ab12 ", "a.", "@", "a-", ":", "+1 ", "11 ", "http", "a1+."])
def test_time_grows_with_the_text_alone(part: str) -> None:
    """CPU time, with room for a slow machine: what grows faster takes minutes."""
    began = time.process_time()
    redact(part * (65_536 // len(part)), _ALL)
    assert time.process_time() - began < 15


def test_addresses_of_all_kinds_are_addresses() -> None:
    for shown in ("::ffff:10.0.0.1", "fe80::1", "::1", "1:2:3:4:5:6:7:8"):
        ipaddress.ip_address(shown)
        assert redact(f"from {shown}.", _ALL) == "from <IpAddress>."
