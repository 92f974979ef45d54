"""Bodies come out of JavaScript's JSON.parse and JSON.stringify as they went in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.js_json import stringify

# What node 22 prints for JSON.stringify(JSON.parse(text)).
AS_NODE_WRITES = [
    ("1.0", "1"),
    ("-0.0", "0"),
    ("1e21", "1e+21"),
    ("1e20", "100000000000000000000"),
    ("1.5e-7", "1.5e-7"),
    ("0.000001", "0.000001"),
    ("9007199254740993", "9007199254740992"),
    ("12345678901234567890", "12345678901234567000"),
    ("1e400", "null"),
    ("5e-324", "5e-324"),
    ("1234.5678", "1234.5678"),
    ('{"b":1,"10":2,"2":3,"01":4,"4294967295":5,"4294967294":6}', None),
    ('"\\u00e9\\u2028\\u007f\\/"', '"é\u2028\x7f/"'),
    ('"\\u001f\\b\\n\\""', '"\\u001f\\b\\n\\""'),
    ('[true,false,null,"",{},[]]', '[true,false,null,"",{},[]]'),
]


@pytest.mark.parametrize(("text", "written"), AS_NODE_WRITES)
def test_values_are_written_as_node_writes_them(text: str, written: str | None) -> None:
    if written is None:
        written = '{"2":3,"10":2,"4294967294":6,"b":1,"01":4,"4294967295":5}'
    assert stringify(json.loads(text)) == written


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(_json)
def test_what_is_written_stays_as_it_is(value: Any) -> None:
    written = stringify(value)
    assert stringify(json.loads(written)) == written


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="object is not JSON"):
        stringify(object())
