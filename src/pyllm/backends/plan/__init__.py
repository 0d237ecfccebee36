"""What backends plan alike: a program as a graph, ops that are computed at once, their order, and where values lie.

Passes, each tested without a kernel: `Graph` (who computes and reads a value, in which stage), `groups.fuse` (ops that
a backend can compute at once), `Schedule` (the order of groups in each stage), `forms` (types in which readers want a
value), `memory` (live ranges of buffers, and one arena for all).
"""
