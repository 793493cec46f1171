"""Which samples a step gets, and which rank gets which of them: arithmetic, without a file of the data."""
