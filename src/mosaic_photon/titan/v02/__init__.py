"""TorchTitan 0.2.2: TrainSpecs in a registry, and a Trainer that reads all else from the job config."""
