"""The loop around TorchTitan's: events, a clean stop, validation, metrics, the summary before the first step."""
