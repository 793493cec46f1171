"""What a user writes: the job's tables, the data config file, loading them with flags, and every check of a job."""
