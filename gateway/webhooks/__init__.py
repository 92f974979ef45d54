"""Delivers what the outbox holds (gateway/billing/outbox.py): claimed, written, signed, sent, tried again, given up.

Any number of workers may do this at once: PostgreSQL hands out the claims, and takes them back from the dead.
"""
