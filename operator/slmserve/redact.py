# SPDX-License-Identifier: Apache-2.0
"""Takes out of texts what tells who somebody is, by its form: addresses, numbers, and patterns of one's own.

All rules look at the text as it came; whatever any of them finds goes, as `<Kind>`. In a text that is JSON
the values are looked at, too (an escape may hide one), and what comes out is JSON again. Names and meanings
are not seen. The rules here take time that grows with the text alone; patterns of others may take for ever,
so they run in a process of their own, which has a limit of CPU time: a text that they are not done with is
not kept.
"""

import ipaddress
import json
import re
import resource
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from slmwire.examples import REDACTIONS, ExampleSettings

_CPU_SECONDS: Final = 2
_WALL_SECONDS: Final = 20.0
_MEMORY_BYTES: Final = 1 << 30
_OWN: Final = "Redacted"
_MOST_ROUNDS: Final = 8
_GAP: Final = r" \t\u00a0\u2007\u2009\u202f\-\u2010-\u2015/"
"""What people write between the digits of a number; dots are told apart from those of decimals."""

Span = tuple[int, int]


class RedactionError(Exception):
    """The patterns were not done in time; the message has nothing of a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Finders by the name that takes the place of what they find."""

    finders: tuple[tuple[str, Callable[[str], Iterator[Span]]], ...]

    @property
    def repeated(self) -> "Rules":
        """Those that never find what stands for something."""
        return Rules(finders=tuple(finder for finder in self.finders if finder[0] != _OWN))

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Spans of all rules as (begin, end, name), empty ones left out."""
        plain, places = _seen_by_people(text)
        for name, finder in self.finders:
            for begin, end in finder(text):
                if begin < end:
                    yield begin, end, name
            for begin, end in finder(plain) if plain != text else ():
                if begin < end:
                    yield places[begin], places[end - 1] + 1, name


def _seen_by_people(text: str) -> tuple[str, Sequence[int]]:
    """`text` without letters that nobody sees and with plain ones for wide ones, and where each stands in it.

    Copied from elsewhere, a number may have marks between its digits, and an address a full-width sign.
    """
    if text.isascii():
        return text, range(len(text))
    places = [at for at, letter in enumerate(text) if unicodedata.category(letter) != "Cf"]
    plain = (unicodedata.normalize("NFKC", text[at]) for at in places)
    letters = (new if len(new) == 1 else text[at] for at, new in zip(places, plain, strict=True))
    return "".join(letters), places


def build_rules(settings: ExampleSettings) -> Rules:
    """Raises ValueError that names an unknown kind, or a pattern that is none."""
    finders = []
    for kind in settings.redact:
        if kind not in _FINDERS:
            raise ValueError(f"redact has {kind!r}, which is not one of {', '.join(REDACTIONS)}")
        finders.append((kind, _FINDERS[kind]))
    for number, pattern in enumerate(settings.patterns):
        try:
            finders.append((_OWN, _by_pattern(re.compile(pattern))))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"patterns[{number}] is no regular expression of Python: {error}; correct it"
            ) from None
    return Rules(finders=tuple(finders))


def redact(text: str, rules: Rules) -> str:
    """`text` without what the rules find in it."""
    plain = _redact_plain(text, rules)
    try:
        value = json.loads(text)
        cleaned = _redact_value(value, rules)
        if isinstance(value, (dict, list, str)) and (plain != text or cleaned != value):
            return _as_json(plain, cleaned, compact=": " not in text, rules=rules)
    except (ValueError, RecursionError):
        pass
    return plain


def _as_json(plain: str, cleaned: Any, *, compact: bool, rules: Rules) -> str:
    """`plain` where it says what `cleaned` does: it has the form of the original."""
    try:
        if json.loads(plain) == cleaned:
            return plain
    except (ValueError, RecursionError):
        pass
    separators = (",", ":") if compact else (", ", ": ")
    return _redact_plain(json.dumps(cleaned, ensure_ascii=False, separators=separators), rules)


def _redact_value(value: Any, rules: Rules) -> Any:
    if isinstance(value, str):
        return _redact_plain(value, rules)
    if isinstance(value, Mapping):
        return {_redact_plain(key, rules): _redact_value(part, rules) for key, part in value.items()}
    if isinstance(value, list):
        return [_redact_value(part, rules) for part in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        shown = str(value)
        cleaned = _redact_plain(shown, rules)
        return value if cleaned == shown else cleaned
    return value


def _redact_plain(text: str, rules: Rules) -> str:
    cleaned = _replace(text, rules)
    # What is gone may have hidden what stood beside it; patterns of others could find our own marks.
    for _ in range(_MOST_ROUNDS):
        before, cleaned = cleaned, _replace(cleaned, rules.repeated)
        if cleaned == before:
            break
    return cleaned


def _replace(text: str, rules: Rules) -> str:
    parts, at = [], 0
    for begin, end, name in _merged(sorted(rules.find(text), key=lambda found: (found[0], -found[1]))):
        parts += [text[at:begin], f"<{name}>"]
        at = end
    return "".join([*parts, text[at:]])


def _merged(found: Sequence[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Spans that overlap as one, by the name of the first."""
    last: tuple[int, int, str] | None = None
    for begin, end, name in found:
        if last is None or begin >= last[1]:
            if last is not None:
                yield last
            last = begin, end, name
        else:
            last = last[0], max(last[1], end), last[2]
    if last is not None:
        yield last


def _by_pattern(*patterns: re.Pattern[str]) -> Callable[[str], Iterator[Span]]:
    def find(text: str) -> Iterator[Span]:
        for pattern in patterns:
            for match in pattern.finditer(text):
                yield match.span()

    return find


_EMAIL: Final = re.compile(r"""[^\s@<>"(),:;\[\]\\]{1,64}(?:@|%40|&#64;)(?:[\w-]{1,63}\.){1,20}[\w-]{2,63}""")
_URL_END: Final = r"""[^\s<>"\\]"""
_URLS: Final = (
    re.compile(rf"[A-Za-z][A-Za-z0-9+.\-]{{1,20}}://{_URL_END}+"),
    re.compile(rf"(?i)(?<![\w.])www\.{_URL_END}+"),
    re.compile(rf"(?<![\w@.-])(?:[\w-]{{1,63}}\.){{1,8}}[A-Za-z]{{2,24}}(?::\d{{1,5}})?/{_URL_END}*"),
)
_DATE: Final = (
    r"(?![12]\d{3}-[01]\d-[0-3]\d(?![\d/-]))"
    r"(?![0-3]?\d[./-][0-3]?\d[./-][12]\d{3}(?![\d/-]))"
)
"""Not where a date begins."""
_ALONE: Final = r"(?<!\d)(?<!\d[.,:])"
_PHONES: Final = (
    re.compile(rf"\+[ ]?\(?\d(?:[{_GAP}.()]{{0,3}}\d){{6,14}}(?!\d)"),
    re.compile(rf"{_ALONE}{_DATE}(?!0[.,]\d)\(?0(?:[{_GAP}.()]{{0,3}}\d){{6,14}}(?!\d)"),
    re.compile(r"(?<!\d)\d{3}-\d{4}(?!\d)"),
    re.compile(r"(?<!\d)\d{3}\.\d{3}\.\d{4}(?!\d)"),
)
_GROUPED: Final = re.compile(rf"{_ALONE}{_DATE}\(?\d{{2,}}(?:[{_GAP}()]{{1,3}}\d{{2,}})*")
_RUN: Final = re.compile(rf"\d(?:[{_GAP}.]{{0,2}}\d)+")
_IBAN_START: Final = re.compile(r"(?<![A-Za-z0-9])(?=[A-Za-z]{2}[0-9]{2})")
_IBAN_GAP: Final = frozenset(" \t\u00a0\u2007\u2009\u202f-")
_V4: Final = re.compile(r"(?<![0-9])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9])")
_V6: Final = re.compile(r"[0-9A-Fa-f:.]{3,}")


def _find_urls(text: str) -> Iterator[Span]:
    for begin, end in _by_pattern(*_URLS)(text):
        yield begin, begin + len(text[begin:end].rstrip(".,;:!?')]}"))


def _find_phones(text: str) -> Iterator[Span]:
    yield from _by_pattern(*_PHONES)(text)
    for match in _GROUPED.finditer(text):
        if 10 <= sum(letter.isdecimal() for letter in match.group()) <= 15:
            yield match.span()


def _find_cards(text: str) -> Iterator[Span]:
    """Whole groups of 13 to 19 digits whose Luhn sum is right, wherever they stand among other digits."""
    for run in _RUN.finditer(text):
        places = [run.start() + at for at, letter in enumerate(run.group()) if letter.isdecimal()]
        digits = [int(text[place]) for place in places]
        for first in range(len(places) - 12):
            if first and places[first] == places[first - 1] + 1:
                continue
            for length in range(min(19, len(places) - first), 12, -1):
                last = first + length - 1
                ends = last + 1 == len(places) or places[last + 1] > places[last] + 1
                if ends and _is_luhn(digits[first : last + 1]):
                    yield places[first], places[last] + 1
                    break


def _is_luhn(digits: Sequence[int]) -> bool:
    doubled = (2 * digit - 9 * (digit > 4) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _find_ibans(text: str) -> Iterator[Span]:
    """The longest beginning of up to 34 letters and digits that ends a word and whose checksum is right."""
    for match in _IBAN_START.finditer(text):
        places: list[int] = []
        at = match.start()
        while at < len(text) and len(places) < 34:
            letter = text[at]
            if letter.isascii() and letter.isalnum():
                places.append(at)
            elif letter not in _IBAN_GAP or text[at - 1] in _IBAN_GAP:
                break
            at += 1
        for count in range(len(places), 14, -1):
            after = places[count - 1] + 1
            inside = after < len(text) and text[after].isascii() and text[after].isalnum()
            if not inside and _is_iban("".join(text[place] for place in places[:count])):
                yield places[0], after
                break


def _is_iban(code: str) -> bool:
    number = "".join(str(int(letter, 36)) for letter in code[4:] + code[:4])
    return int(number) % 97 == 1


def _find_ips(text: str) -> Iterator[Span]:
    for match in _V4.finditer(text):
        if _is_ip(match.group()):
            yield match.span()
    for match in _V6.finditer(text):
        begin, end = match.span()
        if match.group().count(":") < 2 or end - begin > 60:
            continue
        if text[begin - 1 : begin].isalnum() or text[end : end + 1].isalnum():
            continue
        for first, last in ((begin, end), (begin + 1, end), (begin, end - 1), (begin + 1, end - 1)):
            if last - first > 2 and _is_ip(text[first:last]):
                yield first, last
                break


def _is_ip(shown: str) -> bool:
    parts = shown.split(".")
    if len(parts) == 4 and ":" not in shown:
        # Zeros in front are no address to the library, and one to people.
        return all(int(part) < 256 for part in parts)
    try:
        ipaddress.IPv6Address(shown)
    except ValueError:
        return False
    return True


_FINDERS: Final[Mapping[str, Callable[[str], Iterator[Span]]]] = {
    "Email": _by_pattern(_EMAIL),
    "Phone": _find_phones,
    "CardNumber": _find_cards,
    "Iban": _find_ibans,
    "IpAddress": _find_ips,
    "Url": _find_urls,
}
assert set(_FINDERS) == set(REDACTIONS)


class Redactor:
    """Applies settings to texts; for any one thread."""

    def __init__(self, settings: ExampleSettings) -> None:
        """Raises ValueError as `build_rules` does."""
        self._settings = settings
        self._rules = build_rules(settings)

    def apply(self, texts: Sequence[str]) -> list[str]:
        """The texts, redacted; raises RedactionError, and OSError where no process can be started."""
        if not self._settings.patterns:
            return [redact(text, self._rules) for text in texts]
        task = json.dumps({"settings": self._settings.to_json(), "texts": list(texts)})
        try:
            done = subprocess.run(
                [sys.executable, "-m", "slmserve.redact"],
                input=task.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=_WALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RedactionError("patterns took too long") from None
        if done.returncode != 0:
            raise RedactionError("patterns took too long, or too much memory")
        cleaned: list[str] = json.loads(done.stdout)
        return cleaned


def main() -> int:
    """The process of its own: settings and texts from standard input, redacted texts to standard output."""
    from slmserve.sandbox import forbid_dumps
    from slmwire.examples import parse_settings

    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    forbid_dumps()
    task = json.load(sys.stdin)
    rules = build_rules(parse_settings(task["settings"]))
    sys.stdout.write(json.dumps([redact(text, rules) for text in task["texts"]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
