"""Rules of ops: each op's launches. `emit(lowering, node, op)` computes the value of `node`."""
