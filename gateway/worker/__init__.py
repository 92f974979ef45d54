"""The background worker: loops that carry journals to PostgreSQL, end dead gateways' holds and apply credit.

    main        connects, runs the loops, flushes a last time at SIGTERM
    flusher     which entries of a journal are due, exactly once:  cursor -> read -> record -> commit -> trim
    record      what one batch writes, in the flusher's transaction
    charged     the request rows and hourly sums of a batch (pure)
    partitions  months of `requests`, made ahead
    reaper      holds past their expiry
    healer      wallets that Redis lost or has in an older state
    grants      credit that is owed

Any number of workers may run: cursors are locked row by row, scripts and grants are idempotent.
"""
