"""TorchTitan 0.3: a run is a tree of configs, and a Trainer that builds each part from its own."""
