"""A job of an MPT that Composer's Trainer can be held against: plain AdamW, a constant rate, llm-foundry's labels."""

import jobs

LR, DECAY = 1e-3, 0.1
EPS = 1e-5
"""Above rounding noise, which AdamW would otherwise blow up where the true gradient is 0 (the keys' bias)."""
DATA = jobs.DATA.replace('split = "train"', 'split = "train"\nmax_seq_len = 64')


def job(steps: int, more: str) -> str:
    """The job config, `more` at its end."""
    return (
        jobs.JOB.replace('name = "llama3_mosaic"', 'name = "mpt_mup_mosaic"')
        .replace("dim = 64", "d_model = 64\ntie_word_embeddings = false\nattn_config = {{ rope = true }}")
        .replace("lr = 3e-3", f"lr = {LR}\neps = {EPS}\nweight_decay = {DECAY}\nbeta1 = 0.9\nbeta2 = 0.95")
        .replace("warmup_steps = 2\ntotal_steps = 1000", "warmup_steps = 0\ndecay_ratio = 0.0")
        .replace("steps = 4\n", f"steps = {steps}\n")
    ) + more
