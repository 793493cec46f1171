"""Starts jobs whose ranks are forks of one process that has imported everything: seconds less for each start.

Reads one JSON line a job, {"ranks", "argv", "log"}, and answers with the ranks' process ids; then waits for them all
and answers with their exit codes, -9 for one that was killed.
"""

import json
import os
import sys
import traceback

import mosaic_photon.train_with_mosaic as wrapper


def start(ranks: int, argv: list[str], log: str) -> list[int]:
    """Fork the ranks of a job; each ends with its exit code."""
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(wrapper.free_port())}
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                os.environ.update(rendezvous, RANK=str(rank), LOCAL_RANK=str(rank))
                os.environ.update(WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
                code = wrapper.main(argv)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    return pids


if __name__ == "__main__":
    import mosaic_photon.callbacks.job_state
    import mosaic_photon.dataloader.build
    import mosaic_photon.job.checks
    import mosaic_photon.job.load
    import mosaic_photon.titan.v02.release
    import mosaic_photon.train.loop
    import mosaic_photon.train.summary
    import mosaic_photon.train_spec  # noqa: F401

    for line in sys.stdin:
        pids = start(**json.loads(line))
        print(json.dumps(pids), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
    os._exit(0)  # what was imported takes seconds to take down
