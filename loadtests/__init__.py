"""Load tests of Obol, of a peer or of any HTTP provider: a tool for whoever wants to measure, on their own machine.

    plan.py, cli.py    what is to be measured: target, scenario, users, rate, duration; every limit
    scenario.py        the requests of a scenario as prepared bytes
    connection.py      one keep-alive connection and the clock readings of one exchange
    load.py            closed loop (N users) or open loop (a fixed rate) over many connections
    ticker.py          wake-ups finer than the millisecond of an event loop's timers
    client.py          one client process: plan in, one line of figures a second out
    run.py             starts the client processes, merges their figures, shows progress
    histogram.py       log buckets of integers; tally.py: what is counted; result.py: what is concluded
    procfs.py          CPU and memory of a local target, from /proc
    table.py, report.py, charts.py     the result as text and as one HTML file
    provider.py        a fast fake provider to stand behind what is measured
    bench/, peers/     Obol beside nginx and a bare aiohttp pass-through in one run (`make bench`)

The client is our own because the figures need an intended send time for each request (no coordinated omission) and the
arrival time of each streamed chunk, which rate tools do not give. `README.md` has its speed beside wrk's.
"""
