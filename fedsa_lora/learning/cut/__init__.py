"""Split learning: a language model in three parts, both ends at a client and the middle at the server."""
