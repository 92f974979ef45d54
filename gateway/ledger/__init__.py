"""Live wallets in Redis: keys, scripts, the coalescing connection, one typed method a script, the journal."""
