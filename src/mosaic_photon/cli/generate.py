"""`mosaic-photon generate`: text from a checkpoint or an exported folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mosaic_photon.cli.terminal import check_text
from mosaic_photon.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", metavar="CHECKPOINT_OR_EXPORT",
        help="a checkpoint, a folder of them, or a folder that `mosaic-photon export` wrote (default: the job's newest)"
    )  # fmt: skip
    add("--job", required=True, metavar="JOB.toml", help="job config that says which model this is")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", metavar="TEXT", help="what the text begins with")
    prompts.add_argument("--prompts", metavar="FILE", help="a prompt a line")
    add(
        "--max-new-tokens", type=int, default=100, metavar="N", help="the end token may end a text before (default 100)"
    )
    add("--temperature", type=float, default=1.0, metavar="T", help="0: the likeliest token, always (default 1)")
    add("--top-p", type=float, default=1.0, metavar="P",
        help="of the likeliest tokens only those that share P of the probability (default 1)")  # fmt: skip
    add("--greedy", action="store_true", help="the likeliest token, always")
    add("--seed", type=int, default=0, metavar="N", help="of the sampling of each prompt (default 0)")
    add("--json", action="store_true", help="print a JSON object a prompt: prompt, text, tokens")


def run(args: argparse.Namespace) -> int:
    from mosaic_photon.use.checkpoint import job_model
    from mosaic_photon.use.generate import Sampling, encode, generate
    from mosaic_photon.use.opened import open_in_transformers

    sampling = Sampling(args.max_new_tokens, 0 if args.greedy else args.temperature, args.top_p, args.seed)
    sampling.check()
    check_text("--prompt", args.prompt or "")
    prompts = [args.prompt] if args.prompts is None else read_prompts(args.prompts)
    from transformers import TextStreamer

    opened = open_in_transformers(job_model(args.job), args.model)
    model, tokenizer = opened.model, opened.tokenizer
    for ids, prompt in [(encode(model, tokenizer, prompt), prompt) for prompt in prompts]:
        if args.json:
            new = generate(model, tokenizer, ids, sampling)
            text = tokenizer.decode(new, skip_special_tokens=True)
            print(json.dumps({"prompt": prompt, "text": text, "tokens": new}), flush=True)
            continue
        print(prompt, end="", flush=True)
        generate(model, tokenizer, ids, sampling, TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True))
    return 0


def read_prompts(path: str) -> list[str]:
    """The file's lines but for empty ones. Raises ConfigError: it cannot be read, or has none."""
    try:
        prompts = [line for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {path!r} cannot be read: {error}.") from error
    if not prompts:
        raise ConfigError(f"--prompts {path!r} has no prompt: write one a line.")
    return prompts
