"""Shards on this node: their indexes, fetching and caching them, reading samples and token rows from them."""
