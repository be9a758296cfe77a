"""`make bench-gateway`: the gateway beside other gateways, in one run, on the same engine and load.

    engine.c, load.c    the synthetic engine and the load generator
    programs.py         compiles them; environments of contenders that come from PyPI
    machine.py          CPU time, memory, and who else was using the machine
    contenders.py       how each gateway is started
    worker.py           how ours is, with the control that it talks to
    measures.py         what is measured, and the rounds
    report.py           medians, the bounds, the table

What the figures mean is in docs/gateway-speed.md.
"""
