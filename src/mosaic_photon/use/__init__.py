"""What a trained model is for: averaged, generated from, evaluated, taken to Hugging Face's format and back."""
