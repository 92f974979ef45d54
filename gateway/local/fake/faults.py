"""How a fault changes the sending of a reply, as a table.

| fault | a stream | a plain body |
|---|---|---|
| reset_before_first_byte | TCP reset before the status line | the same |
| reset_mid_stream | half of the deltas, then a TCP reset | half of the body, then a TCP reset |
| stall | half of the deltas, then silence for at most 120 s | half of the body, then silence |
| error_event | half of the deltas, then the format's error; a clean end | status 200 with the error as the body |
| truncated | all deltas, then a clean end without finish, usage or end marker | half of the body, then a close |

`status`, `slow_first_byte`, the usage faults, `huge_line` and the gzip faults are not about cutting; the server, the
answer and the sender look at them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from gateway.local.fake.directive import Directive, Fault
from gateway.local.fake.reply import Reply, body_reply

STALL_MAX_S = 120


class Ending(Enum):
    """What follows the last delta that is sent."""

    TAIL = auto()
    RESET = auto()
    STALL = auto()
    ERROR = auto()
    NOTHING = auto()


@dataclass(frozen=True, slots=True)
class Course:
    """How much of a reply goes out (`deltas` of them) and how it ends."""

    deltas: int
    ending: Ending


_HALFWAY = {
    "reset_mid_stream": Ending.RESET,
    "stall": Ending.STALL,
    "error_event": Ending.ERROR,
}


def course(reply: Reply, fault: Fault) -> Course:
    """Halfway is rounded up, so that at least one delta goes out where there is one."""
    if fault.name in _HALFWAY:
        return Course((reply.delta_count + 1) // 2, _HALFWAY[fault.name])
    return Course(reply.delta_count, Ending.NOTHING if fault.name == "truncated" else Ending.TAIL)


def under_fault(reply: Reply, fault: Fault) -> tuple[Reply, Course]:
    """The reply to send, and how. Of a plain body `error_event` leaves only the error, complete."""
    if fault.name == "error_event" and reply.error and not reply.stream:
        failed = body_reply(reply.error, reply.content_type, status=reply.status)
        return failed, course(failed, Fault())
    return reply, course(reply, fault)


def compresses(directive: Directive, accept_encoding: str) -> bool:
    """Whether the body goes out as gzip: asked for by the directive, and allowed by the client or forced."""
    if directive.parsed_fault.name == "gzip_always":
        return True
    wanted = directive.encoding == "gzip" or directive.parsed_fault.name == "gzip"
    return wanted and _accepts_gzip(accept_encoding)


def _accepts_gzip(accept_encoding: str) -> bool:
    for item in accept_encoding.lower().split(","):
        name, _, parameters = item.partition(";")
        if name.strip() in ("gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0")
    return False
