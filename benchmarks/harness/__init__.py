"""`make bench`: how fast a served model is, measured so that it can be believed and compared later.

In the order in which a run meets them: options are what was typed, commands what is done with it,
running a run from its first check to its result.

Asked: workloads say what (tokens counts it), schedule when, sweep which loads; targets where (deploying
starts it). clients starts the processes that ask, messages is what is said to them; client is such a
process, loop what it waits with, asking a request in it, http1 and answers read what comes back.

Measured: records are what came back, sampling what the machine did meanwhile, environment where it was.
measures is what it means (noise, steady, curve, planner, trust beside it), result the file, summary its
figures under vLLM's names; runs, compare and paired set results and targets side by side, report is what
one looks at.

ceiling and against_vllm measure the harness itself.
"""
