"""Metadata: its three places, the merge, and the limits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import ObolError
from gateway.wire.metadata import parse, validate

HEADER = "X-Lava-Metadata"


def refused(pairs: Any) -> ObolError:
    with pytest.raises(ObolError) as caught:
        validate(pairs)
    assert (caught.value.code, caught.value.status) == ("metadata_invalid", 400)
    return caught.value


def test_none() -> None:
    assert parse([("Host", "x"), ("X-Lava-API-Version", "1"), ("X-Lava-Metadatum", "1")]) == {}


def test_json_header() -> None:
    assert parse([(HEADER, '{"feature": "chat", "Env_2": "pröd"}')]) == {"feature": "chat", "Env_2": "pröd"}


def test_query() -> None:
    assert parse([], '{"feature": "chat"}') == {"feature": "chat"}


def test_pair_headers() -> None:
    headers = [("X-Lava-Metadata-Feature", "chat"), ("x-lava-metadata-Foo-Bar", "1"), ("X-LAVA-METADATA-a_b", "2")]
    assert parse(headers) == {"feature": "chat", "foo_bar": "1", "a_b": "2"}


def test_the_more_specific_place_wins() -> None:
    headers = [("X-Lava-Metadata-C", "pair"), (HEADER, '{"b": "header", "c": "header"}')]
    assert parse(headers, '{"a": "query", "b": "query", "c": "query"}') == {"a": "query", "b": "header", "c": "pair"}


def test_the_limit_holds_for_the_merged_pairs() -> None:
    sixty = json.dumps({f"a{i}": "x" for i in range(60)})
    assert len(parse([(HEADER, sixty)], sixty)) == 60
    with pytest.raises(ObolError, match="120 metadata pairs; at most 100"):
        parse([(HEADER, sixty)], sixty.replace("a", "b"))


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "null", "1", '{"a": "b"} x', "{1: 2}", '{"a":' + "[" * 20_000])
def test_not_an_object(text: str) -> None:
    with pytest.raises(ObolError, match="header x-lava-metadata is not a JSON object"):
        parse([(HEADER, text)])
    with pytest.raises(ObolError, match="query parameter metadata is not a JSON object") as caught:
        parse([], text)
    assert (caught.value.code, caught.value.param) == ("metadata_invalid", "metadata")


def test_bounded_and_given_once() -> None:
    with pytest.raises(ObolError, match="longer than 65536 bytes"):
        parse([(HEADER, '{"a": "' + "x" * 65_536 + '"}')])
    with pytest.raises(ObolError, match="given twice"):
        parse([(HEADER, "{}"), (HEADER.lower(), "{}")])


@pytest.mark.parametrize("name", ["X-Lava-Metadata-", "X-Lava-Metadata-a.b", "X-Lava-Metadata-" + "a" * 256])
def test_bad_header_name(name: str) -> None:
    with pytest.raises(ObolError, match="letters, digits and underscores"):
        parse([(name, "x")])


@pytest.mark.parametrize("value", [1, 1.5, True, None, [], {}, b"x"])
def test_values_are_strings(value: Any) -> None:
    error = refused({"good": "x", "count": value})
    assert "'count'" in error.message
    assert "not a string" in error.message
    assert error.param == "metadata.count"


def test_json_values_are_strings_too() -> None:
    with pytest.raises(ObolError, match=r"'count'.*not a string"):
        parse([(HEADER, '{"count": 1}')])


@pytest.mark.parametrize("key", ["", "a b", "a-b", "ä", "a\n", "a" * 256, 1, None])
def test_bad_keys(key: Any) -> None:
    error = refused({key: "x"})
    assert error.param == "metadata"
    assert len(error.message) < 200


@pytest.mark.parametrize("value", ["", "x" * 256, "a\x00b", "\ud800"])
def test_bad_values(value: str) -> None:
    error = refused({"k": value})
    assert error.param == "metadata.k"
    assert "'k'" in error.message


def test_limits_are_inclusive() -> None:
    pairs = {f"k{i}": "x" for i in range(99)} | {"a" * 255: "ü" * 255}
    assert validate(pairs) == pairs
    assert validate({"k": "line\nbreak"}) == {"k": "line\nbreak"}
    assert "101" in refused({f"k{i}": "x" for i in range(101)}).message


def test_a_copy_is_returned() -> None:
    pairs = {"a": "b"}
    assert validate(pairs) is not pairs
