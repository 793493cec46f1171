"""What a job tells of itself: its record in DUMP, and what is made of it.

`record.py` is the format and its reader. They import nothing of torch.
"""
