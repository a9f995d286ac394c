"""Serves a trained or exported model over HTTP: batches of requests, the protocol, limits, metrics, and a page."""
