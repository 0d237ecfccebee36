"""Rules of ops: how each becomes launches. `emit(lowering, node, op)` computes the value of `node`."""
