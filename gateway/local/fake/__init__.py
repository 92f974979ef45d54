"""The fake provider: one server that answers as OpenAI, Anthropic, Gemini and Cohere do, and misbehaves on request.

A request's journey, and the module of each step:

    server.py     reads it, routes it by path (whatever the Host), keeps a record of it       (the only I/O)
    call.py       the request as a value; multipart and compressed bodies
    directive.py  how the caller steers the answer: `[[fake ...]]` in the text, or the x-fake-provider header
    answer.py     the words, ids and usage: functions of the request alone
    chat.py, completions.py, responses.py, anthropic.py, gemini.py, cohere.py, media.py    the wire formats
    realtime.py   the same for a WebSocket: OpenAI's realtime sessions, with simple turn detection
    reply.py      what a format hands back: a body, or the head, deltas and tail of a stream
    faults.py     how a fault changes the sending of a reply
    sending.py    writes a reply at its pace, compressed or cut short
    records.py    what was seen, for GET /_fake/requests
    replay.py     instead of all that: recorded exchanges, byte for byte

Nothing here is used by a gateway in production.
"""
