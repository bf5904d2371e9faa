"""Finished runs read back and compared: tables, pictures and a page. Nothing here runs a model."""
