"""muP and CompleteP: the table of factors as pure functions, and the coordinate check."""
