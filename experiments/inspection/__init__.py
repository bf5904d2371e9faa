"""A look into configs and runs that takes JAX: client costs, states from a ledger, a diagnosis."""
