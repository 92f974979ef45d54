"""The arithmetic of billing. Pure: no asyncio, no sockets, no databases, no clock."""
