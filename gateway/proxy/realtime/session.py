"""A session's two directions, side by side, message by message as they come; and how it ends.

What the client says is passed on once there is a hold for whatever may follow from it; what the provider says once it
is covered. Whoever does not read is not read from: nothing is kept but the message on its way. Pings, pongs and close
codes pass like all else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import NamedTuple

from aiohttp import ClientWebSocketResponse, WebSocketError, WSCloseCode, WSMsgType, web

from gateway.billing.spend_keys import NOT_ALLOWED
from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.proxy.call import Ending
from gateway.proxy.masking import masked
from gateway.proxy.realtime.calls import SessionCalls, unpaid
from gateway.proxy.realtime.responses import Responses, Turn
from gateway.proxy.realtime.transcripts import Transcripts
from gateway.proxy.rolling import LEDGER_WAIT_S
from gateway.wire.openai_realtime import (
    CREATE,
    HARMLESS,
    ClientEvent,
    ServerEvent,
    cancel_event,
    client_event,
    error_event,
    server_event,
    session_settings,
)

LOG = logging.getLogger("obol.realtime")
LOOK_S = 0.25
POLL_S = 0.05
RETRY_S = 0.5
CLOSE_S = 2.0
"""For the other side's close frame, at each end."""
REASON_MAX_BYTES = 123
"""Of a close frame."""
CANCELLED_WAIT_S = 5.0
"""How long a provider has to say what a response that we cancelled used, where the client is still there."""
TRANSCRIBED = "conversation.item.input_audio_transcription.completed"
TAKES_OR_FREES = ("response.created", "response.done", TRANSCRIBED)
"""Events of the provider after which the next hold is asked for."""
_DATA = (WSMsgType.TEXT, WSMsgType.BINARY)
_ABNORMAL = frozenset({None, 0, 1005, 1006, 1015})
"""Close codes that no frame carries."""

Client = web.WebSocketResponse[bool]
Provider = ClientWebSocketResponse[bool]


class End(NamedTuple):
    """Why a session ends: the close code and reason for whoever is left, and how its responses ended."""

    by: str
    """"client", "provider" or "gateway"."""
    code: int
    reason: bytes
    ending: Ending


class Session:
    """One client, one provider. `run` it once."""

    def __init__(
        self, calls: SessionCalls, client: Client, provider: Provider, responses: Responses, *, secret: bytes
    ) -> None:
        """`secret`: the installation's own key for the provider, which errors may quote."""
        self._secret = secret
        self._calls = calls
        self._parts = calls.parts
        self._client = client
        self._provider = provider
        self._responses = responses
        self._conversation = responses.conversation
        self._transcripts = Transcripts(calls, self._conversation)
        self._client_gone = False
        self._over = False
        """What is under way is being ended, and whatever still begins."""
        self._described = False
        self._refused: End | None = None
        """There is no money: the session ends when what is under way has."""
        self._refused_at_s = 0.0
        self._active_at_s = self._now()

    async def run(self) -> None:
        """Until either side closes, a limit is reached or the gateway drains. Everything is settled when it returns."""
        reading = asyncio.create_task(self._from_provider(), name="realtime: provider")
        others = [
            asyncio.create_task(self._from_client(), name="realtime: client"),
            asyncio.create_task(self._watch(), name="realtime: clock"),
        ]
        tasks = [reading, *others]
        end = End("gateway", WSCloseCode.GOING_AWAY, b"the gateway is shutting down", "cancelled")
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            end = next(task for task in tasks if task in done).result()
            self._client_gone = end.by == "client"
            await _cancelled(others)
            if end.by != "provider":
                await self._hear_out(reading, end)
        except Exception:
            LOG.exception("a session failed inside the gateway")
            end = End("gateway", WSCloseCode.INTERNAL_ERROR, b"the gateway failed on this session", "cancelled")
        finally:  # a second cancellation in the middle of this would leave holds that are renewed for ever
            await asyncio.shield(self._parts.background.start(self._finish(tasks, end), "end a session"))

    async def _finish(self, tasks: list[asyncio.Task[End]], end: End) -> None:
        """Settle what is left, give back what was not taken, and only then close."""
        await _cancelled(tasks)
        try:
            await self._responses.cut_off(end.ending)
            await self._transcripts.cut_off(end.ending)
        finally:
            self._responses.release()
            self._transcripts.release()
        code = WSCloseCode.INTERNAL_ERROR if end.code in _ABNORMAL else end.code
        await asyncio.gather(
            _close(
                self._provider, WSCloseCode.OK if end.by == "client" and end.code in _ABNORMAL else code, end.reason
            ),
            _close(self._client, code, end.reason),
        )

    async def _hear_out(self, reading: asyncio.Task[End], end: End) -> None:
        """Have the responses under way ended, and wait for what the provider says that they used."""
        self._over, settings, self._responses.ending = True, self._parts.settings, end.ending
        limit_s = settings.client_gone_drain_s if end.by == "client" else CANCELLED_WAIT_S
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(limit_s):
                for response_id in list(self._responses.turns):
                    await self._to_provider(cancel_event(response_id))
                while self._under_way() and not reading.done():
                    await asyncio.wait({reading}, timeout=POLL_S)

    def _under_way(self) -> bool:
        return bool(self._responses.turns or self._responses.asked or self._transcripts.pending)

    # -- from the client

    async def _from_client(self) -> End:
        while True:
            message = await self._client.receive()
            self._active_at_s = self._now()
            try:
                if message.type in _DATA:
                    if end := await self._take(bytes(message.data), message.type):
                        return end
                elif message.type is WSMsgType.PING:
                    await self._provider.ping(message.data)
                elif message.type is WSMsgType.PONG:
                    await self._provider.pong(message.data)
                else:
                    return self._closed(message.type, message.data, message.extra, "client")
            except ConnectionError:
                await asyncio.Event().wait()  # the provider is gone: whoever reads from it says how

    async def _take(self, data: bytes, kind: WSMsgType) -> End | None:
        """Pass a message of the client on, once there is a hold for what may follow from it."""
        event = client_event(data)
        self._conversation.sent(event, len(data))
        try:
            self._check(event)
            if event.type not in HARMLESS:
                await self._ready(event)
        except (ObolError, LedgerAway) as error:
            return await self._refuse(_told(error), event)
        await self._provider.send_frame(data, kind)
        return None

    def _check(self, event: ClientEvent) -> None:
        """Raise ObolError for a response that is asked for as this gateway ends, and for a session that would be
        transcribed by a model that cannot be charged for, or by one that cannot be read."""
        if event.type == CREATE and self._parts.draining:
            raise ObolError("shutting_down", "this gateway is shutting down; connect again", retry_after_s=1)
        if event.unread and event.type.endswith("session.update"):
            raise ObolError("invalid_request", "the session has too many values to be read", param="session")
        if event.session is None:
            return
        model = session_settings(event.session).transcription_model
        if model is not None:
            self._calls.check_model(model)
            self._transcripts.describe(model)

    async def _ready(self, event: ClientEvent) -> None:
        """Wait for the holds, as long as that can help. Raise ObolError or LedgerAway."""
        asks, until_s = event.type == CREATE, self._now() + LEDGER_WAIT_S
        while True:
            self._responses.freed.clear()
            try:
                await self._transcripts.ready()
                await self._responses.ready(asks=asks)
                return
            except (ObolError, LedgerAway) as error:
                if self._responses.turns:  # what is under way may hold what there is
                    until_s = self._now() + LEDGER_WAIT_S
                if asks or self._now() > until_s or self._hopeless(error):
                    raise
            with suppress(TimeoutError):
                await asyncio.wait_for(self._responses.freed.wait(), RETRY_S)

    def _hopeless(self, error: ObolError | LedgerAway) -> bool:
        """Waiting would not help."""
        return isinstance(error, ObolError) and error.retry_after_s is None and not self._responses.turns

    async def _refuse(self, error: ObolError, event: ClientEvent) -> End | None:
        """The client's event is not passed on. Where no event can be any more, the session ends."""
        self._parts.metrics.refusals.labels(error.code).inc()
        await self._to_client(error_event(error, event.event_id))
        if event.type == CREATE and not (unpaid(error) and not self._responses.turns):
            return None
        if event.session is not None and error.code in ("forward_model_not_supported", NOT_ALLOWED):
            return None
        return _unpaid_end(error)

    # -- from the provider

    async def _from_provider(self) -> End:
        while True:
            message = await self._provider.receive()
            self._active_at_s = self._now()
            try:
                if message.type in _DATA:
                    data = bytes(message.data)
                    event = server_event(data)
                    if await self._hear(event):
                        await self._to_client(self._masked(data) if event.type == "error" else data, message.type)
                    if event.type in TAKES_OR_FREES:
                        await self._prepare()
                elif message.type is WSMsgType.PING:
                    await self._client.ping(message.data)
                elif message.type is WSMsgType.PONG:
                    await self._client.pong(message.data)
                else:
                    return self._closed(message.type, message.data, message.extra, "provider")
            except ConnectionError:
                self._client_gone = True  # whoever reads from it says how
            if self._refused is not None and not self._under_way():
                return self._refused

    async def _hear(self, event: ServerEvent) -> bool:
        """What the provider says, as far as it costs money; False: it is not passed on."""
        response_id, kind = event.of_response, event.type
        if not isinstance(kind, str):
            return True
        if kind == "response.done" and response_id is not None:
            await self._responses.done(response_id, event)
        elif response_id is not None:
            if self._begins(response_id, kind):
                await self._begin(response_id, event)
            return kind == "response.created" or await self._produce(response_id, kind, event)
        else:
            await self._note(kind, event)
        return True

    def _begins(self, response_id: str, kind: str) -> bool:
        """A response is announced, or heard of first by what it produced."""
        return (kind == "response.created" or kind.endswith(".delta")) and not self._responses.knows(response_id)

    async def _begin(self, response_id: str, event: ServerEvent) -> None:
        turn = await self._responses.begin(response_id, event)
        if turn.cut is not None:
            await self._cancel(response_id, turn.cut)
        elif self._over:
            await self._to_provider(cancel_event(response_id))

    async def _note(self, kind: str, event: ServerEvent) -> None:
        """What is of no response."""
        if kind in ("session.created", "session.updated") or kind.startswith("transcription_session."):
            self._describe(event, told_first=not self._described)
        elif kind == "input_audio_buffer.committed":
            self._conversation.committed()
            self._transcripts.committed()
        elif kind == TRANSCRIBED:
            await self._transcripts.completed(event)
        elif kind == "conversation.item.input_audio_transcription.failed":
            self._transcripts.failed()
        elif kind == "error":
            self._responses.not_begun()

    def _describe(self, event: ServerEvent, *, told_first: bool) -> None:
        settings = session_settings(event.session)
        self._responses.describe(settings)
        if told_first:
            self._described = True
            self._conversation.began(settings)
        else:
            self._conversation.describe(settings)
        if settings.transcription_model is not None or not told_first:
            self._transcripts.describe(settings.transcription_model)

    async def _produce(self, response_id: str, kind: str, event: ServerEvent) -> bool:
        turn = self._responses.turns.get(response_id)
        if turn is None or not kind.endswith(".delta"):
            return turn is None or turn.cut is None
        if turn.cut is not None:
            return False
        if not turn.call.first_byte_at:
            turn.call.first_byte_at = time.perf_counter()
        turn.produced.take(event)
        turn.heard = True
        return not await self._exhausted(response_id, turn)

    async def _exhausted(self, response_id: str, turn: Turn) -> bool:
        """Whether the hold of a response is used up; then it is cancelled."""
        refusal = await self._responses.cover(turn)
        if refusal is not None:
            await self._cancel(response_id, refusal)
        return turn.cut is not None

    async def _cancel(self, response_id: str, why: ObolError) -> None:
        """Whoever does not read is not waited for: the clock is, by all else."""
        self._refuse_more(why)
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._to_provider(cancel_event(response_id))
                await self._to_client(error_event(why))

    def _refuse_more(self, why: ObolError) -> None:
        if self._refused is None:
            self._refused, self._refused_at_s = _unpaid_end(why), self._now()

    async def _prepare(self) -> None:
        """A hold for what the provider may begin by itself. Where there is no money for one, and nothing under way that
        could give some back, the session ends."""
        if self._client_gone or self._parts.draining:
            return
        try:
            await self._responses.ready()
            await self._transcripts.ready()
        except LedgerAway:
            pass  # asked for again before the client is heard
        except ObolError as error:
            if unpaid(error) and not self._under_way() and self._refused is None:
                await self._to_client(error_event(error))
                self._refuse_more(error)

    # -- time

    async def _watch(self) -> End:
        settings = self._parts.settings
        began_s = before_s = progress_s = self._now()
        while True:
            await asyncio.sleep(LOOK_S)
            now_s = self._now()
            if self._parts.draining and not self._under_way():
                return End("gateway", WSCloseCode.GOING_AWAY, b"the gateway is shutting down", "cancelled")
            if self._refused is not None and now_s - self._refused_at_s > CANCELLED_WAIT_S:
                return self._refused  # the provider does not say what it cancelled
            if now_s - self._active_at_s > settings.realtime_idle_timeout_s:
                return self._limit("realtime_idle_timeout_s", "nothing was sent for too long", "client_stalled")
            if now_s - began_s > settings.realtime_session_timeout_s:
                return self._limit(
                    "realtime_session_timeout_s", "the session has lasted as long as it may", "upstream_timeout"
                )
            await self._think(round((now_s - before_s) * 1000))
            if now_s - progress_s > settings.progress_interval_ms / 1000:
                progress_s = now_s
                with suppress(LedgerAway):
                    self._responses.write_progress()
            before_s = now_s

    async def _think(self, elapsed_ms: int) -> None:
        """Silence may be reasoning, which costs."""
        silent = self._responses.pass_time(elapsed_ms)
        for response_id, turn in list(self._responses.turns.items()):
            if turn in silent and turn.cut is None:
                await self._exhausted(response_id, turn)

    def _limit(self, name: str, why: str, ending: Ending) -> End:
        self._parts.metrics.limit_reached(name)
        return End("gateway", WSCloseCode.GOING_AWAY, why.encode(), ending)

    def _closed(self, kind: WSMsgType, data: object, extra: object, by: str) -> End:
        """How a side ended."""
        ending: Ending = "client_gone" if by == "client" else "truncated"
        if kind is WSMsgType.CLOSE and isinstance(data, int):
            reason = self._masked(extra.encode()) if isinstance(extra, str) else b""
            return End(by, WSCloseCode.OK if data in _ABNORMAL else data, reason[:REASON_MAX_BYTES], ending)
        if isinstance(data, WebSocketError) and data.code == WSCloseCode.MESSAGE_TOO_BIG:
            self._parts.metrics.limit_reached("realtime_max_message_bytes")
            return End(by, data.code, b"a message is larger than realtime_max_message_bytes", ending)
        return End(by, WSCloseCode.ABNORMAL_CLOSURE, b"the provider's connection was lost", ending)

    def _masked(self, data: bytes) -> bytes:
        return masked(data, self._secret)

    async def _to_client(self, data: bytes, kind: WSMsgType = WSMsgType.TEXT) -> None:
        if not self._client_gone:
            try:
                await self._client.send_frame(data, kind)
            except ConnectionError:
                self._client_gone = True

    async def _to_provider(self, data: bytes) -> None:
        await self._provider.send_frame(data, WSMsgType.TEXT)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _told(error: ObolError | LedgerAway) -> ObolError:
    if isinstance(error, ObolError):
        return error
    return ObolError("ledger_unavailable", "the ledger is not reachable; nothing was sent", retry_after_s=1)


def _unpaid_end(error: ObolError) -> End:
    """The session ends for what `error` says."""
    code = WSCloseCode.TRY_AGAIN_LATER if error.status == 503 else WSCloseCode.POLICY_VIOLATION
    reason = f"{error.code}: {error.message}".encode()[:REASON_MAX_BYTES]
    return End("gateway", code, reason, "hold_lost" if error.status == 503 else "balance_exhausted")


async def _cancelled(tasks: list[asyncio.Task[End]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _close(side: Client | Provider, code: int, reason: bytes) -> None:
    """Say goodbye, unless it has been said. What comes of it concerns nobody any more."""
    with suppress(Exception):
        async with asyncio.timeout(CLOSE_S):
            await side.close(code=code, message=reason)
