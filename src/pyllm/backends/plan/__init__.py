"""Planning shared by backends: the graph of a program, fusion, order, and memory.

Passes, each tested without a kernel: `Graph` (producer, readers and stage of each value), `groups.fuse` (ops that a
backend computes as one kernel), `Schedule` (the order of groups in each stage), `forms` (activation dtypes that readers
want), `memory` (live ranges of buffers, and one arena for all).
"""
