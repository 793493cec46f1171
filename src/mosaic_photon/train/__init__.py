"""The loop around TorchTitan's: a job's data, events, counts, a clean stop, the summary before the first step.

The way of a job and of its steps. All of it runs in the main thread of each rank but for what is said otherwise:

1. `train_with_mosaic.run` opens the data (`data.open_loaders`), puts the parts together (`loop.parts_of`) and lets
   `titan.release().build_trainer` build a trainer from them.
2. The complete trainer calls `loop.MosaicLoop.attach`: the ranks compare data and checkpoint, and callbacks, signals
   and trainer are told of each other.
3. TorchTitan's `train()` loads the checkpoint and asks for its batches: `MosaicLoop.begin`. From now on SIGTERM asks
   for a stop between two steps (`stop.GracefulStop`, whose watching thread ends a process that is stuck), and random
   numbers go on as the checkpoint has them (`generators.Generators`).
4. Before each step TorchTitan asks whether to go on: `wants_stop` has the ranks' common answer. It was asked for when
   the last step began, in a reduction that ran beside the step.
5. `begin_step`. TorchTitan takes the step's micro-batches from the loader, whose own thread or worker processes have
   read ahead; `counted` counts them.
6. For each micro-batch `begin_micro_batch`, then forward, loss and backward in `titan/v02/trainer.py`, with events in
   between. A step without labels ends here (`pass_over`).
7. TorchTitan clips, steps optimizer and schedule, and reports; `end_step`.
8. TorchTitan saves (its own threads where saving is asynchronous) and validates (`titan/validator.py`); then 4.
9. `close`: callbacks, checkpointer, metrics; then the data, the process group, the signals.
"""
