"""Obol beside nginx and a bare aiohttp pass-through, in one run on one machine (`make bench`).

    measure.py      the four measurements
    figures.py      what they add up to, the floors, the table
    __main__.py     starts the servers, interleaves the rounds, prints and writes

CPU time a request is compared, not requests a second: on a small machine the client and the provider take part of the
cores, and CPU time depends less on that. Everything but the server that is measured runs on the other cores.
"""
