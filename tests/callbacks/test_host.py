"""Callbacks in TorchTitan jobs: events in Composer's order and time, logs, checkpoints, stops, failures, mistakes."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
import recording
import torch
from composer import Trainer
from composer.core import DataSpec, Evaluator
from composer.models import ComposerModel
from torch.utils.data import DataLoader

import jobs
from mosaic_photon.callbacks.host import CallbackError
from mosaic_photon.callbacks.registry import build_callbacks
from mosaic_photon.errors import ConfigError

EPOCH = 8
"""Samples: an epoch is two steps of four."""


@pytest.fixture(autouse=True)
def clean_slate():
    recording.Recorder.events.clear()
    recording.Recorder.closed.clear()


def write(folder, data, callbacks, sets=("",)):
    """A job of four steps in two epochs, no accumulation, with these callback tables and labels of eval sets."""
    train, head, one = jobs.DATA.partition("[mosaic_eval_dataloader]")
    tables = [(head + one).replace("eval_dataloader", f"eval_dataloaders.{label}" if label else "eval_dataloader")
              for label in sets]  # fmt: skip
    dataloader = (train + "".join(tables)).replace("shuffle_seed = 5", f"shuffle_seed = 5\nepoch_size = {EPOCH}", 1)
    job = jobs.JOB.replace("local_batch_size = 2\nglobal", "local_batch_size = 4\nglobal", 1)
    return jobs.write_job(folder, data, job + callbacks, dataloader)


class Model(ComposerModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch):
        return self.weight * batch.float().mean()

    def loss(self, outputs, batch):
        return outputs

    def eval_forward(self, batch, outputs=None):
        return self(batch)


def composers_events(steps, labels):
    """What Recorder sees of Composer's Trainer in the same job."""

    def loader():
        batches = DataLoader(torch.ones(EPOCH, 64, dtype=torch.long), batch_size=4)
        return DataSpec(batches, get_num_tokens_in_batch=lambda batch: batch.numel())

    model = Model()
    once = {"eval_interval": "1ba", "subset_num_batches": 1, "metric_names": []}
    trainer = Trainer(
        model=model,
        train_dataloader=loader(),
        eval_dataloader=[Evaluator(label=label, dataloader=loader(), **once) for label in labels],
        optimizers=torch.optim.AdamW(model.parameters()),
        max_duration=f"{steps}ba",
        callbacks=recording.Recorder(),
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    events = list(recording.Recorder.events)
    recording.Recorder.events.clear()
    pairs = zip(events, [*events[1:], ("",)], strict=True)
    return [one for one, then in pairs if (one[0], then[0]) != ("before_dataloader", "epoch_end")]  # found no batch


@pytest.mark.parametrize("sets", [("",), ("web", "code")], ids=["one eval set", "two"])
def test_events_come_in_composers_order_with_composers_times(tmp_path, prepared_data, sets):
    labels = [f"eval/{label}" if label else "eval" for label in sets]
    expected = composers_events(4, labels)
    stopper = f'[callbacks.early_stopper]\nmonitor = "LanguageCrossEntropy"\ndataloader_label = "{labels[-1]}"\n'
    callbacks = f'[callbacks."recording:Recorder"]\n{stopper}patience = "9ba"\n'
    arguments = write(tmp_path, prepared_data, callbacks, sets)
    flags = (
        "--validation.enable=true",
        "--validation.steps=1",
        "--validation.freq=1",
        "--validation.local_batch_size=4",
    )
    assert jobs.run_here(arguments, *flags) == 0
    for ours, composers in itertools.zip_longest(recording.Recorder.events, expected):
        assert ours == composers
    assert len(expected) > 60
    assert recording.Recorder.closed[-1] == "closed after 4"


def test_resume_goes_on_in_time_and_gives_callbacks_their_state(tmp_path, prepared_data):
    table = '[callbacks."recording:Recorder"]\n'
    assert jobs.run_here(write(tmp_path / "whole", prepared_data, table), "--training.steps=5") == 0
    whole = list(recording.Recorder.events)
    recording.Recorder.events.clear()
    arguments = write(tmp_path / "parts", prepared_data, table)
    checkpoints = ("--checkpoint.enable=true", "--checkpoint.interval=100")
    for steps in (2, 3, 5):  # the first ends with an epoch
        assert jobs.run_here(arguments, f"--training.steps={steps}", *checkpoints) == 0
    inside = {"batch_start", "batch_end", "epoch_start", "epoch_end", "after_train_batch"}
    parts = dict.fromkeys(recording.Recorder.events)  # the checkpoint is older than its epoch's end, which comes again
    assert [one for one in parts if one[0] in inside] == [one for one in whole if one[0] in inside]
    assert recording.Recorder.closed[-1] == "closed after 5"
    # a callback that the checkpoint does not know starts anew; one that is gone does no harm
    assert (
        jobs.run_here(
            write(tmp_path / "parts", prepared_data, "[callbacks.lr_monitor]\n"), "--training.steps=6", *checkpoints
        )
        == 0
    )
    assert jobs.run_here(write(tmp_path / "parts", prepared_data, ""), "--training.steps=7", *checkpoints) == 0
    assert jobs.run_here(write(tmp_path / "parts", prepared_data, table), "--training.steps=8", *checkpoints) == 0
    assert recording.Recorder.closed[-1] == "closed after 1"


@pytest.mark.parametrize(
    "parts", [((5, False), (9, True)), ((3, True), (6, False), (9, True))], ids=["join in an epoch", "rejoin after one"]
)
def test_callbacks_that_join_or_rejoin_a_job_find_the_time_of_its_data(tmp_path, prepared_data, parts):
    table, checkpoints = '[callbacks."recording:Recorder"]\n', ("--checkpoint.enable=true", "--checkpoint.interval=100")

    def seen():
        return [one for one in recording.Recorder.events if one[0] in ("batch_start", "epoch_start", "epoch_end")]

    assert jobs.run_here(write(tmp_path / "whole", prepared_data, table), "--training.steps=9") == 0
    whole = seen()
    for steps, with_callbacks in parts:
        recording.Recorder.events.clear()
        arguments = write(tmp_path / "parts", prepared_data, table if with_callbacks else "")
        assert jobs.run_here(arguments, f"--training.steps={steps}", *checkpoints) == 0
    began = parts[-2][0]  # an epoch's end at that step was the job's without callbacks
    assert seen() == [one for one in whole if one[2] > began or (one[2] == began and one[0] != "epoch_end")]
    (start,) = (one for one in recording.Recorder.events if one[0] == "fit_start")
    assert start[1:] == (began // 2, began, 4 * began, 256 * began, began % 2, 4 * (began % 2))


@pytest.mark.parametrize("event, error", [("state_dict", "ValueError: as"), ("load_state_dict", "KeyError: 'b'")])
def test_a_callback_that_fails_with_its_state_is_named(tmp_path, prepared_data, event, error):
    arguments = write(tmp_path, prepared_data, f'[callbacks."recording:FailingState"]\nevent = "{event}"\n')
    flags = ("--checkpoint.enable=true", "--checkpoint.interval=2")
    with pytest.raises(CallbackError, match=f"'recording:FailingState' failed in {event} at step . ?.*{error}"):
        jobs.run_here(arguments, *flags, "--training.steps=2")
        jobs.run_here(arguments, *flags, "--training.steps=4")


def test_numbers_are_logged_and_the_rest_is_printed(tmp_path, prepared_data, capsys):
    arguments = write(tmp_path, prepared_data, '[callbacks."recording:Words"]\n')
    assert jobs.run_here(arguments, "--training.steps=2") == 0
    assert jobs.scalars(tmp_path, "words/number") == {1: 1.0, 2: 1.0}
    assert jobs.scalars(tmp_path, "words/phase") == jobs.scalars(tmp_path, "words/pair") == {}
    assert 'Callbacks, step 2: {"words/phase": "warm-up", "words/pair": "tensor([1., 1.])"}' in capsys.readouterr().out


def test_nothing_is_fetched_from_the_device_where_no_logger_writes():
    from torchtitan.components.metrics import BaseLogger

    from mosaic_photon.callbacks.composer_view import TitanDestination

    without_data = torch.ones((), device="meta")
    TitanDestination(BaseLogger(), True).log_metrics({"loss": without_data}, 1)


def test_all_are_closed_before_any_is_post_closed(tmp_path, prepared_data):
    """Composer's order, and as there a callback that failed in the first is left out of the second."""
    tables = (
        '[callbacks."recording:Closing"]\nname = "a"\n[callbacks."recording:Closing2"]\nname = "b"\nfails = true\n'
        '[callbacks."recording:Closing3"]\nname = "c"\n'
    )
    assert jobs.run_here(write(tmp_path, prepared_data, tables), "--training.steps=1") == 0
    assert recording.Closing.events == ["close a", "close b", "close c", "post_close a", "post_close c"]


def test_logs_reach_tensorboard_at_titans_steps_with_titans_losses(tmp_path, prepared_data):
    arguments = jobs.write_job(tmp_path, prepared_data, jobs.JOB + '[callbacks."recording:Losses"]\n')
    assert jobs.run_here(arguments, "--validation.enable=true", "--validation.steps=1") == 0
    losses = jobs.scalars(tmp_path)
    assert set(losses) == {1, 2, 3, 4}
    assert jobs.scalars(tmp_path, "seen/loss") == pytest.approx(losses)
    assert jobs.scalars(tmp_path, "seen/perplexity") == pytest.approx(
        {step: math.exp(one) for step, one in losses.items()}
    )
    assert jobs.scalars(tmp_path, "seen/microbatch_loss").keys() == {0, 1, 2, 3}  # Composer counts a batch when it ends
    assert jobs.scalars(tmp_path, "seen/eval_loss") == pytest.approx(jobs.scalars(tmp_path, "validation_metrics/loss"))


def test_stop_training_ends_the_job_with_a_complete_checkpoint(tmp_path, prepared_data):
    arguments = write(tmp_path, prepared_data, '[callbacks."recording:Stopper"]\nbatches = 2\n')
    checkpoints = ("--checkpoint.enable=true", "--checkpoint.interval=100")
    assert jobs.run_here(arguments, "--training.steps=5", *checkpoints) == 0
    assert set(jobs.scalars(tmp_path)) == {1, 2}
    resumed = write(tmp_path, prepared_data, "")
    assert jobs.run_here(resumed, "--training.steps=3", *checkpoints) == 0
    assert set(jobs.scalars(tmp_path)) == {1, 2, 3}


@pytest.mark.parametrize("event", ["init", "fit_start", "after_loss", "batch_end", "eval_end", "epoch_end", "fit_end"])
def test_a_failing_callback_is_named_and_the_job_closed(tmp_path, prepared_data, event):
    batch = {"init": 0, "fit_start": 0, "after_loss": 1, "fit_end": 4}.get(event, 2)
    tables = f'[callbacks."recording:Raiser"]\nevent = "{event}"\nbatch = {batch}\n[callbacks."recording:Recorder"]\n'
    flags = ("--validation.enable=true", "--validation.steps=1", "--checkpoint.enable=true", "--checkpoint.interval=1")
    with pytest.raises(CallbackError, match=f"'recording:Raiser' failed in {event} .*RuntimeError: as it was told to"):
        jobs.run_here(write(tmp_path, prepared_data, tables), *flags)
    assert len(recording.Recorder.closed) == 1
    checkpoints = sorted((tmp_path / "out/checkpoint").glob("step-*/.metadata"))
    complete = {"init": 0, "fit_start": 0, "after_loss": 1, "batch_end": 1, "fit_end": 4}.get(event, 2)
    assert len(checkpoints) == complete


@pytest.mark.parametrize(
    "tables, message",
    [
        ({"lr_monitr": {}}, "callbacks.lr_monitr: there is no such callback. Did you mean 'lr_monitor'"),
        ({"lr_monitor": 3}, r"callbacks.lr_monitor = 3: must be a table"),
        ({"speed_monitor": {"windowsize": 3}}, "windowsize: no such argument. Did you mean 'window_size'"),
        ({"early_stopper": {"monitor": "x"}}, "callbacks.early_stopper: needs dataloader_label. EarlyStopper takes"),
        ({"speed_monitor": {"time_unit": "weeks"}}, r"SpeedMonitor\(time_unit='weeks'\) failed: .*weeks"),
        ({"optimizer_monitor": {"interval": "5 minutes"}}, "callbacks.optimizer_monitor"),
        ({"generate_callback": {}}, "is refused: it needs a Hugging Face model"),
        ({"recording:Absent": {}}, "cannot be imported as module.path:Class"),
        ({"no.such.module:Absent": {}}, "cannot be imported as module.path:Class"),
        ({"..recording:Absent": {}}, "cannot be imported as module.path:Class: '..recording' is not the whole name"),
        ({"recording:NotACallback": {}}, "is not a composer.Callback class"),
    ],
)
def test_mistakes_are_named(tables, message):
    with pytest.raises(ConfigError, match=message):
        build_callbacks(tables)


def test_a_mistake_ends_the_job_before_it_begins(tmp_path, prepared_data, capsys):
    assert jobs.run_here(write(tmp_path, prepared_data, "[callbacks.lr_monitr]\n")) == 1
    assert "Did you mean 'lr_monitor'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_signal_handlers_survive_the_import_and_no_callback_imports_nothing(tmp_path, prepared_data):
    script = """
import signal, sys
from mosaic_photon.train_with_mosaic import main
assert main(sys.argv[1:]) == 0
assert not any(name.split(".")[0] in ("composer", "llmfoundry") for name in sys.modules)
signal.signal(signal.SIGTERM, handler := lambda *_: None)
from mosaic_photon.callbacks.registry import build_callbacks
build_callbacks({"optimizer_monitor": {}})
assert "composer" in sys.modules and "llmfoundry" not in sys.modules
assert signal.getsignal(signal.SIGTERM) is handler
"""
    arguments = write(tmp_path, prepared_data, "")
    subprocess.run([sys.executable, "-c", script, *arguments, "--", "--training.steps=1"], check=True, cwd=jobs.ROOT)
