"""Phone numbers, and the codes that prove them. `contract` says what can be asked."""
