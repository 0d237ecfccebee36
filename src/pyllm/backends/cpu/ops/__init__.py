"""Rules of ops: each op's entries of the table. `emit(lowering, node, op)` computes the value of `node`."""
