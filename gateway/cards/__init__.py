"""Cards: the only package that talks to a card processor. `contract` says what it can be asked."""
