"""Realtime sessions: WebSockets that speak OpenAI's realtime protocol, metered and paid for response by response.

serve.py        the journey of a session: admitted, held for, connected, closed
dial.py         the WebSocket to the provider: addresses checked and pinned, no redirect followed
session.py      both directions, side by side, and how a session ends
responses.py    a hold ahead of every response that may begin, larger while one speaks, settled when it is done
transcripts.py  the same for what is transcribed of the caller's speech
calls.py        holds, settles and releases the calls of one session
"""
