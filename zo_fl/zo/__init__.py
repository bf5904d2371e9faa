"""Zeroth-order methods: clients send differences of losses, everyone rebuilds the update."""
