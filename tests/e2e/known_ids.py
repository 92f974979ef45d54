"""A hook of schemathesis: where a call names something, it is mostly something that exists.

`KNOWN_IDS` is JSON: ids by the resource in a path, and under `fields` what to send at a path.
"""

from __future__ import annotations

import json
import os
import re
from itertools import count
from typing import Any

import schemathesis

_KNOWN = json.loads(os.environ["KNOWN_IDS"])
_FIELDS = _KNOWN.get("fields", {})
_RESOURCE = re.compile(r"^/(?:v1|manage|v1/manage)/([a-z_-]+)/\{id\}(?!/archive)")
_NAMES = re.compile(r"(customer|connection|product|meter|plan|subscription_config|reference)(_id|_slug|_secret)$")
_CALLS = count()
MADE_UP_EVERY = 4


@schemathesis.hook
def before_call(_: Any, case: Any, __: Any) -> None:
    """What ends something keeps the ids that were made up: what exists is to last."""
    if next(_CALLS) % MADE_UP_EVERY == 0 or case.operation.method.upper() == "DELETE":
        return
    found = _RESOURCE.match(case.operation.path)
    if found and (known := _KNOWN.get(found[1].replace("-", "_"))):
        case.path_parameters["id"] = known
    fields = _FIELDS.get(f"{case.operation.method.upper()} {case.operation.path}")
    given = case.query if case.operation.method.upper() == "GET" else case.body
    if fields and isinstance(given, dict):
        for name in [name for name in given if _NAMES.match(name)]:
            del given[name]
        given.update(fields)
