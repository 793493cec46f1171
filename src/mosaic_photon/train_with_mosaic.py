"""Train a TorchTitan model on Mosaic streams: parse, register, build the trainer, train.

    python -m mosaic_photon.train_with_mosaic --config JOB.toml --mosaic-config DATA.toml [-- --TABLE.FIELD=VALUE ...]

Exit codes: 0 done, 1 a mistake in the job (one message) or a failure (a traceback), 128 + n stopped by signal n.
"""

import argparse
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_photon.errors import ConfigError, NotFiniteError, SpikesError

if TYPE_CHECKING:
    from mosaic_photon.job.tables import MosaicJobConfig
    from mosaic_photon.train.loop import MosaicLoop

CONFIGS = "examples/mosaic_photon/configs"
EPILOG = """\
The job's fields, TorchTitan's and ours, go after `--` as --TABLE.FIELD=VALUE and win over the job config:
  ... -- --training.steps=20 --optimizer.lr=1e-3 --metrics.enable_tensorboard=true --mosaic.allow_data_change=true
  ... -- --help        lists all of them
"""


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line at `--`: our options, and the job's flags.

    torchrun swallows a `--` right after the module's name; what then stands first tells that it was there.
    """
    if "--" not in argv and argv and re.match(r"--\w+\.", argv[0]):
        argv = ["--", *argv]
    ours, titan = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(
        prog="python -m mosaic_photon.train_with_mosaic",
        description="Train a TorchTitan model on MosaicML streaming data configured by llm-foundry.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        default=f"{CONFIGS}/mosaic_job.toml",
        metavar="JOB.toml",
        help="job config (default: %(default)s)",
    )
    parser.add_argument(
        "--mosaic-config",
        default=f"{CONFIGS}/mosaic_dataloader.toml",
        metavar="DATA",
        help="data config, TOML or llm-foundry's YAML (default: %(default)s)",
    )
    args, unknown = parser.parse_known_args(ours)
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}; the job's flags go after `--`.")
    return args, titan


def main(argv: list[str] | None = None) -> int:
    """Run a job; returns the exit code."""
    be_one_process()
    try:
        args, titan_flags = parse_arguments(sys.argv[1:] if argv is None else argv)
        from mosaic_photon.job.load import load_job

        job_config = load_job(args.config, args.mosaic_config, titan_flags)
    except ConfigError as error:
        report(error)
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as exit_:  # from --help, or from argparse, which has printed what is wrong
        return 1 if exit_.code else 0
    try:
        return run(job_config, started=process_started()).exit_code
    except SpikesError as error:
        report(f"{error}\n  {command_with(error.flags, sys.argv[1:] if argv is None else argv)}")
        return 1
    except (ConfigError, NotFiniteError) as error:
        report(error)
        return 1
    except KeyboardInterrupt:  # before GracefulStop has taken over
        return 130


def be_one_process() -> None:
    """What torchrun would say, where it has not started this process."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, value)


def command_with(flags: list[str], argv: list[str]) -> str:
    """The command that has started this job with these arguments, torchrun's where it has, and more flags."""
    command = [sys.executable, "-m", "mosaic_photon.train_with_mosaic", *argv]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with suppress(OSError):  # no Linux, or the agent is gone
            agent = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")[:-1]
            command = agent if agent[len(agent) - len(argv) :] == argv else command
    return shlex.join([*command, *([] if "--" in command else ["--"]), *flags])


def report(error: ConfigError | NotFiniteError | str) -> None:
    """Print the message; of several ranks that found the same, one does.

    The store that torchrun's agent keeps tells them; a launcher without one may show a message several times.
    """
    several = os.environ["WORLD_SIZE"] != "1"
    text = f"error{' on rank ' + os.environ['RANK'] if several else ''}: {error}\n"
    from mosaic_photon.report.console import AGENT_WAIT, agent_key, agent_store

    if (store := agent_store()) is None:
        sys.stderr.write(text)
        return
    key = f"{agent_key()}/{error}"
    try:
        if store.add(f"{key}/claims", 1) > 1:
            store.wait([key], AGENT_WAIT)  # when this process ends, torchrun ends the one that is about to say it
            return
        sys.stderr.write(text)
        store.set(key, "")
    except RuntimeError:  # the agent, or the rank that claimed to say it, is gone
        sys.stderr.write(text)


@dataclass(frozen=True)
class Ended:
    """How a job has ended that did not fail."""

    metrics: dict[str, Any] = field(default_factory=dict)
    """What was logged last, by its name."""
    signal: int | None = None
    """The signal that stopped it early."""

    @property
    def exit_code(self) -> int:
        return 0 if self.signal is None else 128 + self.signal


def process_started() -> float:
    """When this process was, in Unix seconds."""
    import psutil

    return psutil.Process().create_time()


def run(
    job_config: "MosaicJobConfig", make_loop: "Callable[..., MosaicLoop] | None" = None, started: float | None = None
) -> Ended:
    """Train one job to its end in this process.

    Args:
        make_loop: makes the loop in the place of `MosaicLoop`, of its arguments.
        started: when the process began with the job, in Unix seconds. None: it keeps no record.
    """
    prepare_process(job_config)

    from mosaic_photon import titan, train_spec
    from mosaic_photon.checkpoints.checks import is_finished
    from mosaic_photon.compat.cpu_device_type import ON_CPU
    from mosaic_photon.report import console
    from mosaic_photon.titan.tools import logger
    from mosaic_photon.train.loop import parts_of
    from mosaic_photon.train.record import begin_record, end_record, say_what_is_next
    from mosaic_photon.train.stop import GracefulStop

    with ExitStack() as cleanup:  # undone in reverse order, each part also when another fails
        stop = GracefulStop()
        cleanup.callback(stop.restore)
        cleanup.callback(console.stop)
        console.stage("looking at the job")
        spec = train_spec.spec_of_job(job_config)
        data_parallel = train_spec.check_job(job_config, spec)
        if ON_CPU:
            job_config.comm.trace_buf_size = 0  # NCCL's flight recorder; gloo has none
        if is_finished(job_config):
            logger.info(
                f"Nothing to do: the job has trained its {job_config.training.steps} steps and saved its model."
            )
            return Ended()
        cleanup.push(leave_process_group)
        cleanup.push(lambda _, error, __: end_record(stop, error))
        console.stage("opening the data: indexes, order, what is to be fetched first")
        data = train_spec.data_of_job(spec, job_config, data_parallel)
        cleanup.callback(data.close)
        console.stage("building the model")
        trainer = titan.release().build_trainer(job_config, parts_of(job_config, spec, data, stop, make_loop))
        cleanup.callback(trainer.close)
        console.stop()
        begin_record(trainer, data.loader, started)
        if job_config.checkpoint.create_seed_checkpoint:
            trainer.save_seed()
            logger.info("Created seed checkpoint")
            return Ended()
        console.stage(f"loading {data.start.path}" if data.start.path else "beginning anew")
        trainer.train()
    say_what_is_next(job_config, trainer.step, stop.signal_number)
    finished = trainer.step >= job_config.training.steps
    return Ended(trainer.last_metrics, None if finished else stop.signal_number)


def prepare_process(job_config: "MosaicJobConfig") -> None:
    """Logging, the workarounds for this machine, and the rendezvous of a job that is one process."""
    from mosaic_photon import titan

    titan.apply_workarounds()
    from mosaic_photon.titan.tools import init_logger

    init_logger()
    from mosaic_photon.report import console

    console.take_over(job_config.mosaic.console, job_config.training.steps)
    logging.getLogger("streaming").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # llm-foundry imports it
    if titan.cpu_device_type.ON_CPU:
        warnings.filterwarnings("ignore", "In CPU autocast")  # float32 needs no autocast
    if int(os.environ["WORLD_SIZE"]) == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(free_port()))


def leave_process_group(error: type[BaseException] | None, *_: object) -> None:
    """Destroy the process group; after an error NCCL's is aborted, as destroying it waits for ranks that are gone."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _abort_process_group

    if dist.is_initialized():
        if error is not None and dist.get_backend() == "nccl":
            _abort_process_group()
        else:
            dist.destroy_process_group()


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
