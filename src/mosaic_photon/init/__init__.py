"""A first job: what this machine can train (`sizes`), on what the user has (`shards`), as two files (`files`)."""
