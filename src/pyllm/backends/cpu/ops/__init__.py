"""Rules of ops: how each becomes entries of the table. `emit(lowering, node, op)` computes the value of `node`."""
