"""The serving core: one request from a client's socket to an engine's and back, and nothing else.

A worker is one process (`python -m chutes.gateway`) with one event loop. A request goes through it in a
straight line, without a task, a future or a copy that it does not need:

    client.py     bytes from a client → whole requests              (protocol)
    clients.py    all of these connections: what they share, sweeps, draining
    heads.py      is it a head that came before?                    (pure)
    http.py       a head → facts, strictly                          (pure)
    bodies.py     a body that comes in several reads                (pure)
    chunked.py    chunked bodies: where they end, what is in them   (pure)
    service.py    a request → an answer, a refusal, or an order to forward
      orders.py   what it decides, as data
      access.py   whose key this is                                 (pure)
      routing.py  which chutes and which of their paths             (pure)
      scores.py   in which order the chutes of a list               (pure)
      surface.py  the body as the engine is to get it               (pure)
      answers.py  error objects and the list of models              (pure)
    exchange.py   one order → its turn, attempts on instances, an answer
      account.py  what is kept of it and told once at its end
      surroundings.py  what it sees of its client and its worker
      quota.py    what its key has left of its limits               (pure, on the board)
      waiting.py  whose turn it is when all are busy                (pure)
      balance.py  which instance                                    (pure)
      breaker.py  which instances are left out for now              (pure)
      upstream.py instances, connections to them, who waits for one (protocol)
      relay.py    an engine's bytes → the client's bytes            (pure)
      events.py   what is read in an answer, hidden or added        (pure)
    outbox.py     what a turn of the loop sends, sent at its end    (protocol)
    meter.py      what has ended, told to control in batches
    worker.py     the process: channel to control, listening, draining
    limits.py     every bound on what a stranger may use up, with its reason
    shapes.py     what is read of JSON, as types

A worker serves from memory: control publishes a whole `wire.Table`, and a swap of tables is one
assignment between two requests. What workers must know of each other stands on `chutes/board.py`.

All of this is Python and runs as such; where `chutes/compiled.py` has made machine code of it, that runs.
"""

from chutes import compiled

compiled.use()
