"""What providers and their clients say, read as facts. Pure: bytes in, values out; no I/O, no clock.

One module a wire format. `formats.py` maps a format's name (as in `config/providers.toml`) to its reader.
The contract every format keeps is in `contract.py`.
"""
