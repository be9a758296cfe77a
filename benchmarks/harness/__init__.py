"""`make bench`: how fast a served model is, measured so that it can be believed and compared later.

In the order in which a run meets them: workloads say what is asked, schedule when, targets where,
client asks, records are what came back, measures what that means, result the file, report what one looks at.
"""
