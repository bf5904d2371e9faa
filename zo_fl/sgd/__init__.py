"""First-order methods: clients back-propagate and send what their weights have changed by."""
