"""What the bench scripts share.

`brokers` starts and stops them, `perf` runs the load generator, `wire` is a small client, `machine`
knows processes and the machine, `figures` keeps what was measured and makes tables of it, `plots`
draws, `scenarios` says what scripts/bench measures, `instructions` counts, `document` writes.

Only Python's standard library is used. Every wait has a limit, and whatever was started is stopped.
"""
