"""The story that `tools/quickstart` shows: a real model keeps its context in kvtier, decodes on a
budget, and has it back after kill -9. `python -m kvtier.story --help`; every figure is measured in
the run that prints it.

Three processes: __main__ (no model) starts `decode` (plain transformers, then kvtier; ends with
SIGKILL to the daemon) and then `resume` (a new process that finds the context again, three times),
and makes the table and the picture.
"""
