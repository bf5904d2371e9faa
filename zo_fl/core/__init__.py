"""Pure functions that run inside ``jit``, and the types they share; imports no other room."""
