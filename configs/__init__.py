"""Experiments: each file's ``get_config()`` starts from ``base`` and changes what differs."""
