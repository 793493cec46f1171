"""docs/launch.md's Slurm script, as it stands there with sizes changed, on a real Slurm cluster of two nodes."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import jobs
from launch.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.launch, pytest.mark.timeout(1200)]

JOB = re.sub(r"steps = 4\n", "steps = 1000000\n", jobs.JOB) + "[comm]\ninit_timeout_seconds = 120\n"
PACE = '[callbacks."launch.pace:Pace"]\n'
SIZES = {
    "--nodes=4": "--nodes=2",
    "--ntasks-per-node=8": "--ntasks-per-node=1",
    "#SBATCH --gpus-per-node=8\n": "",
    "--cpus-per-task=8": "--cpus-per-task=1",
    "--time=24:00:00": "--time={minutes}",
    "B:USR1@300": "B:USR1@60",
    "MASTER_PORT=29500": "MASTER_PORT={port}",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


class SlurmJob:
    """A job of two ranks on two nodes, in a folder of its own."""

    def __init__(self, cluster: SlurmCluster, folder: Path, data: Path, minutes: int, interval: int) -> None:
        self.cluster, self.folder = cluster, folder
        checkpoint = f"[checkpoint]\nenable = true\ninterval = {interval}\nkeep_latest_k = 0\n"
        jobs.write_job(folder, data, JOB.replace("[checkpoint]\n", checkpoint) + PACE)
        (folder / "job.toml").rename(folder / "JOB.toml")
        (folder / "data.toml").rename(folder / "DATA.toml")
        (folder / ".venv").symlink_to(jobs.ROOT / ".venv")
        script = re.search(r"```bash\n(.*?)```", (jobs.ROOT / "docs/launch.md").read_text(), re.DOTALL)[1]
        for documented, here in SIZES.items():
            assert documented in script
            script = script.replace(documented, here.format(minutes=minutes, port=jobs.free_port()))
        (folder / "job.sh").write_text(script)
        cluster.environment["PYTHONPATH"] = f"{jobs.ROOT / 'src'}:{jobs.ROOT / 'tests'}"
        self.number = re.search(r"\d+", cluster.run("sbatch", "job.sh", cwd=folder))[0]

    def printed(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("slurm-*.out"))

    def fact(self, name: str) -> str:
        return re.search(rf"\b{name}=(\S+)", self.cluster.run("scontrol", "show", "job", self.number))[1]

    def last_step(self) -> int:
        """The last step whose loss is on disk."""
        return max(jobs.scalars(self.folder), default=0)

    def checkpoints(self) -> list[int]:
        complete = self.folder.glob("out/checkpoint/step-*/.metadata")
        return sorted(int(path.parent.name.removeprefix("step-")) for path in complete)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Until the condition holds; fails with what the job has printed, at once where the job has ended."""

        def holds() -> bool:
            assert self.fact("JobState") not in ("FAILED", "COMPLETED", "TIMEOUT", "NODE_FAIL"), self.printed()[-5000:]
            return condition()

        try:
            self.cluster.wait_for(holds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.printed()[-5000:]}") from None

    def wait_for_run(self, restarts: int) -> None:
        """Until the job is running for the time after `restarts` requeues."""
        self.wait_for(
            lambda: self.fact("JobState") == "RUNNING" and int(self.fact("Restarts")) == restarts, f"run {restarts}"
        )

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: self.last_step() >= step, f"step {step}")

    def cancel(self) -> None:
        """End the job for good, as its user would."""
        self.cluster.run("scancel", self.number)
        self.cluster.wait_for(lambda: self.fact("JobState") == "CANCELLED", "the job's end")
        self.cluster.wait_for(lambda: jobs.processes_mentioning(self.folder) == [], "the ranks' end")


def assert_exact(job: SlurmJob, data: Path, folder: Path, first: int, last: int) -> None:
    """The job's steps `first` to `last` are those of one undisturbed process."""
    arguments = jobs.write_job(folder, data, JOB)
    assert jobs.run_here(arguments, f"--training.steps={last}", "--validation.no-enable") == 0
    for tag, tolerance in ((jobs.LOSS, 1e-4), ("n_tokens_seen", 0)):
        found, expected = jobs.scalars(job.folder, tag), jobs.scalars(folder, tag)
        steps = range(first, last + 1)
        assert {s: found[s] for s in steps} == pytest.approx({s: expected[s] for s in steps}, rel=tolerance), tag


def test_the_time_limits_signal_a_whole_checkpoint_a_requeue_and_an_exact_resume(
    cluster: SlurmCluster, prepared_data: Path, tmp_path: Path
) -> None:
    job = SlurmJob(cluster, tmp_path / "job", prepared_data, minutes=3, interval=1_000_000)
    job.wait_for_run(1)
    (stopped_at,) = job.checkpoints()  # the one that the signal had written: no other was due
    assert stopped_at > 1
    assert f"Stopped at step {stopped_at}; its checkpoint is complete." in job.printed()
    job.wait_for_step(stopped_at + 20)
    job.cancel()
    assert_exact(job, prepared_data, tmp_path / "alone", 1, stopped_at + 20)


def test_a_node_dies_and_the_requeued_job_goes_on_exactly(
    cluster: SlurmCluster, prepared_data: Path, tmp_path: Path
) -> None:
    job = SlurmJob(cluster, tmp_path / "job", prepared_data, minutes=30, interval=10)
    job.wait_for_step(25)
    cluster.lose_node("node1")
    job.wait_for(lambda: int(job.fact("Restarts")) == 1, "the requeue")
    newest = job.checkpoints()[-1]
    cluster.start_node("node1")
    job.wait_for_run(1)
    job.wait_for_step(newest + 20)
    job.cancel()
    assert f"step-{newest}" in job.printed()
    assert_exact(job, prepared_data, tmp_path / "alone", newest + 1, newest + 20)
