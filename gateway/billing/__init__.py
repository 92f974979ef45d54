"""Who pays, for what, how much: principals, prices of calls, plans, collection."""
