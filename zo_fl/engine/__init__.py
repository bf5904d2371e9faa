"""One federated round and all that it is made of; imports no other room of ``zo_fl``."""
