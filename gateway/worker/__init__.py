"""The background worker: loops that carry journals to PostgreSQL, end dead gateways' holds and apply credit.

    main        connects, runs the loops, flushes a last time at SIGTERM
    flusher     which entries of a journal are due, exactly once:  cursor -> read -> record -> commit -> trim
    record      what one batch writes, in the flusher's transaction
    charged     the request rows and hourly sums of a batch (pure)
    reaper      holds past their expiry
    healer      wallets that Redis lost or has in an older state
    cycles      subscriptions whose cycle has ended: the next one begins, and a turn is owed to the wallet
    resets      tier counters of customers without a subscription, monthly
    grants      credit and turns that are owed

Any number of workers may run: cursors and subscriptions are locked row by row; scripts, grants, turns are idempotent.
"""
