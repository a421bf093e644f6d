"""Logs as JSON lines, and metrics for Prometheus, of both sides."""
